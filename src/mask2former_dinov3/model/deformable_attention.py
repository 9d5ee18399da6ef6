"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, section 4.1) in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# B batch, S tokens of all levels, A attention heads, d channels of a head, L levels, P points per head and level
SpatialShapes = list[tuple[int, int]]  # (h, w) of each level; the levels' tokens follow each other in S


def deformable_attention(
    value: Tensor, spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples, zero outside the map (equation 3 of the paper).

    value (B, S, A, d); sampling_locations (B, S, A, L, P, 2): (x, y), where [0, 1] spans a level from the outer edge
    of its first pixel to that of its last; attention_weights (B, S, A, L, P), summing to 1 over L and P.
    Returns (B, S, A * d) in the dtype of `value`.
    """
    batch, _, heads, width = value.shape
    tokens, levels, points = sampling_locations.shape[1], sampling_locations.shape[3], sampling_locations.shape[4]
    assert levels == len(spatial_shapes)
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)  # (B*A, S, L, P, 2)
    sampled = []
    per_level = value.split([h * w for h, w in spatial_shapes], dim=1)
    for level, (h, w) in enumerate(spatial_shapes):
        level_map = per_level[level].permute(0, 2, 3, 1).reshape(batch * heads, width, h, w)
        sampled.append(F.grid_sample(level_map, grids[:, :, level], align_corners=False))  # (B*A, d, S, P)
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, tokens, levels * points)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)  # (B*A, d, S)
    return output.view(batch, heads * width, tokens).transpose(1, 2)  # (B, S, A*d)


class MultiScaleDeformableAttention(nn.Module):
    """Every token looks at `num_points` learned places of every level around its own position."""

    def __init__(self, embed_dim: int, num_heads: int, num_levels: int = 3, num_points: int = 4) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor,
        reference_points: Tensor,
        spatial_shapes: SpatialShapes,
        valid: Tensor,
    ) -> Tensor:
        """hidden_states and position_embeddings (B, S, C); reference_points (B, S, L, 2) in [0, 1]; valid (B, S) bool.

        Values of padded tokens are zero, so padding adds nothing to any output. Returns (B, S, C).
        """
        batch, tokens, _ = hidden_states.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        queries = hidden_states + position_embeddings
        value = self.value_proj(hidden_states).masked_fill(~valid[..., None], 0.0)
        value = value.view(batch, tokens, heads, -1)  # (B, S, A, d)
        offsets = self.sampling_offsets(queries).view(batch, tokens, heads, levels, points, 2)
        weights = self.attention_weights(queries).view(batch, tokens, heads, levels * points)
        # Positions in half precision would be off by pixels at the far end of a large map: float32 from here on.
        with torch.autocast(hidden_states.device.type, enabled=False):
            size = torch.tensor([(w, h) for h, w in spatial_shapes], device=offsets.device, dtype=torch.float32)
            locations = reference_points[:, :, None, :, None] + offsets.float() / size[:, None]  # (B, S, A, L, P, 2)
            weights = weights.float().softmax(-1).view(batch, tokens, heads, levels, points)
            output = deformable_attention(value.float(), spatial_shapes, locations, weights)  # (B, S, C)
        projected: Tensor = self.output_proj(output.to(value.dtype))
        return projected
