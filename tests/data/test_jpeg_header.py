"""Sizes of plain JPEGs read without Pillow are those that Pillow reads; whatever is not plain is left to it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.data import check, image_faults, images
from mask2former_dinov3.data.images import decode_header, read_header
from mask2former_dinov3.data.jpeg_header import JPEG_HEAD, parse_plain_jpeg, read_plain_jpeg
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.read_options import ReadOptions

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif.tobytes())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"comment": b"a"}, {"quality": 99}])
@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3)])
def test_read_plain_jpeg__gives_size_and_components(
    mode: str, components: int, options: dict[str, Any], tmp_path: Path
) -> None:
    data = jpeg(mode, **options)
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_plain_jpeg(tmp_path / "a.jpg") == (23, 31, components)
    for read in (ReadOptions(), ReadOptions(channels=(1,))):
        assert read_header(tmp_path / "a.jpg", read) == decode_header(data, "a.jpg", read)


@pytest.mark.parametrize(
    "data",
    [
        turned(),
        jpeg("CMYK"),
        jpeg(icc_profile=bytes(300)),
        jpeg(xmp=b"<x/>"),
        jpeg(comment=bytes(JPEG_HEAD)),
        b"\xff\xd8\xff",
        b"",
        b"GIF89a",
    ],
    ids=["turned", "cmyk", "profile", "xmp", "long", "start", "empty", "gif"],
)
def test_other_files__are_left_to_pillow(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_plain_jpeg(tmp_path / "a.jpg") is None


def test_orientation__is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(turned())
    assert read_header(tmp_path / "a.jpg").orientation == 6


def test_what_is_no_file__is_left_to_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", "missing.jpg", ""):
        assert read_plain_jpeg(tmp_path / name) is None
        with pytest.raises(DatasetError):
            read_header(tmp_path / name)


@pytest.mark.parametrize("data", [jpeg(), jpeg("L", progressive=True, comment=b"text")], ids=["colours", "grey"])
def test_damaged_headers__are_never_read_otherwise_than_by_pillow(data: bytes) -> None:
    """Each byte of the header set to values that mean something there, and the file cut at each byte."""
    end = data.index(b"\xff\xda") + 20
    changed = [data[:place] for place in range(end)]
    changed += [data[:place] + bytes([value]) + data[place + 1 :] for place in range(end) for value in (2, 0xFF)]
    plain = 0
    for one in changed:
        found = parse_plain_jpeg(one[:JPEG_HEAD])
        if found is not None:
            plain += 1
            header = decode_header(one, "a.jpg")
            assert (header.height, header.width, header.orientation, header.unread) == (*found[:2], 1, "")
            with Image.open(io.BytesIO(one)) as image:
                assert image.mode == {1: "L", 3: "RGB"}[found.components]
    assert plain > 100


def test_check_data__says_the_same_of_plain_jpegs_as_by_pillow(
    make_toy_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sound files, another size, another number of channels, an orientation, damage; only headers are read."""
    root = make_toy_dataset()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, path in enumerate(sorted(root.glob("*/*.png"))):
        with Image.open(path) as image:
            changed = image.convert("L" if number == 2 else "RGB").resize((9, 9) if number == 1 else image.size)
        changed.save(path.with_suffix(".jpg"), exif=exif.tobytes() if number == 3 else b"")
        path.unlink()
    cut = root / "train" / "004.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    for file in root.glob("*/_annotations.coco.json"):
        file.write_text(file.read_text().replace(".png", ".jpg"))
    monkeypatch.setattr(check, "_SAMPLED", 0)
    for options in (ReadOptions(), ReadOptions(grey_as_rgb=False)):
        report = check.check_data(*find_splits(root), full=False, options=options)
        with monkeypatch.context() as patch:
            patch.setattr(images, "read_plain_jpeg", lambda _: None)
            patch.setattr(image_faults, "read_plain_jpeg", lambda _: None)
            assert check.check_data(*find_splits(root), full=False, options=options).text() == report.text()
        errors = [fault.kind for fault in report.errors]
        grey = ["other channels"] * (not options.grey_as_rgb)
        assert sorted(errors) == ["image cannot be read", "image has another size", *grey]
        assert "EXIF orientation 6" in report.text()
