"""Mask values at continuous points, and the choice of points (PointRend, arXiv:1912.08193)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# N masks, P points, (H, W) the masks' size. A point is (x, y); [0, 1] spans the canvas from edge to edge, so (0, 0) is
# the corner of the first pixel, not its centre.
RandomPoints = Callable[..., Tensor]  # called as torch.rand: random(n, p, 2, device=...)


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Bilinear values, 0 outside. logits (N, C, H, W), points (N, P, 2) -> (N, C, P), differentiable in `logits`."""
    grid = 2 * points[:, :, None] - 1  # (N, P, 1, 2) in [-1, 1]
    return F.grid_sample(logits, grid, align_corners=False)[..., 0]


def sample_targets(masks: Tensor, points: Tensor) -> Tensor:
    """The same for targets, which stay bytes: the four neighbours are gathered, no float copy of the masks is made.

    masks (N, H, W) bool or uint8, points (N, P, 2) or (P, 2) for the same points on all -> (N, P) float32.
    """
    height, width = masks.shape[1:]
    x = points[..., 0].float() * width - 0.5  # continuous index of pixel centres
    y = points[..., 1].float() * height - 0.5
    left, top = x.floor(), y.floor()
    flat = masks.flatten(1)
    values = torch.zeros((masks.shape[0], points.shape[-2]), device=masks.device)
    for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            corner = flat[:, index] if index.dim() == 1 else flat.gather(1, index)  # (N, P)
            values += corner.float() * (weight_x * weight_y * inside)
    return values


@torch.no_grad()
def choose_points(
    logits: Tensor,
    extent: Tensor,
    num_points: int,
    oversample: float,
    importance: float,
    rand: RandomPoints,
) -> Tensor:
    """Points for the mask loss: most of them where the prediction is least sure, the rest anywhere.

    logits (N, H, W); extent (N, 2): real share of (width, height) of each mask's canvas. Of
    `oversample * num_points` random points the `importance * num_points` with the smallest |logit| are
    kept. Differs from the paper: points fall on real pixels only, never on padding. Returns (N, num_points, 2).
    """
    count = logits.shape[0]
    candidates = rand(count, int(num_points * oversample), 2, device=logits.device) * extent[:, None]
    uncertain = int(num_points * importance)
    certainty = sample_logits(logits[:, None], candidates)[:, 0].abs()  # (N, P * oversample)
    keep = certainty.topk(uncertain, dim=1, largest=False).indices  # (N, uncertain)
    chosen = candidates.gather(1, keep[..., None].expand(-1, -1, 2))
    anywhere = rand(count, num_points - uncertain, 2, device=logits.device) * extent[:, None]
    return torch.cat([chosen, anywhere], dim=1)
