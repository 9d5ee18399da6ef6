"""Find the real part of padded batches: as a fraction of the canvas, and as pixels of a feature map.

Real pixels always form a rectangle in the top left corner of the canvas.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def real_pixels(feature_map: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Which pixels of a map (B, C, h, w) show a real pixel of the image, (B, h, w) bool; None: all.

    A pixel of the map is padding if all image pixels in it are; since the real ones are top left, its first one tells.
    """
    batch, _, height, width = feature_map.shape
    if pixel_mask is None:
        return torch.ones(batch, height, width, dtype=torch.bool, device=feature_map.device)
    return F.interpolate(pixel_mask[:, None].float(), size=(height, width), mode="nearest")[:, 0] > 0


def real_extent(pixel_mask: Tensor | None, features: Tensor) -> Tensor:
    """Real fraction of (width, height) of each canvas, (B, 2) float32."""
    if pixel_mask is None:
        return torch.ones(features.shape[0], 2, device=features.device)
    return torch.stack((pixel_mask[:, 0].float().mean(1), pixel_mask[:, :, 0].float().mean(1)), dim=-1)


def real_sides(valid: Tensor) -> Tensor:
    """(width, height) in pixels of the real part of each map, (B, 2) int64, from `real_pixels` (B, h, w)."""
    return torch.stack((valid[:, 0].sum(1), valid[:, :, 0].sum(1)), dim=-1)
