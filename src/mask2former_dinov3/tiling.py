"""Prediction in overlapping tiles: an image of any size, of which only a row of tiles is looked at at one time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .data.grid import Grid, Region
from .instances import Instances
from .merging import Merger

Predict = Callable[[Sequence[NDArray[np.uint8]]], list[Instances]]
"""RGB images (h, w, 3) of one size to their instances, as one batch."""


def predict_tiled(
    read: Callable[[Region], NDArray[np.uint8]],
    grid: Grid,
    predict: Predict,
    batch_size: int,
    categories: tuple[tuple[int, str], ...] | None,
) -> Instances:
    """The instances of an image, found tile by tile and merged (see `merging`).

    read: gives the RGB pixels (h, w, 3) of a region of the image.
    """
    merger = Merger(grid, categories)
    for row in range(len(grid.tops)):
        tiles = list(grid.row(row))
        found: list[Instances] = []
        for start in range(0, len(tiles), batch_size):
            found.extend(predict([read(tile) for tile in tiles[start : start + batch_size]]))
        merger.add_row(row, found)
    return merger.instances()
