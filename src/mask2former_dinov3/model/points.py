"""Mask values at continuous points, and the choice of points (PointRend, arXiv:1912.08193)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# N masks, P points, (H, W) the masks' size. A point is (x, y); [0, 1] spans the canvas from edge to edge, so (0, 0) is
# the corner of the first pixel, not its centre.
TARGETS_AT_ONCE = 16  # 64 MB of float32 at 1024 x 1024
RandomPoints = Callable[..., Tensor]  # called as torch.rand: random(n, p, 2, device=...)


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Bilinear values, 0 outside. logits (N, C, H, W), points (N, P, 2) -> (N, C, P), differentiable in `logits`."""
    grid = 2 * points[:, :, None] - 1  # (N, P, 1, 2) in [-1, 1]
    return F.grid_sample(logits, grid, align_corners=False)[..., 0]


def sample_targets(masks: Tensor, points: Tensor) -> Tensor:
    """The same for targets, which are kept as bytes: only a few masks at a time are copied to float.

    masks (N, H, W) bool or uint8; points (N, P, 2), or (P, 2) for the same points on all. Returns (N, P) float32.
    """
    if not len(masks):
        return torch.zeros(0, points.shape[-2], device=masks.device)
    shared = points.dim() == 2
    values = []
    for start in range(0, len(masks), TARGETS_AT_ONCE):
        part = masks[start : start + TARGETS_AT_ONCE].float()  # (n, H, W)
        if shared:
            values.append(sample_logits(part[None], points[None])[0])  # (n, P)
        else:
            values.append(sample_logits(part[:, None], points[start : start + TARGETS_AT_ONCE])[:, 0])
    return torch.cat(values)


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
    keep = certainty.topk(uncertain, dim=1, largest=False, sorted=False).indices  # (N, uncertain)
    chosen = candidates.gather(1, keep[..., None].expand(-1, -1, 2))
    anywhere = rand(count, num_points - uncertain, 2, device=logits.device) * extent[:, None]
    return torch.cat([chosen, anywhere], dim=1)
