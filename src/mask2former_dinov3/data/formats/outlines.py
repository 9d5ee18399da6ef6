"""Turn a mask into one polygon along the edges of its pixels, which covers exactly the pixels of the mask again.

(0, 0) is the corner of the first pixel. Pixels that touch at a corner only belong to separate rings. Further parts and
holes are visited by a line from the first point and back the same way, which encloses nothing: filled by the even-odd
rule, as COCO's rasteriser and OpenCV's fillPoly do, the polygon is the mask.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..rle import run_lengths, runs_window
from ..segmentation import Polygon, Segmentation, polygons_to_runs

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # (x, y): right, down, left, up; the next one is the turn to the right


class Outline(NamedTuple):
    """A polygon (P, 2) in pixels; parts: rings that have the object inside; holes: rings that have it outside."""

    polygon: Polygon
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
    rings = [ring + np.array((window.left, window.top)) for ring in trace_rings(window.pixels)]
    start = rings[0][:1]
    pieces = [rings[0], *(np.concatenate((start, ring, ring[:1])) for ring in rings[1:])]
    holes = sum(_is_hole(ring) for ring in rings)
    return Outline(np.concatenate(pieces).astype(np.float64), len(rings) - holes, holes)


def trace_rings(pixels: npt.NDArray[np.generic]) -> list[npt.NDArray[np.int64]]:
    """The rings (P, 2) of x, y around the pixels of a mask (H, W) that are not 0: corners only, none closed.

    Outer rings go clockwise as one sees the image, those of holes the other way.
    """
    leaving = _edges(pixels != 0)
    rings: list[npt.NDArray[np.int64]] = []
    for start in sorted(leaving, key=lambda point: (point[1], point[0])):
        while leaving[start]:
            direction = leaving[start][0]
            points: list[tuple[int, int]] = []
            point, last = start, -1
            while True:
                directions = leaving[point]
                if not directions:
                    break
                right = (last + 1) % 4
                direction = right if last >= 0 and right in directions else directions[0]
                directions.remove(direction)
                if direction != last:
                    points.append(point)
                point = (point[0] + _STEPS[direction][0], point[1] + _STEPS[direction][1])
                last = direction
                if point == start and (not leaving[point] or (last + 1) % 4 not in leaving[point]):
                    break
            rings.append(np.array(points, dtype=np.int64))
    return rings


def _edges(inside: npt.NDArray[np.bool_]) -> dict[tuple[int, int], list[int]]:
    """Corner (x, y) -> directions of the edges that leave it, with the object to the right of each."""
    padded = np.pad(inside, 1)
    here = padded[1:-1, 1:-1]
    leaving: dict[tuple[int, int], list[int]] = {}
    sides = (
        (here & ~padded[:-2, 1:-1], (0, 0), 0),  # the edge above a pixel goes right
        (here & ~padded[1:-1, 2:], (1, 0), 1),
        (here & ~padded[2:, 1:-1], (1, 1), 2),
        (here & ~padded[1:-1, :-2], (0, 1), 3),
    )
    for found, (dx, dy), direction in sides:
        for y, x in np.argwhere(found).tolist():
            leaving.setdefault((x + dx, y + dy), []).append(direction)
    return leaving


def _is_hole(ring: npt.NDArray[np.int64]) -> bool:
    x, y = ring.T
    return bool((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() < 0)
