"""Decode JPEG data strictly: a warning of libjpeg is an error, since what it decodes after one is not the picture.

libjpeg repairs damaged data by guessing and only warns; Pillow does not show its warnings, simplejpeg does. Huffman
codes fall into step again by themselves, so data that were overwritten may give a wrong picture without a warning.
Of these, long runs of zero bytes are found as well (lost sectors of a disk, an interrupted download); data that were
overwritten by other bytes are not, unless libjpeg notices.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, mismatch

MAGIC_BYTES = b"\xff\xd8\xff"
MOST_SCANS = 100  # of one picture
ZERO_RUN = 32  # bytes of 0 within compressed data; the codes that they would be are those of no picture, see below

_HARMLESS = ("Invalid SOS parameters for sequential JPEG",)  # cameras write these fields, which sequential data ignore
_SOF0, _SOF2, _DHT, _SOS, _EOI = 0xC0, 0xC2, 0xC4, 0xDA, 0xD9
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


def decode_strictly(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Grey or colour JPEG data as RGB, (H, W, 3) uint8; None without simplejpeg, which code in a model folder may lack.

    Raises DatasetError for data that libjpeg warns about, and for data with lost bytes.
    """
    check_scans(data)
    return _run(data, {"colorspace": "RGB"})


def check_jpeg(data: bytes) -> None:
    """Raise DatasetError as `decode_strictly` does; decodes at an eighth of the size, for any kind of colours."""
    check_scans(data)
    library = _simplejpeg()
    if library is None:
        return
    try:
        colours = library.decode_jpeg_header(data)[2]
    except ValueError as error:
        raise _damaged(str(error)) from error
    space = {"CMYK": "CMYK", "YCCK": "CMYK", "Gray": "GRAY"}.get(colours, "RGB")
    _run(data, {"colorspace": space, "min_height": 1, "min_width": 1, "min_factor": 1, "fastdct": True})


def check_scans(data: bytes) -> None:
    """Raise DatasetError for more scans than any program writes, or for fewer than the last ones need.

    No pixel is decoded. Each scan of a progressive JPEG goes over the whole picture, so a small file of many scans
    would keep a decoder busy for hours; libtiff and GDAL have the same limit. A file that was cut after a scan and
    closed gives a coarse picture without a warning: its scans begin values that no other refines.
    """
    # The first also counts those in a thumbnail, or in a film behind the picture.
    if data.count(bytes((0xFF, _SOS))) <= MOST_SCANS and bytes((0xFF, _SOF2)) not in data:
        return
    count, progressive = 0, False
    open_bits: dict[tuple[int, int], int] = {}  # (component, coefficient) -> bits that are still to come
    for marker, segment, _ in _segments(data):
        progressive |= marker == _SOF2
        if marker == _SOS:
            count += 1
            if progressive and segment and len(segment) >= 4 + 2 * segment[0]:
                first, last, low = segment[-3], segment[-2], segment[-1] & 0x0F
                components = segment[1 : 1 + 2 * segment[0] : 2]
                open_bits.update({(one, place): low for one in components for place in range(first, min(last, 63) + 1)})
    if count > MOST_SCANS:
        expected = f"a JPEG of at most {MOST_SCANS} scans"
        raise DatasetError(mismatch(expected, f"{count:,}, each as much work as a picture", "save it again"))
    if any(open_bits.values()):
        raise _damaged("its last scans are missing")


def find_lost_bytes(data: bytes) -> int | None:
    """The position of zero bytes that were written over compressed data; None if there are none.

    A run of 32 zero bytes is 256 bits of the shortest codes. Where zeros stand for "end of block" a flat picture has
    them. Where they stand for coefficients, whole blocks would have all 63 equal to -1, which no picture has.
    """
    if bytes(ZERO_RUN) not in data:
        return None
    zero_symbols: dict[int, int] = {}  # table (class and number) -> the symbol that only zeros stand for
    progressive = False
    for marker, segment, place in _segments(data):
        progressive |= marker == _SOF2
        if marker == _DHT:
            zero_symbols.update(_zero_symbols(segment))
        if marker == _SOS:
            lost = data.find(bytes(ZERO_RUN), place, _end_of_scan(data, place))
            if lost >= 0 and _cannot_be_zeros(segment, zero_symbols, progressive):
                return lost
    return None


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """The marker segments of the first picture: marker, content, and where the compressed data of a scan begin."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _EOI:
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _ALONE:
            place += 2
        else:
            segment = data[place + 4 : place + 2 + int.from_bytes(data[place + 2 : place + 4])]
            place += 4 + len(segment)
            yield marker, segment, place
            if marker == _SOS:
                place = _end_of_scan(data, place)


def _run(data: bytes, options: dict[str, Any]) -> npt.NDArray[np.uint8] | None:
    library = _simplejpeg()
    if library is None:
        return None
    if (lost := find_lost_bytes(data)) is not None:
        raise _damaged(f"zero bytes were written over its data, from byte {lost:,} on")
    try:
        decoded = library.decode_jpeg(data, **options)
    except ValueError as error:
        if not str(error).startswith(_HARMLESS):
            raise _damaged(str(error)) from error
        decoded = library.decode_jpeg(data, strict=False, **options)
    return np.asarray(decoded)


def _damaged(reason: str) -> DatasetError:
    advice = "copy it again from its source, or leave it out"
    return DatasetError(mismatch("a readable image file", f"one that is damaged or cut short ({reason})", advice))


def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _zero_symbols(segment: bytes) -> dict[int, int]:
    """The first symbol of each Huffman table of a segment: its code has only zeros."""
    found, place = {}, 0
    while place + 17 <= len(segment):
        count = sum(segment[place + 1 : place + 17])
        if count and place + 17 < len(segment):
            found[segment[place]] = segment[place + 17]
        place += 17 + count
    return found


def _end_of_scan(data: bytes, place: int) -> int:
    """Where the next marker is that ends compressed data: not a stuffed 0, not a restart, not a fill byte."""
    while (place := data.find(b"\xff", place)) >= 0 and place + 1 < len(data):
        if data[place + 1] != 0 and not 0xD0 <= data[place + 1] <= 0xD7 and data[place + 1] != 0xFF:
            return place
        place += 2 if data[place + 1] != 0xFF else 1
    return len(data)


def _cannot_be_zeros(scan: bytes, zero_symbols: dict[int, int], progressive: bool) -> bool:
    """Whether a long run of zeros cannot be data of this scan: zeros stand for coefficients of some component."""
    count = scan[0] if scan else 0
    if len(scan) < 4 + 2 * count:
        return False
    start, high = scan[1 + 2 * count], scan[3 + 2 * count] >> 4
    if progressive and (start == 0 or high):
        return False  # of constant parts, or of corrections: zeros mean no change
    tables = {0x10 | (scan[2 + 2 * number] & 0x0F) for number in range(count)}
    return any(zero_symbols.get(table, 0) & 0x0F for table in tables)
