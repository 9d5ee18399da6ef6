"""What counts as an image: the endings that Pillow reads, and files without an ending by their first bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mask2former_dinov3.data.file_kinds import IMAGE_SUFFIXES
from mask2former_dinov3.data.image_folders import PassedOver, images_in
from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.errors import DatasetError


def is_image_file(path: Path) -> bool:
    """Whether a file of a folder is taken as an image."""
    return path in images_in(path.parent, PassedOver())


def test_suffixes__are_those_that_pillow_reads() -> None:
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".avif", ".jp2", ".png", ".tif", ".webp"} <= IMAGE_SUFFIXES
    assert not {".pdf", ".h5", ".mpg", ".eps", ".json", ".txt", ".svs", ""} & IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".jpe", ".jp2", ".mpo", ".tga", ".pcx", ".qoi", ".ppm"])
def test_files_of_these_suffixes__are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    Image.new("RGB", (40, 24), (200, 100, 50)).save(path)
    assert is_image_file(path)
    image = read_image(path)
    assert image.shape == (24, 40, 3)
    assert abs(image.astype(int) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("name", ["scan", "scan.0001"])
def test_without_an_ending__the_first_bytes_decide(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.new("RGB", (8, 8)).save(path, kind)
    assert is_image_file(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PN", b'{"images": []}', bytes(100)])
def test_other_files_without_an_ending__are_no_images(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "README"
    path.write_bytes(content)
    assert not is_image_file(path)
    assert not is_image_file(tmp_path / "missing")


def test_an_ending_of_its_own__is_believed(tmp_path: Path) -> None:
    """A raw file of a camera is a TIFF whose first image is a thumbnail."""
    path = tmp_path / "photo.nef"
    Image.new("RGB", (8, 8)).save(path, "TIFF")
    assert not is_image_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "got a pointer of Git LFS .*; run `git lfs pull`"),
        (b"PK\x03\x04rest", "got a zip file; unpack it"),
        (b"<!doctype html><html>", "got a web page; download the image itself"),
        (b"%PDF-1.7", "got a PDF; save its pages as images"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "got an HEIC image; save it as JPEG or PNG"),
    ],
)
def test_other_files__are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_image(path)
