"""Which files of a folder count as images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mask2former_dinov3.data.image_folders import PassedOver, choose_images, images_in, is_hidden


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("a.png", False),
        ("deep/a.png", False),
        ("a..png", False),
        ("._a.png", True),
        ("...png", True),
        (".cache/a.png", True),
        ("deep/.ipynb_checkpoints/a.png", True),
        ("__MACOSX/a.png", True),
        ("photos/@eaDir/a.jpg/T.jpg", True),
        ("$RECYCLE.BIN/a.png", True),
        ("Thumbs.db", True),
    ],
)
def test_is_hidden__is_of_dots_and_of_what_systems_make(name: str, hidden: bool) -> None:
    assert is_hidden(name) is hidden


def test_choose_images__reads_the_head_only_without_an_ending() -> None:
    heads = {"a": b"\xff\xd8\xff\xe0", "b.7": b"II*\0", "c": b"text", "d.dat": b"\xff\xd8\xff", "e": b""}
    asked: list[str] = []

    def read_head(name: str) -> bytes:
        asked.append(name)
        return heads[name]

    passed_over = PassedOver()
    names = [*heads, "f.avif", "g.MPO", "h.jpe", "i.jfif", "j.pdf", "k.h5", "l.eps"]
    assert list(choose_images(names, read_head, passed_over)) == ["a", "b.7", "f.avif", "g.MPO", "h.jpe", "i.jfif"]
    assert asked == ["a", "b.7", "c", "e"]
    assert passed_over.text() == "passed over: 6 files (no ending 2, .dat 1, .pdf 1, .h5 1, .eps 1)"


def test_images_in__is_sorted_and_leaves_a_folder_out(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.png", "out/overlay.png", ".hidden/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "missing.png")
    passed_over = PassedOver()
    found = images_in(tmp_path, passed_over, (tmp_path / "out").resolve())
    assert list(found) == [tmp_path / "a" / "z.png", tmp_path / "b.png"]
    assert passed_over.text() == "passed over: 1 hidden file and 1 special file (broken links, pipes, devices)"
    assert PassedOver().text() == ""


def test_images_in__counts_links_that_lead_nowhere(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "none.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "c.png")
    passed_over = PassedOver()
    assert list(images_in(tmp_path, passed_over)) == [tmp_path / "a.png"]
    assert passed_over.text() == "passed over: 2 special files (broken links, pipes, devices)"
