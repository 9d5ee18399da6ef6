"""Check stored data that GDAL reads without a word although they are damaged: PNG, and JPEG or deflate in TIFF."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ..errors import DatasetError, mismatch
from .jpeg_data import check_jpeg
from .tiff_tags import TiffPage, read_blocks

_PNG_SIGNATURE = 8  # bytes before the first chunk
_PIECE = 2**20  # bytes read at once
_JPEG, _DEFLATES = 7, (8, 32946)  # TIFF's compressions


def check_png(path: Path) -> None:
    """Raise DatasetError unless every chunk of a PNG has its checksum, up to the last one.

    GDAL gives black pixels for what is missing.
    """
    with open(path, "rb") as file:
        file.seek(_PNG_SIGNATURE)
        name = b""
        while name != b"IEND":
            head = file.read(8)
            length, name = int.from_bytes(head[:4]), head[4:]
            checksum = zlib.crc32(name)
            while length > 0 and (piece := file.read(min(length, _PIECE))):
                checksum = zlib.crc32(piece, checksum)
                length -= len(piece)
            if length or file.read(4) != checksum.to_bytes(4):
                raise _damaged("a chunk is cut short, or does not have its checksum")


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
    try:
        while data and not inflater.eof:
            inflater.decompress(data, _PIECE)
            data = inflater.unconsumed_tail
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if not inflater.eof:
        raise _damaged("a block is cut short")


def _damaged(reason: str) -> DatasetError:
    advice = "copy it again from its source, or leave it out"
    return DatasetError(mismatch("a readable image file", f"one that is damaged or cut short ({reason})", advice))
