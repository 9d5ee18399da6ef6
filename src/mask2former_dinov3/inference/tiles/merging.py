"""Merge the instances of overlapping tiles into instances of the whole image: each object once, and complete.

Two neighbouring tiles see the same pixels in their overlap, so both see an object that lies there. A piece is an
instance as one tile sees it; an inner edge is an edge of a tile that lies inside the image. Per class:

1. A piece that is cut by an inner edge but lies completely inside another tile is dropped: that tile sees more of it.
2. A piece that no inner edge cuts counts as whole. If two whole pieces of different tiles have an IoU above 0.5, the
   one with the higher score is kept.
3. An object that crosses an overlap leaves one piece in each tile. Two pieces are joined if each is the best match of
   the other by the IoU of their masks *inside the overlap*, and that IoU is above 0.5. They are also joined if an
   inner edge cuts both and most of one piece's pixels in the overlap belong to the other (an arm of a horseshoe whose
   bend only the neighbour sees). Joins continue from tile to tile, so objects may be of any size. The score of the
   object is the mean over its pixels.

Objects that merely touch share few pixels inside the overlap and stay separate, and so do pieces of one tile.

A mask is stored as vertical runs of pixels, numbered down the columns of the whole image (as in COCO's RLE): joining,
comparing and encoding need no bitmap. R runs of one piece, H W the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ...data.coco_types import CocoRle
from ...data.rle import runs_of_each
from ...instances import Instances, Unreported
from ..copies import finish_instances
from ..settings import DEFAULTS, InferenceSettings
from .grid import Grid, Region
from .runs import Runs, encode_runs, join_runs

SAME_IOU = 0.5  # above it two masks show the same object; among disjoint masks only one can reach it
INSIDE = 0.8  # a piece belongs to another one if it shares more than this fraction of its pixels
EDGE = 2  # pixels: a mask that comes this close to an edge of its tile counts as cut by it


@dataclass(eq=False, slots=True)
class Piece:
    """One instance as a tile sees it. whole: no inner edge of the tile cuts it."""

    label: int
    score: np.float32
    runs: Runs
    box: Region
    whole: bool
    open: bool = True  # a later tile may still overlap it
    repeated: bool = False  # another tile has the same object with a higher score
    group: list[Piece] = field(default_factory=list)  # all pieces of its object, with itself; they share the list


class Merger:
    """Takes the instances of tiles row by row and returns the instances of the whole image.

    It holds the pieces of tiles that the next row overlaps, and the finished instances as RLE.
    """

    def __init__(
        self,
        grid: Grid,
        categories: tuple[tuple[int, str], ...] | None,
        settings: InferenceSettings = DEFAULTS,
    ) -> None:
        """settings: of the whole image; the tiles were predicted with its `for_parts`."""
        self.grid = grid
        self.categories = categories
        self.settings = settings
        self.left_out = Unreported()
        self.tiles: list[tuple[Region, list[Piece]]] = []
        self.finished: list[tuple[int, np.float32, CocoRle]] = []

    def add_row(self, row: int, found: list[Instances]) -> None:
        """Add the instances of each tile of a row, from left to right; rows must come from the top, without a gap."""
        for tile, instances in zip(self.grid.row(row), found, strict=True):
            self.left_out += instances.left_out
            pieces = [piece for piece in pieces_of(instances, tile, self.grid) if not self.is_seen_better(piece)]
            for other, earlier in self.tiles:
                if other.meets(tile):
                    link(pieces, earlier, compare_pieces(tile, pieces, other, earlier, self.grid.height))
            self.tiles.append((tile, pieces))
        self.finish_above(self.grid.tops[row + 1] if row + 1 < len(self.grid.tops) else self.grid.height)

    def instances(self) -> Instances:
        """All instances, best score first; every row must have been added."""
        assert not self.tiles, "rows are missing"
        order = sorted(range(len(self.finished)), key=lambda index: -self.finished[index][1])
        found = Instances(
            self.grid.height,
            self.grid.width,
            tuple(self.finished[index][2] for index in order),
            np.array([self.finished[index][0] for index in order], dtype=np.int64),
            np.array([self.finished[index][1] for index in order], dtype=np.float32),
            self.categories,
            self.left_out if not self.finished else replace(self.left_out, best_score=0.0),
        )
        return finish_instances(found, self.settings)

    def is_seen_better(self, piece: Piece) -> bool:
        """Whether another tile contains the whole of a cut piece (rule 1)."""
        return not piece.whole and self.grid.holds(piece.box, EDGE)

    def finish_above(self, top: int) -> None:
        """Encode the objects that only tiles above `top` have seen; no later tile begins above it."""
        closed = [piece for tile, pieces in self.tiles if tile.y1 <= top for piece in pieces]
        self.tiles = [(tile, pieces) for tile, pieces in self.tiles if tile.y1 > top]
        for piece in closed:
            piece.open = False
        groups = {id(piece.group): piece.group for piece in closed}
        ended = [group for group in groups.values() if not any(piece.open for piece in group)]
        done = [kept for group in ended if (kept := [piece for piece in group if not piece.repeated])]
        merged = [merge_pieces(group) for group in done]
        rles = encode_runs([runs for _, runs in merged], self.grid.height, self.grid.width)
        self.finished.extend(
            (group[0].label, score, rle) for group, (score, _), rle in zip(done, merged, rles, strict=True)
        )


def pieces_of(instances: Instances, tile: Region, grid: Grid) -> Iterator[Piece]:
    """The instances of one tile in the coordinates of the image, each in a group of its own."""
    height = tile.y1 - tile.y0
    counts = [rle["counts"].encode() for rle in instances.rles]
    for lengths, label, score in zip(runs_of_each(counts), instances.labels, instances.scores, strict=True):
        inside = Runs.of_counts(lengths)
        start, end = inside.start, inside.end
        first, last = start // height, (end - 1) // height
        number = last - first + 1  # columns of each run, which may continue at the top of the next column
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
    """How similar two masks are: IoU, and the shared pixels as a fraction of the first and of the second mask."""

    iou: float
    of_first: float
    of_second: float
    crossing: bool  # each tile's inner edge cuts its piece: the object passes through the whole overlap
    whole: bool  # both pieces are whole


def compare_pieces(
    tile: Region, pieces: list[Piece], other: Region, earlier: list[Piece], height: int
) -> dict[tuple[int, int], Likeness]:
    """The likeness of all pieces of two tiles that may be one object: (index in `pieces`, index in `earlier`) -> it.

    Two whole pieces are compared completely, other pairs inside the overlap of the tiles.
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
                # Tiles that meet at a corner share few pixels: only objects that pass through all of them count.
                if not (crossing or (beside and any(ends))):
                    continue
            if shared := first.shared(second):
                areas = first.area, second.area
                iou = shared / (sum(areas) - shared)
                found[i, j] = Likeness(iou, shared / areas[0], shared / areas[1], crossing, whole)
    return found


def reaches(runs: Runs, tile: Region, other: Region, height: int) -> bool:
    """Whether runs in the overlap of two tiles reach an edge of `tile` that lies inside the other tile."""
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
    """Mark repeated pieces of two tiles, and put the pieces of one object into one group (rules 2 and 3)."""
    best, best_earlier = {}, {}
    for i, j in sorted(like, key=lambda pair: like[pair].iou):
        best[i], best_earlier[j] = j, i
    for (i, j), alike in like.items():
        if alike.whole:
            if alike.iou > SAME_IOU:
                min(pieces[i], earlier[j], key=lambda piece: piece.score).repeated = True
            continue
        first, second = best[i] == j, best_earlier[j] == i
        same = first and second and alike.iou > SAME_IOU
        arm = alike.crossing and ((first and alike.of_first > INSIDE) or (second and alike.of_second > INSIDE))
        if (same or arm) and pieces[i].group is not earlier[j].group:
            small, large = sorted((pieces[i].group, earlier[j].group), key=len)
            large.extend(small)
            for piece in small:
                piece.group = large


def merge_pieces(group: list[Piece]) -> tuple[np.float32, Runs]:
    """Score and pixels of one object from its pieces."""
    score = np.average([piece.score for piece in group], weights=[piece.runs.area for piece in group])
    return np.float32(score), join_runs([piece.runs for piece in group])


def merge_rows(
    rows: Iterable[list[Instances]],
    grid: Grid,
    categories: tuple[tuple[int, str], ...] | None,
    settings: InferenceSettings = DEFAULTS,
) -> Instances:
    """The instances of the whole image from those of its tiles, which come as `Predictor.predict_rows` yields them.

    settings: of the whole image, with the model's own values for what is None.
    """
    merger = Merger(grid, categories, settings)
    for row, found in enumerate(rows):
        merger.add_row(row, found)
    return merger.instances()
