"""Which part of a padded batch is real: its extent and its pixels at each stride."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def real_pixels(feature_map: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Which places of a map (B, C, h, w) show a real pixel, (B, h, w) bool: one is padding when all its pixels are.

    Real pixels form a rectangle at the top left, so the first pixel of each place tells.
    """
    batch, _, height, width = feature_map.shape
    if pixel_mask is None:
        return torch.ones(batch, height, width, dtype=torch.bool, device=feature_map.device)
    return F.interpolate(pixel_mask[:, None].float(), size=(height, width), mode="nearest")[:, 0] > 0


def real_extent(pixel_mask: Tensor | None, features: Tensor) -> Tensor:
    """Real share of (width, height) of each canvas, (B, 2); real pixels form a rectangle at the top left."""
    if pixel_mask is None:
        return torch.ones(features.shape[0], 2, device=features.device)
    return torch.stack((pixel_mask[:, 0].float().mean(1), pixel_mask[:, :, 0].float().mean(1)), dim=-1)
