"""Sine position embedding of a feature map (DETR, arXiv:2005.12872, section A.4), normalised to the real pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_embedding(valid: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Positions of a map as sines and cosines, the real area spanning (0, 2 pi] on both axes.

    valid (B, h, w) bool: True on real pixels, which must form a rectangle at the top left. channels: even, half of
    them for y and half for x. Returns (B, channels, h, w) float32. Padding gets the position of the nearest real row
    or column, so it tells nothing about how much padding there is.
    """
    y = valid.cumsum(1, dtype=torch.float32)  # (B, h, w)
    x = valid.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    half = channels // 2
    index = torch.arange(half, device=valid.device, dtype=torch.float32)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)  # (half,)
    embeddings = []
    for position in (y, x):
        angle = position[..., None] / frequency  # (B, h, w, half)
        pair = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1)
        embeddings.append(pair.flatten(3))  # (B, h, w, half)
    return torch.cat(embeddings, dim=3).permute(0, 3, 1, 2)  # (B, channels, h, w)
