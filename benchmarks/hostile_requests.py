"""Requests that were made to cost a server much, or to break it, and what it must answer to each.

Images first (`hostile_images`), then what is wrong around an image: names, heads, encodings (`HEADS`, `bad_requests`).
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mask2former_dinov3.canvas import LARGEST_IMAGE_SIDE
from mask2former_dinov3.data.jpeg_data import MOST_SCANS


@dataclass(frozen=True)
class Hostile:
    """A body for POST /predict. statuses: the right answers, apart from 503 and 504 of a busy server."""

    name: str
    data: bytes
    statuses: tuple[int, ...]
    query: str = ""


def hostile_images() -> list[Hostile]:
    """Images of a few bytes to a megabyte, each of its own kind of cost or fault."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    board = (np.indices((1000, 1000)).sum(0) % 2 * 255).astype(np.uint8)
    long = LARGEST_IMAGE_SIDE - 100_000
    jpeg = _encode(noise, "JPEG")
    return [
        Hostile("one row, too long", _grey(1, LARGEST_IMAGE_SIDE + 200_000), (413,)),
        Hostile("one column, too long", _grey(LARGEST_IMAGE_SIDE + 1, 1), (413,)),
        Hostile("one row", _grey(1, long), (200, 413)),  # 413: too many tiles, where the model cuts images
        Hostile("one column", _grey(long, 1), (200, 413)),
        Hostile("one row in tiles", _grey(1, 20_000), (200,), "?tile=256"),
        Hostile("one row, too many tiles", _grey(1, long), (413,), "?tile=256"),
        Hostile("20,000 scans", many_scans(20_000), (422,)),
        Hostile("most scans", many_scans(MOST_SCANS - 20), (200, 422)),  # libjpeg warns of the repeated scan
        Hostile("JPEG, cut and closed", jpeg[: len(jpeg) // 2] + b"\xff\xd9", (422,)),
        Hostile("PNG of ten rows of 64", _short_png(64, 10), (422,)),
        Hostile("PNG with 100 MB of rows too many", _short_png(64, 100_000_000 // 65), (200, 422)),
        Hostile("PNG with 100 MB of text", _text_png(100_000_000), (200, 422)),
        Hostile("board of single pixels", _encode(board, "PNG"), (200,)),
        Hostile("board of single pixels in tiles", _encode(board, "PNG"), (200,), "?tile=256&overlay=true"),
        Hostile("GIF of 500 frames", _gif(500), (200,)),
        Hostile("TIFF whose directory follows itself", _tiff(strips=1, loop=True), (200, 422)),
        Hostile("TIFF of 2^30 strips", _tiff(strips=2**30), (200, 422)),
        Hostile("BMP of 2^31 - 1 rows", _bmp(2**31 - 1, 2**31 - 1), (413, 422)),
        Hostile("PPM of 5,000 digits", b"P6 " + b"9" * 5000 + b" 1 255\n" + bytes(99), (413, 422)),
        Hostile("WebP, cut", _encode(noise, "WEBP")[:-500], (422,)),
    ]


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is there `scans` times: each is valid, and refines nothing."""
    data = _encode(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def bad_requests(image: bytes) -> list[tuple[str, dict[str, str], bytes, str, tuple[int, ...]]]:
    """(name, headers, body, query, right answers) of requests in which something around a good image is wrong."""
    kind = {"Content-Type": "image/png"}
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    field = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n'
    return [
        ("foreign Host", {**kind, "Host": "models.example.org"}, image, "", (403,)),
        ("foreign Origin", {**kind, "Origin": "http://example.org"}, image, "", (403,)),
        ("Origin null", {**kind, "Origin": "null"}, image, "", (403,)),
        ("compressed body", {**kind, "Content-Encoding": "gzip"}, gzip.compress(image), "", (415,)),
        ("5,000 fields", form, field * 5000 + b"--b--\r\n", "", (400, 422)),
        ("form without end", form, field * 10, "", (400, 422)),
        ("query of 40 kB", kind, image, "?classes=" + "x" * 40_000, (422,)),
        ("head of 200 kB", {**kind, "X-Long": "x" * 200_000}, image, "", (400, 431)),
    ]


def _encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def _grey(height: int, width: int) -> bytes:
    return _encode(np.zeros((height, width), np.uint8), "PNG")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _packed(size: int) -> bytes:
    """`size` zeros, compressed without ever being in memory as a whole."""
    packer, block = zlib.compressobj(9), bytes(2**20)
    parts = [packer.compress(block[: min(2**20, size - at)]) for at in range(0, size, 2**20)]
    return b"".join(parts) + packer.flush()


def _short_png(side: int, rows: int) -> bytes:
    """A square grey PNG whose data hold `rows` rows, be they fewer or more than its header says."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", _packed(rows * (side + 1))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _text_png(size: int) -> bytes:
    plain = _grey(64, 64)
    end = plain.index(b"IDAT") - 4
    return plain[:end] + _chunk(b"zTXt", b"Comment\0\0" + _packed(size)) + plain[end:]


def _gif(frames: int) -> bytes:
    pictures = [Image.fromarray(np.full((64, 64), number % 256, np.uint8)) for number in range(frames)]
    data = io.BytesIO()
    pictures[0].save(data, "GIF", save_all=True, append_images=pictures[1:])
    return data.getvalue()


def _tiff(strips: int, *, loop: bool = False) -> bytes:
    """A grey TIFF of 16 x 16 pixels that claims `strips` strips. loop: its next directory is itself."""
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    start = 8 + 2 + 12 * 8 + 4
    entries += [(273, 4, strips, start), (278, 4, 1, 16), (279, 4, strips, 256 if strips == 1 else start)]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, 8) + body + struct.pack("<I", 8 if loop else 0) + bytes(256)


def _bmp(height: int, width: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(64)
