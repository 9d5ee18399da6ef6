"""What the terminal shows of names that come from files of others."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from mask2former_dinov3.cli import main
from mask2former_dinov3.cli.messages import VisibleFormatter, visible


def test_visible__escapes_what_a_terminal_would_obey_and_nothing_else() -> None:
    assert visible("a\x1b[2J\r\x00\x9b\u202e\ud800") == "a\\x1b[2J\\r\\x00\\x9b\\u202e\\ud800"
    plain = "Zellen, \u7d30\u80de, \u0643\u0631\u064a\u0629\n\twith\xa0tabs \U0001f469\u200d\U0001f52c"
    assert visible(plain) == plain
    record = logging.LogRecord("m2f", logging.WARNING, "", 0, "no %s", ("\x1b]0;title\x07",), None)
    assert VisibleFormatter("%(message)s").format(record) == "no \\x1b]0;title\\x07"


def test_check_data__shows_names_of_classes_and_files_without_escape_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 40), (10, 90, 200)).save(tmp_path / "a.png")
    square = [[5, 5, 30, 5, 30, 30, 5, 30]]
    content = {
        "images": [
            {"id": n, "file_name": name, "height": 40, "width": 40} for n, name in ((1, "a.png"), (2, "\x1b[31m"))
        ],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": square}],
        "categories": [{"id": 1, "name": "disc\x1b[2J"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert main(["check-data", str(tmp_path / "a.json"), "--valid-split", "0"]) == 1
    shown = "".join(capsys.readouterr())
    assert "disc\\x1b[2J: 1" in shown
    assert "\\x1b[31m" in shown
    assert "\x1b" not in shown
