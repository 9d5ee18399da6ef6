"""A spatial prior per query: an ellipse at the query's place, added to its mask logits.

It says where a query is in the one language that the mask product speaks: a quadratic function of the place is a dot
product of six numbers of the query with six of the pixel. Every query's first mask is then a blob on its own object, so
the first matchings mean something and the masked attention looks at the right place from the first step on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# B batch, Q queries, h x w a map, D = hidden_dim
CHANNELS = 6  # 1, x, y, x^2, xy, y^2
UNIT = 16.0  # pixels of the image: places are told in patches of the ViT


def place_channels(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """What a pixel brings to the product, (6, height, width) float32, for a map of this stride."""
    y = ((torch.arange(height, device=device) + 0.5) * (stride / UNIT))[:, None].expand(height, width)
    x = ((torch.arange(width, device=device) + 0.5) * (stride / UNIT))[None].expand(height, width)
    return torch.stack((torch.ones_like(x), x, y, x * x, x * y, y * y))


def prior_logits(embeddings: Tensor, channels: Tensor) -> Tensor:
    """The product itself, in float32 under autocast too: (B, Q, 6) and (6, S) -> (B, Q, S).

    Squares of places are thousands of times as large as the differences that count.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        logits: Tensor = embeddings @ channels.to(embeddings.dtype)
        return logits


class MaskPrior(nn.Module):
    """From a query and its place to what it brings to the product.

    The logit that is added at place p is b (1 - |L (p - c)|^2): b inside, in the middle of an ellipse, 0 on its rim,
    falling off outside. c is the query's place and a learned step from it, L a lower triangular matrix, so that the
    ellipse may have any shape and direction. With zero weights it starts as a disc of one patch of radius, b = 1.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.shape = nn.Linear(hidden_dim, CHANNELS)  # step x, step y, log scale x, log scale y, shear, strength

    def forward(self, queries: Tensor, places: Tensor) -> Tensor:
        """queries (B, Q, D); places (B, Q, 2) in pixels of the image -> (B, Q, 6), never in less than float32."""
        with torch.autocast(queries.device.type, enabled=False):
            own = self.shape(queries.to(self.shape.weight.dtype))  # (B, Q, 6)
            own = own.to(torch.promote_types(own.dtype, torch.float32))
            step_x, step_y, scale_x, scale_y, shear, strength = own.unbind(-1)
            x, y = (places / UNIT).unbind(-1)
            x, y = x + step_x, y + step_y
            a, d, b = scale_x.exp(), scale_y.exp(), 1 + strength
            # |L q|^2 with L = (a 0; s d): (a^2 + s^2) qx^2 + 2 s d qx qy + d^2 qy^2
            xx, xy, yy = a * a + shear * shear, shear * d, d * d
            along_x, along_y = xx * x + xy * y, xy * x + yy * y
            constant = 1 - (x * along_x + y * along_y)
            ellipse = torch.stack((constant, 2 * along_x, 2 * along_y, -xx, -2 * xy, -yy), dim=-1)
            scaled: Tensor = b[..., None] * ellipse  # (B, Q, 6)
            return scaled
