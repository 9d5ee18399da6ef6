"""Instances found in overlapping tiles to instances of the whole image: each object once, and whole.

Two neighbouring tiles see the same pixels in their overlap, so an object that lies there is seen by both. Per class:

1. A piece cut by an inner edge of its tile that lies inside another tile is dropped: that tile sees more of the object.
2. Pieces cut by no inner edge claim to be whole. Of two from different tiles whose masks have an IoU over 0.5 the one
   with the higher score stays.
3. What crosses an overlap is in both tiles a part of the object. The parts are joined where each is the best of the
   other by the IoU of their masks *inside the overlap* (over 0.5), or where one, cut on its way to the other, lies in
   the other there (an arm of a horseshoe whose bend only the neighbour sees). Joins go on from tile to tile, so the
   size of an object does not matter. The score of the whole is the mean over its pixels.

Objects that merely touch share few pixels inside the overlap and stay apart, and so do pieces of one tile.

A mask is kept as vertical runs of pixels, numbered down the columns of the whole image (as in COCO's RLE): joining,
comparing and encoding need no bitmap. R runs of one piece, H W the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data.coco_types import CocoRle
from ...data.rle import compress, runs_of_each
from ...instances import Instances
from .grid import Grid, Region
from .image_reader import ImageReader

SAME = 0.5  # IoU above which two masks are the same object; only one mask of disjoint ones can be above it
INSIDE = 0.8  # share of a part's pixels that lie in another part for it to belong there
EDGE = 2  # pixels: a mask this near to its tile's edge reaches it

Numbers = NDArray[np.int64]
Predict = Callable[[Sequence[NDArray[np.uint8]]], list[Instances]]
"""RGB images (h, w, 3) to their instances, as one batch."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Pixels as vertical runs start..end (R,), sorted and apart, none longer than its column."""

    start: Numbers
    end: Numbers

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
        """How many pixels are in both."""
        if not len(other.start):
            return 0
        lengths = np.concatenate(([0], np.cumsum(other.end - other.start)))

        def covered(position: Numbers) -> Numbers:
            """Pixels of `other` before each position."""
            before = np.searchsorted(other.start, position)
            last = other.end[np.maximum(before - 1, 0)]
            return np.asarray(lengths[before] - np.where(before > 0, np.maximum(last - position, 0), 0))

        return int((covered(self.end) - covered(self.start)).sum())


def joined(parts: list[Runs]) -> Runs:
    """The pixels of any of the parts; runs that meet become one, across columns as well."""
    start = np.concatenate([part.start for part in parts])
    end = np.concatenate([part.end for part in parts])
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    first = np.flatnonzero(np.concatenate(([True], start[1:] > end[:-1])))
    return Runs(start[first], end[np.append(first[1:], len(end)) - 1])


@dataclass(eq=False, slots=True)
class Piece:
    """One instance as a tile sees it. whole: it reaches no inner edge of the tile."""

    label: int
    score: np.float32
    runs: Runs
    box: Region
    whole: bool
    open: bool = True  # a tile to come may still meet it
    repeated: bool = False  # another tile has the same with a higher score
    group: list[Piece] = field(default_factory=list)  # all pieces of its object, itself included; shared by them


class Merger:
    """Takes the tiles of an image row by row; gives instances of the whole image.

    Memory: the pieces of tiles that the next row overlaps, and the finished instances as RLE.
    """

    def __init__(self, grid: Grid, categories: tuple[tuple[int, str], ...] | None) -> None:
        self.grid = grid
        self.categories = categories
        self.tiles: list[tuple[Region, list[Piece]]] = []
        self.finished: list[tuple[int, np.float32, CocoRle]] = []

    def add_row(self, row: int, found: list[Instances]) -> None:
        """What was found in the tiles of a row, from left to right; rows come from the top, without a gap."""
        for tile, instances in zip(self.grid.row(row), found, strict=True):
            pieces = [piece for piece in pieces_of(instances, tile, self.grid) if not self.is_seen_better(piece)]
            for other, earlier in self.tiles:
                if other.meets(tile):
                    link(pieces, earlier, likenesses(tile, pieces, other, earlier, self.grid.height))
            self.tiles.append((tile, pieces))
        self.finish_above(self.grid.tops[row + 1] if row + 1 < len(self.grid.tops) else self.grid.height)

    def instances(self) -> Instances:
        """All instances, best first, once every row has been added."""
        assert not self.tiles, "rows are missing"
        order = sorted(range(len(self.finished)), key=lambda index: -self.finished[index][1])
        return Instances(
            self.grid.height,
            self.grid.width,
            tuple(self.finished[index][2] for index in order),
            np.array([self.finished[index][0] for index in order], dtype=np.int64),
            np.array([self.finished[index][1] for index in order], dtype=np.float32),
            self.categories,
        )

    def is_seen_better(self, piece: Piece) -> bool:
        """Whether a cut piece lies inside another tile, away from its inner edges (rule 1)."""
        return not piece.whole and self.grid.holds(piece.box, EDGE)

    def finish_above(self, top: int) -> None:
        """No tile to come begins above `top`: encode the objects that only tiles above it have seen."""
        closed = [piece for tile, pieces in self.tiles if tile.y1 <= top for piece in pieces]
        self.tiles = [(tile, pieces) for tile, pieces in self.tiles if tile.y1 > top]
        for piece in closed:
            piece.open = False
        groups = {id(piece.group): piece.group for piece in closed}
        ended = [group for group in groups.values() if not any(piece.open for piece in group)]
        done = [kept for group in ended if (kept := [piece for piece in group if not piece.repeated])]
        settled = [settle(group) for group in done]
        rles = encode([runs for _, runs in settled], self.grid.height, self.grid.width)
        self.finished.extend(
            (group[0].label, score, rle) for group, (score, _), rle in zip(done, settled, rles, strict=True)
        )


def pieces_of(instances: Instances, tile: Region, grid: Grid) -> Iterator[Piece]:
    """The instances of one tile in the image's coordinates, each a group of its own."""
    height = tile.y1 - tile.y0
    counts = [rle["counts"].encode() for rle in instances.rles]
    for lengths, label, score in zip(runs_of_each(counts), instances.labels, instances.scores, strict=True):
        bounds = np.cumsum(lengths)
        start, end = bounds[: len(bounds) // 2 * 2 : 2], bounds[1::2]
        first, last = start // height, (end - 1) // height
        number = last - first + 1  # a run may go on at the top of the next column
        place = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        column = np.repeat(first, number) + place
        top = np.where(place == 0, np.repeat(start - first * height, number), 0)
        bottom = np.where(column == np.repeat(last, number), np.repeat(end - last * height, number), height)
        offset = (tile.x0 + column) * grid.height + tile.y0
        box = Region(
            tile.y0 + int(top.min()),
            tile.x0 + int(column[0]),
            tile.y0 + int(bottom.max()),
            tile.x0 + int(column[-1]) + 1,
        )
        cut = (
            (tile.y0 > 0 and box.y0 < tile.y0 + EDGE)
            or (tile.x0 > 0 and box.x0 < tile.x0 + EDGE)
            or (tile.y1 < grid.height and box.y1 > tile.y1 - EDGE)
            or (tile.x1 < grid.width and box.x1 > tile.x1 - EDGE)
        )
        piece = Piece(int(label), score, Runs(offset + top, offset + bottom), box, not cut)
        piece.group.append(piece)
        yield piece


class Likeness(NamedTuple):
    """How much two masks have in common: IoU, and the shared pixels' part of the first mask and of the second."""

    iou: float
    of_first: float
    of_second: float
    crossing: bool  # both are cut on their way to the other: the object runs through the whole overlap
    whole: bool  # both are


def likenesses(
    tile: Region, pieces: list[Piece], other: Region, earlier: list[Piece], height: int
) -> dict[tuple[int, int], Likeness]:
    """Of the pieces of two tiles that may be one object: (place in `pieces`, place in `earlier`) -> likeness.

    Two whole pieces are compared as they are, parts inside the overlap.
    """
    overlap = tile.shared(other)
    beside = tile.y0 == other.y0 or tile.x0 == other.x0
    found: dict[tuple[int, int], Likeness] = {}
    for i, one in enumerate(pieces):
        if not one.box.meets(overlap):
            continue
        for j, two in enumerate(earlier):
            if one.label != two.label or not one.box.meets(two.box):
                continue
            first, second = one.runs, two.runs
            crossing, whole = False, one.whole and two.whole
            if not whole:
                first, second = first.within(overlap, height), second.within(overlap, height)
                ends = reaches(first, tile, other, height), reaches(second, other, tile, height)
                crossing = all(ends)
                # Tiles at a corner share few pixels: only what runs through them says something.
                if not (crossing or (beside and any(ends))):
                    continue
            if shared := first.shared(second):
                areas = first.area, second.area
                iou = shared / (sum(areas) - shared)
                found[i, j] = Likeness(iou, shared / areas[0], shared / areas[1], crossing, whole)
    return found


def reaches(runs: Runs, tile: Region, other: Region, height: int) -> bool:
    """Whether runs in the overlap of two tiles reach an edge of `tile` that lies inside the other one."""
    if not len(runs.start):
        return False
    column = runs.start // height
    row = runs.start - column * height
    last_row = runs.end - column * height
    return bool(
        (other.y0 < tile.y0 and row.min() < tile.y0 + EDGE)
        or (other.x0 < tile.x0 and column[0] < tile.x0 + EDGE)
        or (tile.y1 < other.y1 and last_row.max() > tile.y1 - EDGE)
        or (tile.x1 < other.x1 and column[-1] >= tile.x1 - EDGE)
    )


def link(pieces: list[Piece], earlier: list[Piece], like: dict[tuple[int, int], Likeness]) -> None:
    """Mark repeated pieces of two tiles, put parts of the same object into one group (rules 2 and 3)."""
    best, best_earlier = {}, {}
    for i, j in sorted(like, key=lambda pair: like[pair].iou):
        best[i], best_earlier[j] = j, i
    for (i, j), alike in like.items():
        if alike.whole:
            if alike.iou > SAME:
                min(pieces[i], earlier[j], key=lambda piece: piece.score).repeated = True
            continue
        first, second = best[i] == j, best_earlier[j] == i
        same = first and second and alike.iou > SAME
        arm = alike.crossing and ((first and alike.of_first > INSIDE) or (second and alike.of_second > INSIDE))
        if (same or arm) and pieces[i].group is not earlier[j].group:
            small, large = sorted((pieces[i].group, earlier[j].group), key=len)
            large.extend(small)
            for piece in small:
                piece.group = large


def settle(group: list[Piece]) -> tuple[np.float32, Runs]:
    """Score and pixels of one object from its pieces."""
    score = np.average([piece.score for piece in group], weights=[piece.runs.area for piece in group])
    return np.float32(score), joined([piece.runs for piece in group])


def encode(masks: list[Runs], height: int, width: int) -> list[CocoRle]:
    """Masks of joined runs as RLE of the whole image."""
    lengths = []
    for mask in masks:
        bounds = np.stack((mask.start, mask.end), axis=1).ravel()
        tail = [height * width] if bounds[-1] < height * width else []
        lengths.append(np.diff(np.concatenate(([0], bounds, tail))).astype(np.int64))
    if not lengths:
        return []
    counts = compress(np.concatenate(lengths), np.array([len(one) for one in lengths]))
    return [CocoRle(size=[height, width], counts=str(one, "ascii")) for one in counts]


def rows_of_tiles(
    image: ImageReader, grid: Grid, predict: Predict, batch_size: int, first: int = 0
) -> Iterator[list[Instances]]:
    """What is found in the tiles of each row of the grid, from row `first` on, each tile in its own coordinates."""
    for row in range(first, len(grid.tops)):
        tiles = list(grid.row(row))
        found: list[Instances] = []
        for start in range(0, len(tiles), batch_size):
            found.extend(predict([image.read(tile) for tile in tiles[start : start + batch_size]]))
        yield found


def merge_rows(
    rows: Iterable[list[Instances]], grid: Grid, categories: tuple[tuple[int, str], ...] | None
) -> Instances:
    """The instances of the whole image (see `merging`)."""
    merger = Merger(grid, categories)
    for row, found in enumerate(rows):
        merger.add_row(row, found)
    return merger.instances()
