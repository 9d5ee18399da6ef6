"""The grid of overlapping tiles that an image is cut into."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


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
        assert tile > 0
        assert 0 <= overlap < 1
        rows, columns = min(tile, height), min(tile, width)
        return cls(height, width, rows, columns, _starts(height, rows, overlap), _starts(width, columns, overlap))

    def row(self, index: int) -> Iterator[Region]:
        """The tiles of one row, from left to right."""
        top = self.tops[index]
        for left in self.lefts:
            yield Region(top, left, top + self.tile_height, left + self.tile_width)

    def batches(self, index: int, size: int) -> Iterator[list[Region]]:
        """The tiles of one row, from left to right, in lists of at most `size`."""
        tiles = list(self.row(index))
        for start in range(0, len(tiles), size):
            yield tiles[start : start + size]

    @property
    def number_of_tiles(self) -> int:
        """Tiles in all rows."""
        return len(self.tops) * len(self.lefts)

    def holds(self, box: Region, margin: int) -> bool:
        """Whether some tile contains the box, `margin` pixels away from its edges that lie inside the image."""
        return _holds(box.y0, box.y1, self.tops, self.tile_height, self.height, margin) and _holds(
            box.x0, box.x1, self.lefts, self.tile_width, self.width, margin
        )


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
