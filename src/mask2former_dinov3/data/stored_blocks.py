"""Check stored data that are damaged, and that GDAL or Pillow read without a word: PNG, JPEG or deflate in TIFF."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from PIL import Image

from ..errors import DatasetError, mismatch
from .jpeg_data import check_jpeg
from .tiff_tags import TiffPage, read_blocks

_PNG_SIGNATURE = 8  # bytes before the first chunk
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced PNG: first column and row, steps between columns and between rows."""
_PIECE = 2**20  # bytes read at once
_JPEG, _DEFLATES = 7, (8, 32946)  # TIFF's compressions


def check_png(file: IO[bytes]) -> None:
    """Raise DatasetError unless a PNG has all its rows, and every chunk its checksum, up to the last one.

    GDAL gives black pixels for what is missing; Pillow for rows that are missing, where the file is closed properly.
    """
    file.seek(_PNG_SIGNATURE)
    inflater, missing, name = zlib.decompressobj(), 0, b""
    while name != b"IEND":
        head = file.read(8)
        length, name = int.from_bytes(head[:4]), head[4:]
        checksum = zlib.crc32(name)
        while length > 0 and (piece := file.read(min(length, _PIECE))):
            checksum = zlib.crc32(piece, checksum)
            length -= len(piece)
            if name == b"IHDR":
                missing = _png_bytes(piece)
            elif name == b"IDAT":
                missing -= _inflated(inflater, piece)
        if length or file.read(4) != checksum.to_bytes(4):
            raise _damaged("a chunk is cut short, or does not have its checksum")
    if missing > 0:
        raise _damaged("its last rows are missing")


def check_last_row(image: Image.Image, source: IO[bytes] | Path) -> None:
    """Raise DatasetError for a PNG that ends before its last row, where Pillow leaves black rows.

    image: opened from `source`. Only if its last row is all zeros the file is read again.
    """
    if image.format != "PNG":
        return
    image.load()
    last = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
    if last.strip(b"\0"):
        return
    if isinstance(source, Path):
        with open(source, "rb") as file:
            check_png(file)
    else:
        check_png(source)


def _png_bytes(header: bytes) -> int:
    """How many bytes the rows of a PNG have, uncompressed and with a filter byte each (PNG, sections 7.2 and 8.2)."""
    if len(header) < 13:
        return 0
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    bits, colour, interlaced = header[8], header[9], header[12]
    bits *= {2: 3, 4: 2, 6: 4}.get(colour, 1)
    parts = [(width, height)]
    if interlaced:
        parts = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _ADAM7]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in parts if columns > 0 and rows > 0)


def _inflated(inflater: Any, data: bytes) -> int:
    """How many bytes come of compressed data; 0 once its stream has ended."""
    count = 0
    try:
        while data and not inflater.eof:
            count += len(inflater.decompress(data, _PIECE))
            data = inflater.unconsumed_tail
    except zlib.error as error:
        raise _damaged(str(error)) from error
    return count


def check_tiff_blocks(file: IO[bytes], page: TiffPage, *, deflate: bool) -> None:
    """Raise DatasetError unless all blocks of a page are whole, where its compression can tell.

    deflate: also decompress blocks by deflate, of which no decoder compares the checksum. Blocks by JPEG are always
    decoded, at an eighth of their size.
    """
    if page.compression == _JPEG or (deflate and page.compression in _DEFLATES):
        blocks = read_blocks(file, page)
        for number in range(len(blocks.places)):
            _check_block(blocks.read(file, number), page.compression)


def block_checker(path: Path, page: TiffPage) -> Callable[[int], None]:
    """A function that checks a block of JPEG data by its number, each block once; of other data, does nothing.

    It raises DatasetError for a damaged block. Call it in one thread.
    """
    if page.compression != _JPEG:
        return lambda number: None
    checked: set[int] = set()
    with open(path, "rb") as opened:
        blocks = read_blocks(opened, page)

    def check(number: int) -> None:
        if number not in checked and number < len(blocks.places):
            with open(path, "rb") as file:
                _check_block(blocks.read(file, number), page.compression)
            checked.add(number)

    return check


def _check_block(data: bytes, compression: int) -> None:
    if not data:  # a block of nothing is left out of a sparse file
        return
    if compression == _JPEG:
        check_jpeg(data)
        return
    inflater = zlib.decompressobj()
    _inflated(inflater, data)
    if not inflater.eof:
        raise _damaged("a block is cut short")


def _damaged(reason: str) -> DatasetError:
    advice = "copy it again from its source, or leave it out"
    return DatasetError(mismatch("a readable image file", f"one that is damaged or cut short ({reason})", advice))
