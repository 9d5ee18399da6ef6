"""Loss of the query seeds' score: a heat map with one peak in each instance."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def heat_map(coverage: Tensor) -> Tensor:
    """Target of the score: 1 at the seed of each instance, decreasing within it, 0 elsewhere.

    coverage (N, h, w): fraction of each pixel that the instance covers -> (h, w). The seed is the instance's pixel
    nearest to its centre of mass, since a ring or a crescent does not contain its centre. It decreases as a Gaussian
    whose standard deviation is a quarter of the radius of a disc of the same area.
    """
    count, height, width = coverage.shape
    if count == 0:
        return coverage.new_zeros(height, width)
    area = coverage.sum((1, 2)).clamp(min=1e-6)
    y = torch.arange(height, device=coverage.device, dtype=coverage.dtype)
    x = torch.arange(width, device=coverage.device, dtype=coverage.dtype)
    center_y = (coverage.sum(2) @ y) / area
    center_x = (coverage.sum(1) @ x) / area

    def distance(cy: Tensor, cx: Tensor) -> Tensor:
        return (y[:, None] - cy[:, None, None]) ** 2 + (x - cx[:, None, None]) ** 2  # (N, h, w), squared

    inside = coverage >= 0.5 * coverage.amax((1, 2), keepdim=True).clamp(max=1.0)
    seed = distance(center_y, center_x).masked_fill(~inside, math.inf).flatten(1).argmin(1)  # (N,)
    spread = (area / math.pi).clamp(min=1.0) / 16
    fall = torch.exp(-distance((seed // width).to(y.dtype), (seed % width).to(y.dtype)) / (2 * spread[:, None, None]))
    return (fall * inside).amax(0)


def seed_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Focal loss of a heat map (CornerNet, arXiv:1808.01244, equation 1, with its alpha 2 and beta 4), summed.

    logits, target (B, h, w); valid (B, h, w) bool.
    """
    probability = logits.sigmoid()
    at_seed = (target == 1) & valid
    miss = (1 - probability) ** 2 * F.softplus(-logits)
    false = (1 - target) ** 4 * probability**2 * F.softplus(logits)
    return (torch.where(at_seed, miss, false) * valid).sum()
