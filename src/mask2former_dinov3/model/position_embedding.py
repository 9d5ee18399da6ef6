"""Sine position embedding of feature maps (DETR, arXiv:2005.12872, section A.4), normalised to the real pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_embedding(valid: Tensor, channels: int) -> Tensor:
    """Sines and cosines of the positions in a map whose real area spans (0, 2 pi] on both axes.

    valid (B, h, w) bool: True on real pixels, which must form a rectangle in the top left corner. channels: even, half
    of them for y and half for x. Returns (B, channels, h, w) float32. Padding gets the position of the nearest real row
    or column, so that the embedding does not depend on the amount of padding.
    """
    y = valid.cumsum(1, dtype=torch.float32)  # (B, h, w)
    x = valid.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6)
    x = x / (x[:, :, -1:] + 1e-6)
    return sine_embedding(torch.stack((x, y), dim=-1), channels).permute(0, 3, 1, 2)  # (B, channels, h, w)


def sine_embedding(places: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Embedding of single places (..., 2): (x, y) as fractions of the real area -> (..., channels) float32."""
    half = channels // 2
    index = torch.arange(half, device=places.device, dtype=torch.float32)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)  # (half,)
    embeddings = []
    for place in (places[..., 1], places[..., 0]):
        angle = (place * (2 * math.pi))[..., None] / frequency  # (..., half)
        pair = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1)
        embeddings.append(pair.flatten(-2))
    return torch.cat(embeddings, dim=-1)
