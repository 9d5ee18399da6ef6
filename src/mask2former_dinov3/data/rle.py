"""Read and write COCO's run-length code (RLE), for many masks at once.

An RLE counts column by column, from the top left: lengths of alternating runs, the first one background. Stored
`counts` are the compressed form (printable characters of six bits each; maskApi.c of the COCO API, rleToString).

N masks, R runs, C characters of all of them, one mask after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, mismatch

Integers: TypeAlias = npt.NDArray[np.int64]

_CUT_SHORT = f"RLE counts: {mismatch('whole groups of characters', 'counts cut short within a number')}"


def run_lengths(counts: bytes) -> Integers:
    """The runs (R,) of one mask in compressed `counts`, background first. Raises DatasetError if malformed."""
    values, _ = _values(counts)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def decompress(counts: Sequence[bytes]) -> tuple[Integers, Integers]:
    """The runs (R,) of many masks, one mask after the other, and how many each has (N,). DatasetError if malformed."""
    values, ends = _values(b"".join(counts))
    borders = np.cumsum([len(one) for one in counts], dtype=np.int64)
    filled = np.array([len(one) > 0 for one in counts], dtype=bool)
    if not np.isin(borders[filled] - 1, ends).all():
        raise DatasetError(_CUT_SHORT)
    number = np.diff(np.searchsorted(ends, borders), prepend=0)  # (N,)
    place = _place(number)
    mask = np.repeat(np.arange(len(number)), number)
    runs = values.copy()
    for chosen in (place & 1 == 1, (place & 1 == 0) & (place > 0)):
        sums = np.cumsum(values[chosen])
        first = np.flatnonzero(np.diff(mask[chosen], prepend=-1))  # where another mask begins
        before = np.concatenate(([0], sums))[first]
        runs[chosen] = sums - np.repeat(before, np.diff(first, append=len(sums)))
    return runs, number


def runs_of_each(counts: Sequence[bytes]) -> list[Integers]:
    """The runs of every mask, (R,) each. Raises DatasetError if malformed."""
    runs, number = decompress(counts)
    ends = np.cumsum(number).tolist()
    return [runs[end - own : end] for end, own in zip(ends, number.tolist(), strict=True)]


def compress(runs: Integers, number: Integers) -> list[bytes]:
    """Compressed counts of N masks: the inverse of `decompress`. runs (R,), not negative; number (N,), none 0."""
    if not len(number):
        return []
    values = runs.copy()
    values[2:] -= np.where(_place(number)[2:] > 2, runs[:-2], 0)
    groups = []  # (R,) each: the first character of every run, then the second where there is one, ...
    digits = np.zeros(len(values), dtype=np.int64)
    more = np.ones(len(values), dtype=bool)
    while more.any():
        digits += more
        low = values & 31
        values >>= 5
        more &= np.where(low & 16, values != -1, values != 0)
        groups.append((low + 32 * more + 48).astype(np.uint8))
    used = np.arange(len(groups)) < digits[:, None]  # (R, longest)
    characters = np.stack(groups, axis=1)[used].tobytes()
    ends = np.cumsum(np.add.reduceat(digits, np.cumsum(number) - number)).tolist()
    return [characters[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def whole_mask_areas(counts: Sequence[bytes], pixels: Sequence[int]) -> Integers:
    """Pixels inside each mask, (N,). DatasetError unless each is well-formed and covers the `pixels` of its image."""
    runs, number = decompress(counts)
    if not (number > 0).all() or (runs < 0).any():
        raise DatasetError(f"RLE counts: {mismatch('run lengths of 0 or more', 'a negative one, or none at all')}")
    if not np.array_equal(_sums(runs, number), pixels):
        raise DatasetError(f"RLE counts: {mismatch('runs that cover the whole image', 'more or fewer pixels')}")
    return _sums(np.where(_place(number) & 1, runs, 0), number)


def boxes(counts: Sequence[bytes], height: int) -> Integers:
    """(N, 4) x0 y0 x1 y1 around each mask of images `height` pixels high, the far edges not in it; 0 where it is empty.

    In 64 bits: COCO's own code counts pixels in 32, which an image of 65,536 x 65,536 exceeds.
    """
    found = np.zeros((len(counts), 4), dtype=np.int64)
    for first in range(0, len(counts), 1000):  # the runs of some at a time
        runs, number = decompress(counts[first : first + 1000])
        place = _place(number)
        inside = (place & 1 == 1) & (runs > 0)
        mask = np.repeat(np.arange(len(number)), number)[inside]
        own = np.cumsum(runs) - np.repeat(np.concatenate(([0], np.cumsum(_sums(runs, number))[:-1])), number)
        last = own[inside] - 1
        start = last + 1 - runs[inside]
        one_column = start // height == last // height
        edges = (
            start // height,
            np.where(one_column, start % height, 0),
            last // height + 1,
            np.where(one_column, last % height + 1, height),
        )
        begins = np.flatnonzero(np.diff(mask, prepend=-1))
        if len(begins):
            for column, (values, reduce) in enumerate(zip(edges, (np.minimum,) * 2 + (np.maximum,) * 2, strict=True)):
                found[first + mask[begins], column] = reduce.reduceat(values, begins)
    return found


class Window(NamedTuple):
    """The part of a mask around an instance: `pixels` (h, w) uint8 0/1, their first row `top`, first column `left`."""

    pixels: npt.NDArray[np.uint8]
    top: int
    left: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rows and columns in a mask of the whole image."""
        rows, columns = self.pixels.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)

    def transpose(self) -> Window:
        """The same pixels with rows and columns exchanged."""
        return Window(self.pixels.T, self.left, self.top)


def check_runs(runs: npt.NDArray[np.int64], height: int, width: int) -> None:
    """Raise DatasetError unless no run (R,) is negative and all together fill height x width pixels exactly."""
    if runs.size and runs.min() < 0:
        raise DatasetError(f"RLE counts: {mismatch('run lengths of 0 or more', runs.min())}")
    total = int(runs.sum())
    if total != height * width:
        expected = f"runs that cover {height} x {width} = {height * width} pixels"
        raise DatasetError(f"RLE counts: {mismatch(expected, total)}")


def runs_window(runs: npt.NDArray[np.int64], height: int) -> Window | None:
    """The pixels of the smallest rectangle around the foreground of checked `runs` (R,); None if there is none.

    Only the columns that the instance touches are decoded: the cost grows with the instance, not with the image.
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
    if (row + length <= height).all():  # no run crosses a column: only the rows needed, and one more behind them
        top, bottom = int(row.min()), int((row + length).max())
        stride = bottom - top + 1
    start = (column - left) * stride + row - top
    steps = np.zeros((right - left) * stride + 1, dtype=np.uint8)
    steps[start] = 1
    steps[start + length] += 255  # -1 in uint8; added, since a run may begin where another ends
    flat = np.cumsum(steps[:-1], dtype=np.uint8)
    return Window(flat.reshape(right - left, stride)[:, : bottom - top].T, top, left)


def _values(counts: bytes) -> tuple[Integers, Integers]:
    """What the groups of characters say, (R,), and where each ends, (R,).

    A group has 5 bits a character, lowest first, a sixth bit for "more follows"; from a mask's fourth group on it is
    the difference to the run two before.
    """
    characters = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if characters.size == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if characters.min() < 0 or characters.max() > 63:
        raise DatasetError(f"RLE counts: {mismatch('characters of the compressed form (0 to o)', 'others')}")
    ends = np.flatnonzero(characters & 32 == 0)
    if ends.size == 0 or ends[-1] != characters.size - 1:
        raise DatasetError(_CUT_SHORT)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digits = ends - starts + 1
    if digits.max() > 10:
        raise DatasetError(f"RLE counts: {mismatch('numbers of at most 10 characters', int(digits.max()))}")
    shifts = 5 * (np.arange(characters.size) - np.repeat(starts, digits))
    values = np.add.reduceat((characters & 31) << shifts, starts)
    values -= np.where(characters[ends] & 16, np.int64(1) << (5 * digits), 0)  # two's complement of the group's bits
    return values, ends


def _place(number: Integers) -> Integers:
    """(R,) the place of each run within its mask, from 0."""
    return np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)


def _sums(runs: Integers, number: Integers) -> Integers:
    """(N,) the runs of each mask added up; none has 0 of them."""
    sums = np.add.reduceat(runs, np.cumsum(number) - number) if len(number) else np.zeros(0, dtype=np.int64)
    return np.asarray(sums, dtype=np.int64)
