"""The name of a model on both pages."""

from __future__ import annotations

from pathlib import Path

from mask2former_dinov3.browser.viewer_page import display_name


def test_display_name__tells_no_folders_of_the_machine(tmp_path: Path) -> None:
    for name in ("runs/first/best", "nuclei"):
        (tmp_path / name).mkdir(parents=True)
    assert display_name(tmp_path / "runs/first/best") == "first/best"
    assert display_name(tmp_path / "nuclei") == "nuclei"
    assert display_name("user/model") == "user/model"
