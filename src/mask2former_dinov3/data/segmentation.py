"""The shape of one instance as COCO stores it: polygon parts, or a run-length code (RLE).

What the runs of an RLE mean and how they are stored: `rle.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import faster_coco_eval.core.mask as mask_api
import numpy as np
import numpy.typing as npt

from .numbers import whole_number
from .rle import compress, run_lengths

Polygon = npt.NDArray[np.float64]
"""One part of an instance: its vertices (P, 2) as (x, y) in pixels; (0, 0) is the corner of the first pixel."""


class Rle(TypedDict):
    """A whole mask, run-length coded: `size` is [height, width], `counts` the compressed runs."""

    size: list[int]
    counts: bytes


Segmentation = list[Polygon] | Rle


class Window(NamedTuple):
    """The part of a mask around an instance: `pixels` (h, w) uint8 0/1, their first row `top`, first column `left`."""

    pixels: npt.NDArray[np.uint8]
    top: int
    left: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Where it is in a mask of the whole picture."""
        rows, columns = self.pixels.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)

    def transposed(self) -> Window:
        return Window(self.pixels.T, self.left, self.top)


def check_runs(runs: npt.NDArray[np.int64], height: int, width: int) -> None:
    """Raise ValueError unless `runs` (R,) are whole, not negative, and fill height x width pixels exactly."""
    if runs.size and runs.min() < 0:
        raise ValueError("RLE counts hold a negative run length")
    total = int(runs.sum())
    if total != height * width:
        raise ValueError(f"RLE counts cover {total} pixels, expected {height} x {width} = {height * width}")


def compress_runs(runs: npt.NDArray[np.int64], height: int, width: int) -> Rle:
    """Runs (R,), already checked, as a compressed RLE."""
    return Rle(size=[height, width], counts=compress(runs, np.array([runs.size]))[0])


def runs_window(runs: npt.NDArray[np.int64], height: int) -> Window | None:
    """The pixels of the smallest rectangle around the foreground of checked `runs` (R,); None when there is none.

    Only the columns that the instance touches are made, so the cost follows the instance, not the image.
    """
    ends = np.cumsum(runs)
    first, last = ends[: ends.size - 1 : 2], ends[1::2]  # of the foreground runs; last is exclusive
    filled = last > first
    if not filled.all():
        first, last = first[filled], last[filled]
    if not first.size:
        return None
    (column, row), length = np.divmod(first, height), last - first
    left, right = int(column[0]), int((last[-1] - 1) // height) + 1
    top, bottom, stride = 0, height, height
    if (row + length <= height).all():  # every run within one column: only the rows in question, and a place behind
        top, bottom = int(row.min()), int((row + length).max())
        stride = bottom - top + 1
    start = (column - left) * stride + row - top
    steps = np.zeros((right - left) * stride + 1, dtype=np.uint8)
    steps[start] = 1
    steps[start + length] += 255  # one less, in bytes; a run may begin where another ends
    flat = np.cumsum(steps[:-1], dtype=np.uint8)
    return Window(flat.reshape(right - left, stride)[:, : bottom - top].T, top, left)


def rle_window(rle: Rle) -> Window | None:
    """The smallest rectangle of pixels around an RLE's foreground; None when it is empty. ValueError if malformed."""
    height, width = rle["size"]
    runs = run_lengths(rle["counts"])
    check_runs(runs, height, width)
    return runs_window(runs, height)


def polygons_to_runs(parts: list[Polygon], height: int, width: int) -> npt.NDArray[np.int64]:
    """Runs (R,) of the union of polygon parts on a height x width mask; see `polygons_to_counts`."""
    return run_lengths(polygons_to_counts(parts, height, width))


def polygons_to_counts(parts: list[Polygon], height: int, width: int) -> bytes:
    """Compressed runs of the union of polygon parts on a height x width mask, by COCO's own rasteriser.

    The vertices must be finite: given a NaN the rasteriser allocates until the process is killed. No part may have
    fewer than 3 points: COCO's API reads 4 numbers as a box.
    """
    codes = mask_api.frPyObjects([part.ravel().tolist() for part in parts], height, width)
    merged = codes[0] if len(codes) == 1 else mask_api.merge(codes)
    return bytes(merged["counts"])


class EmptyMaskError(ValueError):
    """A well-formed segmentation that covers no pixel of its image."""


FARTHEST_VERTEX = 100_000.0
"""Beyond this, in pixels, a vertex is a fault, not a shape: COCO's rasteriser walks along every edge in steps."""


def parse_segmentation(value: object, height: int, width: int) -> Segmentation:
    """The `segmentation` of an annotation in a JSON file, checked: polygons, uncompressed or compressed RLE.

    Raises EmptyMaskError when it is empty, outside the height x width picture, or without area; ValueError, saying what
    was expected, when it is malformed.
    """
    if isinstance(value, dict):
        rle, area = parse_rle(value, height, width)
        if area == 0:
            raise EmptyMaskError("RLE without a foreground pixel")
        return rle
    if value is None or value == []:
        raise EmptyMaskError("no segmentation (a box alone trains no mask)")
    if not isinstance(value, list):
        raise ValueError(f"segmentation: expected a list of polygons or an RLE object, got a {type(value).__name__}")
    if not isinstance(value[0], list):
        raise ValueError("segmentation: expected a list of polygons, got a flat list; wrap the one polygon in a list")
    parts = [_parse_polygon(part) for part in value]
    _check_coverage(parts, height, width)
    return parts


def segmentation_area(segmentation: Segmentation) -> float:
    """Area in square pixels: of an RLE its pixels, of polygons the sum over the parts (as COCO's own `area`)."""
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


def _parse_polygon(value: object) -> Polygon:
    """One polygon part, a flat list of x, y, x, y, …, as vertices (P, 2)."""
    try:
        numbers = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError("polygon: expected a flat list of numbers x, y, x, y, …") from None
    if numbers.ndim != 1:
        raise ValueError("polygon: expected a flat list of numbers x, y, x, y, …, got nested lists")
    if numbers.size % 2:
        raise ValueError(f"polygon: {numbers.size} numbers, expected an even count (x, y, x, y, …)")
    if numbers.size < 6:
        raise ValueError(f"polygon: {numbers.size // 2} point(s), expected at least 3")
    if not (numbers.min() >= -FARTHEST_VERTEX and numbers.max() <= FARTHEST_VERTEX):  # so that NaN is caught as well
        if not np.isfinite(numbers).all():
            raise ValueError("polygon: holds NaN or infinite coordinates")
        raise ValueError(f"polygon: coordinates reach {np.abs(numbers).max():.6g}, far beyond any picture")
    return numbers.reshape(-1, 2)


def _polygon_area(part: Polygon) -> float:
    """Area of one polygon part by the shoelace formula."""
    x, y = part[:, 0], part[:, 1]
    twice = x[-1] * y[0] - x[0] * y[-1] + np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])
    return float(abs(twice)) / 2


def _check_coverage(parts: list[Polygon], height: int, width: int) -> None:
    """Raise EmptyMaskError when polygon parts together cover no pixel of a height x width picture."""
    left, top, box_width, box_height = segmentation_box(parts)
    if left >= width or top >= height or left + box_width <= 0 or top + box_height <= 0:
        raise EmptyMaskError(
            f"polygon outside the picture: x {left:g}..{left + box_width:g}, y {top:g}..{top + box_height:g}, "
            f"picture {width} wide and {height} high"
        )
    area = sum(_polygon_area(part) for part in parts)
    if area == 0:
        raise EmptyMaskError("polygon of zero area")
    inside = left >= 0 and top >= 0 and left + box_width <= width and top + box_height <= height
    # A shape wider than a pixel everywhere holds a pixel; only slivers, specks and shapes cut by the border are drawn.
    doubtful = area < box_width + box_height + 1 or not inside
    if doubtful and polygons_to_runs(parts, height, width)[1::2].sum() == 0:
        raise EmptyMaskError(f"polygon covers no pixel of the picture (area {area:.3g})")


def parse_rle(value: Mapping[str, object], height: int, width: int) -> tuple[Rle, int]:
    """An RLE object, compressed or not, as a checked compressed RLE, and its pixels of foreground.

    Raises ValueError, saying what was expected, unless it is a whole mask of height x width pixels.
    """
    rle = compressed_rle(value, height, width)
    runs = run_lengths(rle["counts"])
    check_runs(runs, height, width)
    return rle, int(runs[1::2].sum())


def compressed_rle(value: Mapping[str, object], height: int, width: int) -> Rle:
    """The same without looking into counts that are compressed already: for many of them, see `whole_mask_areas`."""
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list | tuple) or [whole_number(side) for side in size] != [height, width]:
        swapped = isinstance(size, list | tuple) and [whole_number(side) for side in size] == [width, height]
        hint = "; the two are swapped" if swapped else ""
        raise ValueError(f"RLE: size is {size}, expected [height, width] of the image, [{height}, {width}]{hint}")
    if isinstance(counts, str | bytes):
        # Characters other than ASCII are refused when the runs are read.
        return Rle(size=[height, width], counts=counts if isinstance(counts, bytes) else counts.encode())
    if not isinstance(counts, list | tuple | np.ndarray):
        raise ValueError(f"RLE: expected counts as a string or a list of numbers, got {type(counts).__name__}")
    whole = [whole_number(run) for run in counts]
    if None in whole:
        raise ValueError("RLE counts: expected whole numbers")
    runs = np.array(whole, dtype=np.int64)
    check_runs(runs, height, width)
    return compress_runs(runs, height, width)
