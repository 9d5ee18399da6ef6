"""Mask values at continuous points, and the choice of points (PointRend, arXiv:1912.08193)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .bags import TransposedBags, bag

# E mask channels, N masks, M rows of logits, P points, H x W the masks' size. A point is (x, y); [0, 1] spans the
# canvas from edge to edge, so (0, 0) is the corner of the first pixel, not its centre.
# On a CPU new memory costs more than arithmetic: what is small enough is taken from what was just given back.
POINTS_AT_ONCE = 8192
# On a GPU every operation costs its launch, so few large ones; bounds the memory (float32, some five arrays at a time).
ELEMENTS_AT_ONCE = 2**26
RandomPoints = Callable[..., Tensor]  # called as torch.rand: random(n, p, 2, device=...)


def layers_at_once(device: torch.device, layers: int, elements: int) -> int:
    """How many of the layers, `elements` numbers each, to work on together: on a CPU one, which its cache holds."""
    return 1 if device.type == "cpu" else max(1, min(layers, ELEMENTS_AT_ONCE // max(elements, 1)))


def _some(points: Tensor) -> int:
    """How many points to work on together."""
    return POINTS_AT_ONCE if points.device.type == "cpu" else len(points)


def corners(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point and their bilinear weights; 0 for those outside the map.

    points (P, 2) -> index (P, 4) int64 into the flattened map, weight (P, 4) float32.
    """
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
    left, top = x.floor(), y.floor()
    rows: list[tuple[Tensor, Tensor]] = []  # (pixel, share) of the two rows, and of the two columns
    columns: list[tuple[Tensor, Tensor]] = []
    for start, place, length, pairs in ((left, x, width, columns), (top, y, height, rows)):
        for pixel in (start, start + 1):
            inside = (pixel >= 0) & (pixel < length)
            pairs.append((pixel.clamp(0, length - 1), (1 - (place - pixel).abs()) * inside))
    index = [row * width + column for row, _ in rows for column, _ in columns]
    weight = [down * along for _, down in rows for _, along in columns]
    return torch.stack(index, dim=1).long(), torch.stack(weight, dim=1)


def sample_features(features: Tensor, points: Tensor, out: Tensor) -> Tensor:
    """Bilinear values at points, 0 outside. features (E, h, w), points (P, 2) -> out (P, E).

    The features are not copied if they lie channels last in memory. Has no gradient: see `spread_to_features`.
    """
    channels, height, width = features.shape
    rows = features.permute(1, 2, 0).reshape(-1, channels)
    for some, target in zip(points.split(_some(points)), out.split(_some(points)), strict=True):
        target.copy_(bag(rows, *corners(some, height, width)))
    return out


def spread_to_features(grad: Tensor, points: Tensor, height: int, width: int) -> Tensor:
    """The gradient of `sample_features`: grad (P, E), points (P, 2) -> (E, height, width), channels last in memory."""
    index, weight = corners(points, height, width)
    sums = grad.new_empty(height * width, grad.shape[1])
    for rows, part in TransposedBags(index, len(sums))(grad, weight):
        sums[rows] = part
    return sums.view(height, width, -1).permute(2, 0, 1)


def sample_targets(masks: Tensor, points: Tensor) -> Tensor:
    """The same for targets, which stay bytes. masks (N, H, W) bool or uint8, points (P, 2) -> (N, P) float32."""
    pixels = masks.flatten(1).view(torch.uint8)
    values = torch.zeros(len(masks), len(points), device=masks.device)
    for some, target in zip(points.split(_some(points)), values.split(_some(points), dim=1), strict=True):
        index, weight = corners(some, masks.shape[1], masks.shape[2])  # (n, 4)
        for corner, share in zip(index.unbind(1), weight.unbind(1), strict=True):
            if pixels.device.type == "cpu":  # on bytes NumPy is several times as fast as index_select
                taken = torch.from_numpy(np.take(pixels.numpy(), corner.numpy(), axis=1))
            else:
                taken = pixels.index_select(1, corner)
            target.addcmul_(taken, share)
    return values


@torch.no_grad()
def choose_points(logits: Tensor, candidates: int, uncertain: int) -> Tensor:
    """Which points the mask loss of each row reads: where it is least sure, and some anywhere.

    logits (M, P): the first `candidates` columns are at points of which the `uncertain` ones with the smallest |logit|
    are kept, the rest are kept all. Returns columns (M, uncertain + P - candidates), in no order.
    """
    columns = torch.empty(len(logits), uncertain + logits.shape[1] - candidates, dtype=torch.long, device=logits.device)
    if logits.device.type == "cpu" and 0 < uncertain < candidates:
        # NumPy's partition is three times as fast on one core as topk is on two.
        for row, kept in zip(logits[:, :candidates].numpy(), columns[:, :uncertain].numpy(), strict=True):
            certainty = np.abs(row)
            chosen = np.flatnonzero(certainty <= np.partition(certainty, uncertain - 1)[uncertain - 1])
            # Of equal ones, or beside NaN, there may be more or fewer.
            kept[:] = chosen if len(chosen) == uncertain else np.argpartition(certainty, uncertain)[:uncertain]
    else:
        certainty = logits[:, :candidates].abs()
        columns[:, :uncertain] = certainty.topk(uncertain, dim=1, largest=False, sorted=False).indices
    columns[:, uncertain:] = torch.arange(candidates, logits.shape[1], device=logits.device)
    return columns
