"""Data that end early, in files that are closed properly: both readers of images refuse them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from mask2former_dinov3.data.formats.label_maps import read_labels
from mask2former_dinov3.data.formats.labelme_json import _parse_mask
from mask2former_dinov3.data.images import decode_image, read_image
from mask2former_dinov3.data.stored_blocks import check_png
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.inference.tiles import image_reader
from mask2former_dinov3.inference.tiles.grid import Region

SIDE = 24
MISSING = r"damaged or cut short \(its last rows are missing\)"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rows: int, colour: int = 2, bits: int = 8, value: int = 7) -> bytes:
    """A PNG of SIDE x SIDE pixels that says so, and has fewer rows: a whole stream, all checksums, an end."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    row = b"\0" + bytes([value]) * (SAMPLES[colour] * SIDE * bits // 8)
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunk(b"IDAT", zlib.compress(row * rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "bits"), [(0, 8), (0, 1), (0, 16), (2, 8), (3, 8), (4, 8), (6, 8)])
def test_png__without_its_last_rows_is_refused(tmp_path: Path, colour: int, bits: int) -> None:
    assert decode_image(png(SIDE, colour, bits), "a.png").shape == (SIDE, SIDE, 3)
    for rows in (1, SIDE - 1):
        (tmp_path / "a.png").write_bytes(png(rows, colour, bits))
        for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
            with pytest.raises(DatasetError, match=MISSING):
                read_image(path)
    assert not decode_image(png(SIDE, colour, bits, 0), "a.png")[-1].any()  # black, and whole


@pytest.mark.parametrize(("width", "height"), [(SIDE, SIDE + 5), (1, 1), (3, 9)])
@pytest.mark.parametrize(("colour", "bits"), [(2, 24), (4, 16)])
def test_png__interlaced_and_black_is_whole(width: int, height: int, colour: int, bits: int) -> None:
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    sizes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in passes]
    raw = bytes(sum(rows * (1 + columns * bits // 8) for columns, rows in sizes if columns))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 1))
    data = start + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    check_png(io.BytesIO(data))
    assert not decode_image(data, "a.png").any()
    with pytest.raises(DatasetError, match="its last rows are missing"):
        check_png(io.BytesIO(start + chunk(b"IDAT", zlib.compress(raw[:-1])) + chunk(b"IEND", b"")))


def test_label_map__without_its_last_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(10, 0))
    with pytest.raises(DatasetError, match=MISSING):
        read_labels(tmp_path / "a.png")
    corners = np.array([[0.0, 0.0], [SIDE - 1.0, SIDE - 1.0]])
    with pytest.raises(DatasetError, match=MISSING):
        _parse_mask(base64.b64encode(png(10, 0)).decode(), corners, SIDE, SIDE)


def test_png__without_its_last_rows_is_refused_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio")
    monkeypatch.setattr(image_reader, "WHOLE_PIXELS", 100)
    (tmp_path / "a.png").write_bytes(png(SIDE))
    with image_reader.open_image(tmp_path / "a.png") as reader:
        assert reader.read(Region(0, 0, 5, 5)).shape == (5, 5, 3)
    (tmp_path / "a.png").write_bytes(png(10))
    with pytest.raises(DatasetError, match=MISSING), image_reader.open_image(tmp_path / "a.png") as reader:
        reader.read(Region(0, 0, 5, 5))
