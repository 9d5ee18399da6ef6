"""Spatial prior: an ellipse at the query's place, added to its mask logits.

A quadratic function of the place is a dot product of six numbers of the query and six of the pixel, so the prior is
computed like the masks themselves. Each query's first mask is then a blob on its own object: the first matchings are
meaningful, and masked attention looks at the right place from the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration import VIT_PATCH_SIZE

# B batch, Q queries, h x w a map, D = hidden_dim
CHANNELS = 6  # 1, x, y, x^2, xy, y^2
UNIT = float(VIT_PATCH_SIZE)  # pixels of the image: coordinates are counted in patches of the ViT


def place_channels(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """The pixels' six factors, (6, height, width) float32, of a map of this stride."""
    y = ((torch.arange(height, device=device) + 0.5) * (stride / UNIT))[:, None].expand(height, width)
    x = ((torch.arange(width, device=device) + 0.5) * (stride / UNIT))[None].expand(height, width)
    return torch.stack((torch.ones_like(x), x, y, x * x, x * y, y * y))


def prior_logits(embeddings: Tensor, channels: Tensor) -> Tensor:
    """Multiply (B, Q, 6) and (6, S) to (B, Q, S), in float32 even under autocast.

    Lower precision would fail: squared coordinates are thousands of times larger than the differences that matter.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        logits: Tensor = embeddings @ channels.to(embeddings.dtype)
        return logits


class MaskPrior(nn.Module):
    """Computes the six factors of a query from its place and a learned shape.

    The logit added at place p is b (1 - |L (p - c)|^2): b at the centre of an ellipse, 0 on its boundary, negative
    outside. c is the query's place plus a learned step; L is lower triangular, so that the ellipse can have any shape
    and direction. With zero weights it is a disc with a radius of one patch, and b = 1.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.shape = nn.Linear(hidden_dim, CHANNELS)  # step x, step y, log scale x, log scale y, shear, strength

    def forward(self, queries: Tensor, places: Tensor) -> Tensor:
        """queries (B, Q, D); places (B, Q, 2) in pixels of the image -> (B, Q, 6), never in less than float32."""
        with torch.autocast(queries.device.type, enabled=False):
            step_x, step_y, a, d, shear, b = self._ellipses(queries)
            x, y = (places / UNIT).unbind(-1)
            x, y = x + step_x, y + step_y
            # |L q|^2 with L = (a 0; s d): (a^2 + s^2) qx^2 + 2 s d qx qy + d^2 qy^2
            xx, xy, yy = a * a + shear * shear, shear * d, d * d
            along_x, along_y = xx * x + xy * y, xy * x + yy * y
            constant = 1 - (x * along_x + y * along_y)
            ellipse = torch.stack((constant, 2 * along_x, 2 * along_y, -xx, -2 * xy, -yy), dim=-1)
            scaled: Tensor = b[..., None] * ellipse  # (B, Q, 6)
            return scaled

    def draw(self, queries: Tensor, doubled: Tensor, size: tuple[int, int], stride: int) -> Tensor:
        """The same logits on a map of `size` (h, w) and `stride`, (B, Q, h, w), for exports.

        doubled (B, Q, 2) int64: twice the places in pixels of the image. The product of factors above subtracts large
        numbers to get small ones, and fails in a runtime that computes in bf16 by default, as OpenVINO does where the
        CPU can. Here the difference of two places is taken of whole numbers, so nothing large is rounded.
        """
        step_x, step_y, a, d, shear, b = (one[..., None, None] for one in self._ellipses(queries))  # (B, Q, 1, 1)
        centers = [(2 * torch.arange(side, device=doubled.device) + 1) * stride for side in size]  # also doubled
        x = (centers[1] - doubled[..., 0, None])[:, :, None] / (2 * UNIT) - step_x  # (B, Q, 1, w)
        y = (centers[0] - doubled[..., 1, None])[:, :, :, None] / (2 * UNIT) - step_y  # (B, Q, h, 1)
        along, across = a * x, shear * x + d * y  # L q
        logits: Tensor = b * (1 - (along * along + across * across))
        return logits

    def _ellipses(self, queries: Tensor) -> tuple[Tensor, ...]:
        """Step x and y in patches, a, d and s of L, and b of every query (B, Q, D): six times (B, Q)."""
        weight = self.shape.weight  # of a dynamically quantised layer a function; such layers take float32
        own = self.shape(queries.to(weight.dtype if isinstance(weight, Tensor) else torch.float32))  # (B, Q, 6)
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        step_x, step_y, scale_x, scale_y, shear, strength = own.unbind(-1)
        return step_x, step_y, scale_x.exp(), scale_y.exp(), shear, 1 + strength
