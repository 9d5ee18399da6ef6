"""Convert feature maps to rows of pixels and back, without a copy if the map is channels last in memory."""

from __future__ import annotations

from torch import Tensor


def as_rows(features: Tensor) -> Tensor:
    """A map (G, E, h, w) as rows of pixels (G, h*w, E); no copy if it is channels last in memory."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def as_map(rows: Tensor, height: int, width: int) -> Tensor:
    """Undo `as_rows`; the map is channels last in memory."""
    per_pixel: Tensor = rows.unflatten(1, (height, width))
    return per_pixel.permute(0, 3, 1, 2)
