"""Masks as vertical runs of pixels, numbered down the columns of the image as in COCO's RLE: no bitmap is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...data.coco_types import CocoRle
from ...data.rle import Integers, compress
from .grid import Region


@dataclass(frozen=True, slots=True)
class Runs:
    """Pixels as vertical runs from start up to and without end, (R,) each: sorted and disjoint, each within one column
    where `within` is used."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]

    @classmethod
    def of_counts(cls, lengths: Integers) -> Runs:
        """The pixels of an RLE with these run lengths; a run may go on at the top of the next column."""
        bounds = np.cumsum(lengths)
        return cls(bounds[: len(bounds) // 2 * 2 : 2], bounds[1::2])

    @property
    def area(self) -> int:
        return int((self.end - self.start).sum())

    def within(self, region: Region, height: int) -> Runs:
        """The pixels inside a region of an image of `height` rows."""
        column = self.start // height
        kept = (column >= region.x0) & (column < region.x1)
        top = column[kept] * height
        start = np.maximum(self.start[kept], top + region.y0)
        end = np.minimum(self.end[kept], top + region.y1)
        return Runs(start[start < end], end[start < end])

    def shared(self, other: Runs) -> int:
        """The number of pixels that are in both."""
        if not len(other.start):
            return 0
        lengths = np.concatenate(([0], np.cumsum(other.end - other.start)))

        def covered(position: NDArray[np.int64]) -> NDArray[np.int64]:
            """The number of pixels of `other` before each position."""
            before = np.searchsorted(other.start, position)
            last = other.end[np.maximum(before - 1, 0)]
            return np.asarray(lengths[before] - np.where(before > 0, np.maximum(last - position, 0), 0))

        return int((covered(self.end) - covered(self.start)).sum())


def join_runs(parts: list[Runs]) -> Runs:
    """The union of several masks; runs that touch become one, also from one column to the next."""
    start = np.concatenate([part.start for part in parts])
    end = np.concatenate([part.end for part in parts])
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    first = np.flatnonzero(np.concatenate(([True], start[1:] > end[:-1])))
    return Runs(start[first], end[np.append(first[1:], len(end)) - 1])


def encode_runs(masks: list[Runs], height: int, width: int) -> list[CocoRle]:
    """Masks that `join_runs` made, as RLE of the whole image."""
    lengths = []
    for mask in masks:
        bounds = np.stack((mask.start, mask.end), axis=1).ravel()
        tail = [height * width] if bounds[-1] < height * width else []
        lengths.append(np.diff(np.concatenate(([0], bounds, tail))).astype(np.int64))
    if not lengths:
        return []
    counts = compress(np.concatenate(lengths), np.array([len(one) for one in lengths]))
    return [CocoRle(size=[height, width], counts=str(one, "ascii")) for one in counts]
