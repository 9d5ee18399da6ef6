"""Parse and rasterise the shape of one instance as COCO stores it: polygon parts, or a run-length code (RLE).

What the runs of an RLE mean and how they are stored: `rle.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import faster_coco_eval.core.mask as mask_api
import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, mismatch
from ..json_files import describe
from .array_types import Floats, Ints
from .faults import FaultReport, Place, count_of, quote
from .numbers import number, whole_number
from .rle import Window, check_runs, compress, run_lengths, runs_window

Polygon = npt.NDArray[np.float64]
"""One part of an instance: its vertices (P, 2) as (x, y) in pixels; (0, 0) is the corner of the first pixel."""


class CompressedRle(TypedDict):
    """A whole mask, run-length coded: `size` is [height, width], `counts` the compressed runs."""

    size: list[int]
    counts: bytes


Segmentation = list[Polygon] | CompressedRle


def compress_runs(runs: npt.NDArray[np.int64], height: int, width: int) -> CompressedRle:
    """Compress runs (R,) that are already checked."""
    return CompressedRle(size=[height, width], counts=compress(runs, np.array([runs.size]))[0])


def rle_window(rle: CompressedRle) -> Window | None:
    """The smallest rectangle of pixels around an RLE's foreground; None if it is empty.

    Raises DatasetError for malformed counts.
    """
    height, width = rle["size"]
    runs = run_lengths(rle["counts"])
    check_runs(runs, height, width)
    return runs_window(runs, height)


def polygons_to_runs(parts: list[Polygon], height: int, width: int) -> npt.NDArray[np.int64]:
    """Runs (R,) of the union of polygon parts on a height x width mask; see `polygons_to_counts`."""
    return run_lengths(polygons_to_counts(parts, height, width))


def polygons_to_counts(parts: list[Polygon], height: int, width: int) -> bytes:
    """Compressed runs of the union of polygon parts on a height x width mask, by COCO's own rasteriser.

    The vertices must be finite: with a NaN the rasteriser allocates memory until the process is killed. No part may
    have fewer than 3 points: COCO's API reads 4 numbers as a box.
    """
    codes = mask_api.frPyObjects([part.ravel().tolist() for part in parts], height, width)
    merged = codes[0] if len(codes) == 1 else mask_api.merge(codes)
    return bytes(merged["counts"])


class EmptyMaskError(DatasetError):
    """A well-formed segmentation that covers no pixel of its image. parts: its polygons, if it has any."""

    def __init__(self, message: str, parts: list[Polygon] | None = None) -> None:
        super().__init__(message)
        self.parts = parts or []


class NoMaskError(EmptyMaskError):
    """An annotation has no segmentation."""


MALFORMED_MASK = "malformed mask"  # the kind of such a fault
_SHAPE = "a list of polygons or an RLE object"
FARTHEST_VERTEX = 100_000.0
"""Largest coordinate of a vertex in pixels: COCO's rasteriser walks along every edge in steps."""
SHORT_WAY = 1_000_000  # pixels along the outline of an instance that are accepted in an image of any size
LONGEST_WAY = 4_000_000  # and in the largest


def parse_shape(value: object, height: int, width: int) -> Segmentation:
    """Parse the `segmentation` of an annotation or result: polygons, uncompressed or compressed RLE.

    Empty parts, and parts of one or two points beside a polygon, are passed over: see `count_stray_parts`.
    What it covers is not checked, nor are compressed counts decoded: for many masks, see `rle.whole_mask_areas`.
    Raises NoMaskError if there is none, EmptyMaskError for single points, DatasetError if it is malformed.
    """
    if isinstance(value, Mapping) and value:
        return _parse_rle(value, height, width)
    if _is_empty(value):
        got = "an empty list" if isinstance(value, list) and not value else quote(value)
        raise NoMaskError(f"segmentation: {mismatch(_SHAPE, got)}")
    if not isinstance(value, list | tuple):
        raise DatasetError(f"segmentation: {mismatch(_SHAPE, describe(value))}")
    if number(value[0]) is not None:
        raise DatasetError(
            f"segmentation: {mismatch('a list of polygons', 'a list of numbers', 'put the polygon into a list')}"
        )
    if any(isinstance(part, Mapping) for part in value):
        raise DatasetError(f"segmentation: {mismatch(_SHAPE, 'an RLE inside a list', 'take it out of the list')}")
    parts = [_parse_polygon(part) for part in value if not _is_stray(part)]
    _check_way(parts, height, width)
    return parts or _refuse_strays(value)


def count_stray_parts(value: object, shape: Segmentation) -> int:
    """How many parts of a `segmentation` were passed over when it was parsed to `shape`: of fewer than 3 points."""
    return len(value) - len(shape) if isinstance(value, list | tuple) and isinstance(shape, list) else 0


class StrayParts:
    """Counts the parts of polygons that are passed over while a file is read."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._number = 0

    def count(self, shape: Segmentation, value: object, place: Place) -> None:
        """Count those of one annotation, (image id, annotation id); shape: `value` as it was parsed."""
        if number := count_stray_parts(value, shape):
            self._number += number
            self._places.append(place)

    def report(self, faults: FaultReport) -> None:
        """Add one line for all of them."""
        parts, polygons = count_of(self._number, "part"), count_of(len(self._places), "annotation")
        reason = f"{parts} of fewer than 3 points left out of the polygons of {polygons}"
        faults.add_group("note", "stray parts", self._places, reason)


def _is_empty(value: object) -> bool:
    """Whether a segmentation or a part holds nothing: null, "", [], {}, or a list of such."""
    if isinstance(value, list | tuple):
        return all(part is None or (isinstance(part, list | tuple | str | Mapping) and not part) for part in value)
    return value is None or (isinstance(value, str | Mapping) and not value)


def _is_stray(part: object) -> bool:
    """Whether a part has fewer than 3 points, as an accidental click leaves them."""
    if isinstance(part, list | tuple | np.ndarray) and len(part) in (0, 2, 4):
        return all(number(side) is not None for side in part)
    return part is None or (isinstance(part, str) and not part)


def _refuse_strays(parts: Sequence[object]) -> list[Polygon]:
    """Raise the error for a segmentation all of whose parts have fewer than 3 points: no mask, or another format."""
    filled = [part for part in parts if isinstance(part, Sequence | np.ndarray) and len(part)]
    if len(filled) > 1 and all(len(part) == 2 for part in filled):
        advice = "write x, y, x, y, … in one list inside the list"
        raise DatasetError(f"segmentation: {mismatch(_SHAPE, 'a list of points [x, y]', advice)}")
    if any(len(part) == 4 for part in filled):
        advice = "COCO's API reads 4 numbers as a box; write the four corners of a box"
        raise DatasetError(f"polygon: {mismatch('at least 3 points', 2, advice)}")
    raise EmptyMaskError("polygon of fewer than 3 points")


def parse_segmentation(value: object, height: int, width: int) -> Segmentation:
    """As `parse_shape`, and checked: counts are well-formed, and the mask covers a pixel of the height x width image.

    Raises EmptyMaskError if there is no mask, or if it is outside the image or without area; DatasetError if it is
    malformed.
    """
    shape = parse_shape(value, height, width)
    if isinstance(shape, list):
        _check_coverage(shape, height, width)
    elif check_rle(shape) == 0:
        raise EmptyMaskError("RLE without a foreground pixel")
    return shape


def check_rle(rle: CompressedRle) -> int:
    """The number of foreground pixels. Raises DatasetError unless the counts are well-formed and fill the size."""
    runs = run_lengths(rle["counts"])
    check_runs(runs, *rle["size"])
    return int(runs[1::2].sum())


def segmentation_area(segmentation: Segmentation) -> float:
    """Area in square pixels: of an RLE its pixels, of polygons the sum over the parts (as COCO's own `area`).

    It is too small, down to 0, for an outline that crosses itself.
    """
    if isinstance(segmentation, list):
        return sum(_polygon_area(part) for part in segmentation)
    return float(run_lengths(segmentation["counts"])[1::2].sum())


def segmentation_box(segmentation: Segmentation) -> tuple[float, float, float, float]:
    """(left, top, width, height) in pixels, as COCO's `bbox`."""
    if isinstance(segmentation, list):
        points = segmentation[0] if len(segmentation) == 1 else np.concatenate(segmentation)
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        return left, top, right - left, bottom - top
    window = rle_window(segmentation)
    if window is None:
        return 0.0, 0.0, 0.0, 0.0
    return float(window.left), float(window.top), float(window.pixels.shape[1]), float(window.pixels.shape[0])


def boxes_and_areas(points: Floats, lengths: Ints, number: Ints) -> tuple[Floats, Floats]:
    """Boxes (n, 4) and areas (n,) of n polygons at once, as left, top, right, bottom; see `segmentation_area`.

    points: (V, 2) of all parts. lengths: (P,) vertices of each part. number: (n,) parts of each polygon.
    """
    x, y = np.ascontiguousarray(points[:, 0]), np.ascontiguousarray(points[:, 1])
    first = np.cumsum(lengths) - lengths  # (P,)

    def following(values: Floats) -> Floats:
        found = np.roll(values, -1)
        found[first + lengths - 1] = values[first]
        return found

    doubled = np.abs(np.add.reduceat(x * following(y) - following(x) * y, first))
    first_part = np.cumsum(number) - number
    starts = first[first_part]
    edges = [reduce.reduceat(side, starts) for reduce in (np.minimum, np.maximum) for side in (x, y)]
    return np.stack(edges, axis=1), np.add.reduceat(doubled, first_part) / 2


def _parse_polygon(value: object) -> Polygon:
    """One polygon part, a flat list of x, y, x, y, …, as vertices (P, 2)."""
    if not isinstance(value, list | tuple | np.ndarray):
        raise DatasetError(f"polygon: {mismatch(_FLAT_LIST, describe(value))}")
    plain = set(map(type, value)) <= {int, float}  # the usual case, fast
    sides = value if plain else [number(side) for side in value]
    if not plain and None in sides:
        if any(isinstance(side, list | tuple) for side in value):
            advice = "write x, y, x, y, … without inner lists"
            raise DatasetError(f"polygon: {mismatch(_FLAT_LIST, 'a list of points [x, y]', advice)}")
        wrong = next(side for side in value if number(side) is None)
        raise DatasetError(f"polygon: {mismatch(_FLAT_LIST, quote(wrong))}")
    try:
        numbers = np.array(sides, dtype=np.float64)
    except OverflowError:
        raise DatasetError(f"polygon: {mismatch(_COORDINATES, 'an integer beyond any float')}") from None
    if numbers.size % 2:
        raise DatasetError(f"polygon: {mismatch('an even count of numbers (x, y, x, y, …)', numbers.size)}")
    if numbers.size < 6:
        raise DatasetError(f"polygon: {mismatch('at least 3 points', numbers.size // 2)}")
    if not (numbers.min() >= -FARTHEST_VERTEX and numbers.max() <= FARTHEST_VERTEX):  # so that NaN is caught as well
        got = f"{np.abs(numbers).max():.6g}" if np.isfinite(numbers).all() else "NaN or infinity"
        raise DatasetError(f"polygon: {mismatch(_COORDINATES, got)}")
    return numbers.reshape(-1, 2)


_FLAT_LIST = "a flat list of numbers x, y, x, y, …"
_COORDINATES = f"coordinates within {FARTHEST_VERTEX:.0f} pixels"


def longest_way(height: int, width: int) -> int:
    """How long the outline of an instance may be, in pixels: four times around each pixel, in SHORT_WAY..LONGEST_WAY.

    COCO's rasteriser takes 60 bytes for each pixel of the way, inside the image or not.
    """
    return min(max(SHORT_WAY, 4 * height * width), LONGEST_WAY)


def _check_way(parts: list[Polygon], height: int, width: int) -> None:
    """Raise DatasetError for polygons whose outlines are longer than any object's; a small file may hold them."""
    way = sum(float(np.abs(part - np.roll(part, 1, axis=0)).max(1).sum()) for part in parts)
    if way > (limit := longest_way(height, width)):
        advice = "it may jump between far points; draw it again, or clip it to the image"
        expected = f"an outline of at most {limit:,} pixels in an image of {height} x {width}"
        raise DatasetError(f"polygon: {mismatch(expected, f'{way:,.0f}', advice)}")


def _polygon_area(part: Polygon) -> float:
    """Area of one polygon part by the shoelace formula."""
    x, y = part[:, 0], part[:, 1]
    twice = x[-1] * y[0] - x[0] * y[-1] + np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])
    return float(abs(twice)) / 2


def _check_coverage(parts: list[Polygon], height: int, width: int) -> None:
    """Raise EmptyMaskError if polygon parts together cover no pixel of a height x width image."""
    left, top, box_width, box_height = segmentation_box(parts)
    if left >= width or top >= height or left + box_width <= 0 or top + box_height <= 0:
        raise EmptyMaskError(
            f"polygon outside the image: x {left:g} to {left + box_width:g}, y {top:g} to {top + box_height:g}; "
            f"the image is {width} wide and {height} high",
            parts,
        )
    area = sum(_polygon_area(part) for part in parts)  # too small where an outline crosses itself
    inside = left >= 0 and top >= 0 and left + box_width <= width and top + box_height <= height
    # A shape wider than a pixel everywhere holds a pixel; only thin, tiny and clipped shapes have to be rasterised.
    doubtful = area < box_width + box_height + 1 or not inside
    if doubtful and polygons_to_runs(parts, height, width)[1::2].sum() == 0:
        if area == 0:
            raise EmptyMaskError("polygon of zero area", parts)
        raise EmptyMaskError(f"polygon covers no pixel of the image (area {area:.3g})", parts)


def _parse_rle(value: Mapping[str, object], height: int, width: int) -> CompressedRle:
    """An RLE object as a compressed RLE of height x width pixels; counts that are compressed already are kept."""
    size, counts = value.get("size"), value.get("counts")
    sides = [whole_number(side) for side in size] if isinstance(size, list | tuple) else None
    if sides != [height, width]:
        expected = f"[height, width] of the image, [{height}, {width}]"
        raise DatasetError(f"RLE size: {mismatch(expected, quote(size), 'swap them' * (sides == [width, height]))}")
    if isinstance(counts, str | bytes):
        # Characters other than ASCII are refused when the runs are read.
        encoded = counts if isinstance(counts, bytes) else counts.encode()
        return CompressedRle(size=[height, width], counts=encoded)
    if not isinstance(counts, list | tuple | np.ndarray):
        raise DatasetError(f"RLE counts: {mismatch('a string or a list of whole numbers', describe(counts))}")
    whole = [whole_number(run) for run in counts]
    if None in whole:
        wrong = next(run for run, parsed in zip(counts, whole, strict=True) if parsed is None)
        raise DatasetError(f"RLE counts: {mismatch('whole numbers', quote(wrong))}")
    try:
        runs = np.array(whole, dtype=np.int64)
    except OverflowError:
        expected = f"runs that cover {height} x {width} = {height * width} pixels"
        raise DatasetError(f"RLE counts: {mismatch(expected, 'a longer run')}") from None
    check_runs(runs, height, width)
    return compress_runs(runs, height, width)
