"""Turn label maps, bitmaps and drawn shapes into COCO's segmentations, exactly.

Each pixel of a label map is visited once, however many objects it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from ..rle import Window, compress
from ..segmentation import Polygon, polygons_to_runs


class MaskCode(TypedDict):
    """A compressed run-length code as JSON holds it: `size` is [height, width], `counts` a string."""

    size: list[int]
    counts: str


def codes_of_labels(labels: npt.NDArray[np.integer]) -> Iterator[tuple[int, MaskCode]]:
    """(value, mask) of every value but 0 in a label map (H, W), by ascending value."""
    height, width = labels.shape
    flat = labels.ravel(order="F")
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))  # (S,) of stretches of one value
    lengths = np.diff(starts, append=flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    order = order[values[order] != 0]
    if not order.size:
        return
    found, first = np.unique(values[order], return_index=True)
    for value, own in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        begin, length = starts[own], lengths[own]
        gaps = begin - np.concatenate(([0], begin[:-1] + length[:-1]))
        runs = np.empty(2 * len(own) + 1, dtype=np.int64)
        runs[:-1:2], runs[1::2], runs[-1] = gaps, length, flat.size - begin[-1] - length[-1]
        if runs[-1] == 0:
            runs = runs[:-1]
        counts = compress(runs, np.array([runs.size]))[0].decode("ascii")
        yield int(value), MaskCode(size=[height, width], counts=counts)


def code_of_mask(mask: npt.NDArray[np.generic]) -> MaskCode | None:
    """The run-length code of the pixels of a bitmap (H, W) that are not 0; None where there are none."""
    return next((code for _, code in codes_of_labels((mask != 0).astype(np.uint8))), None)


def place_mask(mask: npt.NDArray[np.bool_], left: int, top: int, height: int, width: int) -> npt.NDArray[np.bool_]:
    """A mask of an image (height, width) from the part of it whose first pixel is (left, top); the rest is cut off."""
    whole = np.zeros((height, width), dtype=bool)
    rows, columns = mask.shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + rows, height), min(left + columns, width)
    if y0 < y1 and x0 < x1:
        whole[y0:y1, x0:x1] = mask[y0 - top : y1 - top, x0 - left : x1 - left]
    return whole


class DrawnShape(NamedTuple):
    """One shape: a polygon (P, 2) in pixels, or the part of a mask whose first pixel is (left, top) of the image."""

    polygon: Polygon | None
    mask: npt.NDArray[np.bool_] | None = None
    left: int = 0
    top: int = 0


def join_shapes(shapes: Sequence[DrawnShape], height: int, width: int) -> list[list[float]] | MaskCode | None:
    """The union of shapes as COCO writes it: polygons as long as there are no masks; None where it has no pixel."""
    polygons = [shape.polygon for shape in shapes if shape.polygon is not None]
    if len(polygons) == len(shapes):
        return [polygon.ravel().tolist() for polygon in polygons]
    whole = np.zeros((height, width), dtype=bool)
    for shape in shapes:
        if shape.mask is not None:
            whole |= place_mask(shape.mask, shape.left, shape.top, height, width)
    if polygons:
        whole |= mask_of_runs(polygons_to_runs(polygons, height, width), height, width)
    return code_of_mask(whole)


def mask_of_runs(runs: npt.NDArray[np.int64], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The mask (height, width) of checked runs (R,) down its columns."""
    return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height).T


def runs_of_window(window: Window, height: int, width: int) -> npt.NDArray[np.int64]:
    """The runs (R,) down the columns of an image of height x width, of a part of it, background first."""
    rows, columns = window.pixels.shape
    padded = np.zeros((columns, rows + 2), dtype=np.int8)  # no run goes on in the next column
    padded[:, 1:-1] = window.pixels.T != 0
    column, row = np.nonzero(np.diff(padded, axis=1))
    places = (window.left + column) * height + window.top + row  # where runs begin and end, in turns
    inner = np.flatnonzero(places[1:-1:2] == places[2::2])  # a run to the last row goes on in the first
    places = np.delete(places, np.concatenate((2 * inner + 1, 2 * inner + 2)))
    runs = np.diff(places, prepend=0, append=height * width)
    return runs[:-1] if runs[-1] == 0 else runs


def code_of_window(window: Window, height: int, width: int) -> MaskCode:
    """The run-length code, in an image of height x width, of a part of it; its cost does not depend on the image."""
    runs = runs_of_window(window, height, width)
    counts = compress(runs, np.array([runs.size]))[0].decode("ascii")
    return MaskCode(size=[height, width], counts=counts)
