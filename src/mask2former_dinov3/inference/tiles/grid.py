"""The grid of overlapping tiles that an image is cut into, and the choice between one tile and several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...errors import OptionError
from ...read_options import ReadOptions
from ..settings import DEFAULTS, LARGEST_OVERLAP, SMALLEST_TILE, InferenceSettings

WHOLE_SIDES = 1.0
"""Canvases a side up to which an image at its own scale is predicted whole."""


class Region(NamedTuple):
    """A rectangle of pixels: rows y0 to y1, columns x0 to x1; y1 and x1 are exclusive."""

    y0: int
    x0: int
    y1: int
    x1: int

    def shared(self, other: Region) -> Region:
        """The intersection; y0 >= y1 or x0 >= x1 if it is empty."""
        return Region(max(self.y0, other.y0), max(self.x0, other.x0), min(self.y1, other.y1), min(self.x1, other.x1))

    def meets(self, other: Region) -> bool:
        """Whether they share a pixel."""
        return self.y0 < other.y1 and other.y0 < self.y1 and self.x0 < other.x1 and other.x0 < self.x1


class Grid(NamedTuple):
    """Tiles of one size, tile_height x tile_width, that cover an image of height x width: one at each top and left."""

    height: int
    width: int
    tile_height: int
    tile_width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def of(cls, height: int, width: int, tile: int, overlap: float) -> Grid:
        """Tiles of `tile` pixels a side that share at least the fraction `overlap` of a side with each neighbour.

        The grid has the fewest tiles that allow this, all of full size and evenly spread. An image smaller than a tile
        becomes one tile of the image's size. `InferenceSettings` checks the range of tile and overlap.
        """
        assert tile >= SMALLEST_TILE
        return cls.of_sides(height, width, (tile, tile), overlap)

    @classmethod
    def of_sides(cls, height: int, width: int, sides: tuple[int, int], overlap: float) -> Grid:
        """As `of`, with tiles of (height, width)."""
        assert 0 <= overlap < LARGEST_OVERLAP
        rows, columns = min(sides[0], height), min(sides[1], width)
        return cls(height, width, rows, columns, _starts(height, rows, overlap), _starts(width, columns, overlap))

    def row(self, index: int) -> Iterator[Region]:
        """The tiles of one row, from left to right."""
        top = self.tops[index]
        for left in self.lefts:
            yield Region(top, left, top + self.tile_height, left + self.tile_width)

    def batches(self, row: int, size: int) -> Iterator[list[Region]]:
        """The tiles of one row, from left to right, in lists of at most `size`."""
        tiles = list(self.row(row))
        for start in range(0, len(tiles), size):
            yield tiles[start : start + size]

    @property
    def whole(self) -> Region:
        """The region of the whole image."""
        return Region(0, 0, self.height, self.width)

    @property
    def number_of_tiles(self) -> int:
        """The number of tiles in all rows."""
        return len(self.tops) * len(self.lefts)

    def holds(self, box: Region, margin: int) -> bool:
        """Whether some tile contains the box, `margin` pixels away from its edges that lie inside the image."""
        return _holds(box.y0, box.y1, self.tops, self.tile_height, self.height, margin) and _holds(
            box.x0, box.x1, self.lefts, self.tile_width, self.width, margin
        )


class Passes(NamedTuple):
    """How images go through a network: each whole, or in tiles. No torch is needed, so that readers can ask, too.

    canvas: (height, width) that the network was trained on. factor: the scale of images that are not fitted into it
    (`ReadOptions.factor`). tile, overlap: as in `InferenceSettings`. most: canvases a side that a pass may have at an
    image's own scale; 1 for a file that takes one size only.
    """

    canvas: tuple[int, int]
    factor: float | None
    tile: int | None
    overlap: float
    most: float = math.inf

    @classmethod
    def of(
        cls,
        size: Mapping[str, int],
        options: ReadOptions,
        settings: InferenceSettings = DEFAULTS,
        most: float = math.inf,
    ) -> Passes:
        """size: "height" and "width" of the canvas, as the image processor has them.

        Raises OptionError for a tile of more than `most` canvases.
        """
        passes = cls((size["height"], size["width"]), options.factor, settings.tile, settings.overlap, most)
        limit = None if passes.factor is None or most == math.inf else min(passes.largest(most))
        if limit is not None and passes.tile is not None and passes.tile > limit:
            advice = f"a pass has at most {most:g} canvases of {passes.canvas[0]} x {passes.canvas[1]} a side here"
            raise OptionError("tile", f"at most {limit} pixels", passes.tile, advice)
        return passes

    @property
    def may_cut(self) -> bool:
        """Whether there are images that are cut."""
        return self.tile is not None or self.factor is not None

    @property
    def whole(self) -> tuple[int, int] | None:
        """(height, width) of the largest image at its own scale that is not cut without `tile`; None for "fit"."""
        return None if self.factor is None else self.largest(min(WHOLE_SIDES, self.most))

    def grid(self, height: int, width: int) -> Grid:
        """The tiles of an image; one if it is predicted whole.

        Images that are fitted into the canvas are cut only if `tile` says so. At its own scale an image is predicted
        whole up to `tile`, or else up to `WHOLE_SIDES` canvases a side.
        """
        whole = self.whole
        if whole is None:
            side = max(height, width, SMALLEST_TILE) if self.tile is None else self.tile
            return Grid.of(height, width, side, self.overlap)
        if self.tile is None:
            return Grid.of_sides(height, width, whole, self.overlap)
        return Grid.of(height, width, self.tile, self.overlap)

    def largest(self, canvases: float) -> tuple[int, int]:
        """(height, width) in pixels of the image that so many canvases a side show at its own scale."""
        height, width = (max(int(canvases * side / (self.factor or 1.0)), 1) for side in self.canvas)
        return height, width


def _starts(length: int, tile: int, overlap: float) -> tuple[int, ...]:
    """The first pixels of the tiles of `tile` pixels on an axis of `length` pixels."""
    # A tile has one pixel only where the image is one pixel wide; it has no neighbour to share pixels with.
    steps = math.ceil((length - tile) / max(1, tile - math.ceil(tile * overlap)))
    return tuple(round(step * (length - tile) / max(steps, 1)) for step in range(steps + 1))


def _holds(first: int, last: int, starts: tuple[int, ...], tile: int, length: int, margin: int) -> bool:
    return any(
        first >= start + margin * (start > 0) and last <= start + tile - margin * (start + tile < length)
        for start in starts
    )
