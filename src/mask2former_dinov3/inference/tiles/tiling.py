"""Prediction in overlapping tiles: an image of any size, of which only some tiles are looked at at one time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .grid import Grid
from .image_reader import ImageReader
from ...instances import Instances
from .merging import Merger

Predict = Callable[[Sequence[NDArray[np.uint8]]], list[Instances]]
"""RGB images (h, w, 3) to their instances, as one batch."""


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
