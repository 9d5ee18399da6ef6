"""Read the size of a plain JPEG from its first bytes: data sets have 100,000 of them, and Pillow takes long for each.

Plain is what most files are: markers one behind the other, one frame of 8 bits in grey or three colours, nothing that
may hold an orientation or further pictures. All others are left to Pillow (a test compares both).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from PIL import Image

JPEG_HEAD = (
    4096  # bytes that are read; the headers of a plain JPEG without a thumbnail or colour profile take about 600
)
_SOI = b"\xff\xd8\xff"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_SKIPPED = frozenset({0xC4, 0xDD, 0xFE})  # Huffman tables, restart interval, comment
_TABLES, _SCAN, _JFIF = 0xDB, 0xDA, 0xE0
_TABLE = 65  # bytes of a quantization table of 8 bits
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is not waited for


class PlainJpeg(NamedTuple):
    """Size in pixels, and 1 (grey) or 3 (colours) components."""

    height: int
    width: int
    components: int


def read_plain_jpeg(path: Path | str) -> PlainJpeg | None:
    """The size of a plain JPEG file; None for any other file, also for one that is missing or damaged."""
    try:
        file = os.open(path, _FLAGS)
    except (OSError, ValueError):
        return None
    try:
        head = os.read(file, JPEG_HEAD)
    except OSError:
        return None
    finally:
        os.close(file)
    return parse_plain_jpeg(head)


def parse_plain_jpeg(head: bytes) -> PlainJpeg | None:
    """As `read_plain_jpeg`, from the first bytes of a file."""
    if not head.startswith(_SOI):
        return None
    frame: PlainJpeg | None = None
    place, end = 2, len(head) - 4
    while place <= end and head[place] == 0xFF:
        marker = head[place + 1]
        length = head[place + 2] << 8 | head[place + 3]
        begin, place = place + 4, place + 2 + length
        if place > len(head) or length < 2:
            return None
        if marker == _SCAN:
            return frame
        if marker in _FRAMES:
            if frame is not None:
                return None
            frame = _parse_frame(head[begin:place])
            if frame is None:
                return None
        elif marker == _TABLES:
            if (length - 2) % _TABLE or max(head[begin:place:_TABLE], default=0) > 15:
                return None  # of 16 bits, or cut
        elif marker == _JFIF:
            if length < 9 or not head.startswith(b"JFIF\0", begin):
                return None
        elif marker not in _SKIPPED:
            return None
    return None


def _parse_frame(segment: bytes) -> PlainJpeg | None:
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5] or segment[0] != 8 or segment[5] not in (1, 3):
        return None
    height, width = segment[1] << 8 | segment[2], segment[3] << 8 | segment[4]
    if not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or 0):
        return None
    return PlainJpeg(height, width, segment[5])
