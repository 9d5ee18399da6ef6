"""Turn a mask into one polygon through the centres of its outermost pixels, and such a polygon into the mask again.

So OpenCV stores and fills outlines, and with it the programs that read YOLO's labels: `fillPoly` fills the inside of
the polygon and the pixels under its line. A polygon along the edges of the pixels would come out one pixel larger to
the right and below. Vertices here are whole pixels (x, y).

The polygon visits the holes of a part by a line along a row of the part's own pixels, and back: filled by OpenCV it is
the part with its holes, pixel for pixel. Further parts are visited by a line from the first vertex, and back; programs
that do not know the form below fill that line too, one pixel wide.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..rle import Window, run_lengths, runs_window
from ..segmentation import Segmentation, polygons_to_runs

Vertices: TypeAlias = npt.NDArray[np.int64]
"""(P, 2) whole pixels x, y."""

_INSIDE = 0.49  # of a pixel: its centre for readers that cut off the fraction, and its number for those that round


class Outline(NamedTuple):
    """A polygon (P, 2) of pixels, P at least 3; parts: of the mask, of pixels that touch; holes: of all its parts.

    Between two parts stands the first vertex twice in a row, which no outline of a part has: `fill_outline` ends a part
    there.
    """

    vertices: Vertices
    parts: int
    holes: int


def outline_of(segmentation: Segmentation, height: int, width: int) -> Outline:
    """The polygon of a checked segmentation that covers a pixel of its image."""
    runs = (
        polygons_to_runs(segmentation, height, width)
        if isinstance(segmentation, list)
        else run_lengths(segmentation["counts"])
    )
    window = runs_window(runs, height)
    assert window is not None
    return outline_window(window)


def outline_window(window: Window) -> Outline:
    """The polygon of the part of a mask around an object, which has a pixel."""
    pixels = np.ascontiguousarray(window.pixels)
    contours, tree = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    offset = np.array((window.left, window.top))
    outer = [at for at, (_, _, _, parent) in enumerate(tree[0]) if parent < 0]
    parts: list[Vertices] = []
    for at in outer:
        holes = [contours[own][:, 0].astype(np.int64) for own in _children(tree[0], at)]
        parts.append(_visit_holes(contours[at][:, 0].astype(np.int64), holes, pixels) + offset)
    largest = max(range(len(parts)), key=lambda at: len(parts[at]))
    first = parts.pop(largest)
    if parts:
        others = np.stack([part.mean(axis=0) for part in parts])
        distances = np.abs(first[:, None] - others).sum(axis=(1, 2))
        first = np.roll(first, -int(distances.argmin()), axis=0)
    start = first[:1]
    around = _simplify(np.concatenate((first, start)))
    pieces = [around[:-1] if len(around) > 1 else around]
    for part in parts:
        nearest = int(np.abs(part - start).sum(axis=1).argmin())
        turned = np.roll(part, -nearest, axis=0)
        pieces += [start, start, _simplify(np.concatenate((turned, turned[:1] if len(turned) > 1 else turned[:0])))]
    vertices = np.concatenate(pieces)
    if len(vertices) < 3:  # four numbers would be a box
        vertices = np.resize(vertices, (3, 2))
    return Outline(vertices, len(outer), len(contours) - len(outer))


def _children(tree: npt.NDArray[np.int32], parent: int) -> list[int]:
    """The contours of the holes of a part; tree (C, 4): next, previous, first child, parent, -1 for none."""
    found: list[int] = []
    child = int(tree[parent, 2])
    while child >= 0:
        found.append(child)
        child = int(tree[child, 0])
    return found


def _visit_holes(outer: Vertices, holes: list[Vertices], pixels: npt.NDArray[np.uint8]) -> Vertices:
    """The contour of a part with those of its holes inserted, each by a line along a row of the part's own pixels.

    The line goes left from the leftmost pixel of a hole's contour to where the part ends: that pixel is on the outer
    contour, or on that of a hole further left, which is inserted before.
    """
    walk: list[tuple[int, int]] = [(x, y) for x, y in outer.tolist()]
    for hole in sorted(holes, key=lambda one: int(one[:, 0].min())):
        turned = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        x, y = turned[0].tolist()
        before = np.flatnonzero(pixels[y, :x] == 0)
        at = walk.index((int(before[-1]) + 1 if before.size else 0, y))
        walk[at + 1 : at + 1] = [*((a, b) for a, b in turned.tolist()), (x, y), walk[at]]
    return np.array(walk, dtype=np.int64)


def _simplify(walk: Vertices) -> Vertices:
    """The walk (P, 2) without the pixels at which it goes straight on; its two ends stay."""
    steps = np.diff(walk, axis=0)
    moved = np.concatenate(([True], (steps != 0).any(axis=1)))  # a hole beside the outside is reached by no line
    walk = walk[moved]
    directions = np.sign(np.diff(walk, axis=0))  # of lines along rows, columns and diagonals
    turns = (directions[1:] != directions[:-1]).any(axis=1)
    return walk[np.concatenate(([True], turns, [True]))[: len(walk)]]


def fill_outline(vertices: Vertices) -> Window:
    """The pixels of an `Outline`, or of any polygon of whole pixels as OpenCV fills it."""
    again = (vertices == vertices[0]).all(axis=1)
    marks = (np.flatnonzero(again[1:-1] & again[2:]) + 1).tolist()
    low = vertices.min(axis=0)
    columns, rows = (vertices.max(axis=0) - low + 1).tolist()
    pixels = np.zeros((rows, columns), dtype=np.uint8)
    start = 0
    for mark in [*marks, len(vertices)]:
        if mark > start:  # a mark may be the beginning of another, in a part of one pixel
            part = (vertices[start:mark] - low).astype(np.int32)
            cv2.fillPoly(pixels, [part], [1])
        start = max(start, mark + 2)
    return Window(pixels, int(low[1]), int(low[0]))


def outline_fractions(vertices: Vertices, height: int, width: int) -> list[float]:
    """YOLO's numbers x, y, x, y, … of an outline: points in its pixels, as fractions of the image's width and height.

    Multiplied by the size, both rounded and cut to whole numbers they are the pixels again.
    """
    numbers: list[float] = ((vertices + _INSIDE) / (width, height)).ravel().tolist()
    return numbers


def outline_pixels(fractions: npt.NDArray[np.float64], height: int, width: int) -> Vertices:
    """The inverse of `outline_fractions`, for fractions (2 P,) of any program: the pixels that the points lie in."""
    size = np.array((width, height))
    vertices: Vertices = np.clip(np.floor(fractions.reshape(-1, 2) * size), 0, size - 1).astype(np.int64)
    return vertices
