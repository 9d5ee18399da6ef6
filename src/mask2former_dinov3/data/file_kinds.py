"""Tell image files from others: by the endings that Pillow knows, or by the first bytes of a file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

NO_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats that Pillow lists, but cannot decode by itself, or that hold no picture as a rule."""

TOLD_BY_HEAD = ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF", "QOI")
"""Formats that are recognised by their first bytes, where a name has no ending."""

HEAD = 64  # bytes that tell


def _list_suffixes() -> frozenset[str]:
    known = Image.registered_extensions()  # loads all of Pillow's plugins
    readable = {*Image.OPEN, "MPO"} - NO_PICTURES  # Pillow opens MPO, several JPEGs in one file, as JPEG
    return frozenset(suffix for suffix, name in known.items() if name in readable)


IMAGE_SUFFIXES = _list_suffixes()
"""File name endings (lower case) that count as an image where a folder is listed: those that Pillow reads here."""

_OTHER_FILES = (
    (b"version https://git-lfs", "a pointer of Git LFS instead of the image", "run `git lfs pull`"),
    (b"PK\x03\x04", "a zip file", "unpack it"),
    (b"%PDF", "a PDF", "save its pages as images"),
    (b"<!DOCTYPE", "a web page", "download the image itself"),
    (b"<html", "a web page", "download the image itself"),
    (b"<svg", "an SVG drawing", "save it as PNG"),
    (b"<?xml", "an XML file", ""),
    (b"\x89HDF", "an HDF5 file", "save its images as TIFF or PNG"),
    (b"\x93NUMPY", "a NumPy array", "save it as TIFF or PNG"),
)


def has_image_head(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a common kind of image."""
    tests = (Image.OPEN[kind][1] for kind in TOLD_BY_HEAD if kind in Image.OPEN)
    return bool(head) and any(accept is not None and accept(head) is True for accept in tests)


def describe_head(path: Path | str, data: bytes | None = None) -> tuple[str, str]:
    """What a file is that is no image, and what to do: the two last arguments of `mismatch`. data: its bytes, if
    they are known."""
    head = _read_head(Path(path)) if data is None else data[:HEAD]
    if not head.strip(b"\0"):
        return ("an empty file" if not head else "zero bytes"), "copy it again from its source"
    head = head.lstrip()
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "an HEIC image", "save it as JPEG or PNG"
    for start, kind, advice in _OTHER_FILES:
        if head[: len(start)].lower() == start.lower():
            return kind, advice
    return "another kind of file", ""


def _read_head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
