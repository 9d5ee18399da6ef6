"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, section 4.1): one function, four versions.

A CPU uses `deformable_cpu`, a CUDA device the Triton kernels of `deformable_triton`, all other devices the plain
version below, against which the others are tested. An export uses `gather_attention`: gathers and products, which every
runtime computes alike, and positions as integers, which no runtime rounds.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deformable_cpu import bag_attention

# B batch, S tokens of all levels, A attention heads, d channels of a head, L levels, P points per head and level
SpatialShapes = list[tuple[int, int]]  # (h, w) of each level; the levels' tokens follow each other in S
STEPS_PER_PIXEL = 2**14  # of a pixel: positions in an export are whole multiples of its inverse
HAS_TRITON = importlib.util.find_spec("triton") is not None  # installed with torch for CUDA on Linux


def deformable_attention(
    value: Tensor, spatial_shapes: SpatialShapes, positions: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples, zero outside the map (equation 3 of the paper).

    value (B, S, A, d), any float dtype; positions (B, S, A, L, P, 2): (x, y) in pixels of each level, 0 at the outer
    edge of its first pixel, w or h at that of its last; attention_weights (B, S, A, L, P), summing to 1 over L and P.
    Positions and weights are at least float32: in half precision, positions in a large map would be wrong by pixels.
    Sums are computed in the dtype of the weights. Returns (B, S, A * d) in the dtype of `value`.
    """
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    assert value.shape[1] == sum(h * w for h, w in shapes)
    assert positions.shape[3] == len(shapes)
    if value.device.type == "cpu":
        return bag_attention(value, shapes, positions, attention_weights)
    if value.device.type == "cuda" and HAS_TRITON:
        from .deformable_triton import triton_attention

        return triton_attention(value, shapes, positions, attention_weights)
    return plain_attention(value, shapes, positions, attention_weights)


def plain_attention(
    value: Tensor, spatial_shapes: SpatialShapes, positions: Tensor, attention_weights: Tensor
) -> Tensor:
    """The same by grid_sample: the reference. Arguments as in `deformable_attention`."""
    batch, _, heads, width = value.shape
    tokens, levels, points = positions.shape[1], positions.shape[3], positions.shape[4]
    sampled = []
    per_level = value.to(attention_weights.dtype).split([h * w for h, w in spatial_shapes], dim=1)
    for level, (h, w) in enumerate(spatial_shapes):
        level_map = per_level[level].permute(0, 2, 3, 1).reshape(batch * heads, width, h, w)
        x, y = positions[:, :, :, level].unbind(-1)
        grid = torch.stack((x * 2 / w - 1, y * 2 / h - 1), dim=-1)
        grid = grid.transpose(1, 2).flatten(0, 1)  # (B*A, S, P, 2) in [-1, 1]
        sampled.append(F.grid_sample(level_map, grid, align_corners=False))  # (B*A, d, S, P)
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, tokens, levels * points)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)  # (B*A, d, S)
    return output.view(batch, heads * width, tokens).transpose(1, 2).to(value.dtype)  # (B, S, A*d)


def gather_attention(
    value: Tensor, spatial_shapes: SpatialShapes, positions: Tensor, attention_weights: Tensor
) -> Tensor:
    """The same with positions in units of 1 / `STEPS_PER_PIXEL` pixel, int64, for an export. Other arguments as above.

    Without GridSample, which runtimes compile wrongly (NVIDIA/TensorRT issue 4813) or compute in the precision of the
    rest of the graph, in which a position in a large map is wrong by pixels.
    """
    batch, total, heads, width = value.shape
    tokens, levels, points = positions.shape[1], positions.shape[3], positions.shape[4]
    rows = value.to(attention_weights.dtype).transpose(1, 2).reshape(batch * heads * total, width)
    first_rows = (torch.arange(batch * heads, device=value.device) * total).view(batch, 1, heads, 1, 1)
    weights = attention_weights.transpose(1, 2)  # (B, A, S, L, P)
    output: Tensor | None = None
    places = positions - STEPS_PER_PIXEL // 2  # 0 at the centre of the first pixel
    corners = places // STEPS_PER_PIXEL  # (B, S, A, L, P, 2): the pixel left of and above it
    shares = (places - corners * STEPS_PER_PIXEL).to(
        weights.dtype
    ) / STEPS_PER_PIXEL  # of the pixel right of and below it
    starts, start = [], 0
    for h, w in spatial_shapes:
        starts.append(start)
        start = start + h * w
    for down in (0, 1):
        for right in (0, 1):
            index, share = [], []
            for level, (h, w) in enumerate(spatial_shapes):
                x, y = corners[:, :, :, level, :, 0] + right, corners[:, :, :, level, :, 1] + down  # (B, S, A, P)
                inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
                index.append(starts[level] + y.clamp(0, h - 1) * w + x.clamp(0, w - 1))
                along = shares[:, :, :, level, :, 0] if right else 1 - shares[:, :, :, level, :, 0]
                across = shares[:, :, :, level, :, 1] if down else 1 - shares[:, :, :, level, :, 1]
                share.append(along * across * inside)
            chosen = torch.stack(index, dim=3) + first_rows  # (B, S, A, L, P)
            sampled = rows.index_select(0, chosen.transpose(1, 2).reshape(-1))  # (B*A*S*L*P, d)
            sampled = sampled.view(batch, heads, tokens, levels * points, width)
            part = (torch.stack(share, dim=3).transpose(1, 2) * weights).flatten(-2)  # (B, A, S, L*P)
            summed = part.unsqueeze(-2) @ sampled  # (B, A, S, 1, d)
            output = summed if output is None else output + summed
    assert output is not None
    return output.squeeze(-2).transpose(1, 2).flatten(2).to(value.dtype)  # (B, S, A*d)


class MultiScaleDeformableAttention(nn.Module):
    """Every token attends to `num_points` learned places of every level around its own position."""

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
        reference: Tensor,
        spatial_shapes: SpatialShapes,
        valid: Tensor | None,
    ) -> Tensor:
        """hidden_states and position_embeddings (B, S, C); reference (B, S, A, L, P, 2): position of each token in
        pixels of each level (the same for all heads and points), in an export in whole units of 1 / STEPS_PER_PIXEL
        pixel; valid (B, S) bool, None if nothing is padding.

        Values of padding tokens are zero, so padding adds nothing to the output. Returns (B, S, C).
        """
        batch, tokens, _ = hidden_states.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        queries = hidden_states + position_embeddings
        value = self.value_proj(hidden_states)
        if valid is not None:
            value = value.masked_fill(~valid[..., None], 0.0)
        value = value.view(batch, tokens, heads, -1)  # (B, S, A, d)
        offsets = self.sampling_offsets(queries).view(batch, tokens, heads, levels, points, 2)
        weights = self.attention_weights(queries).view(batch, tokens, heads, levels * points)
        with torch.autocast(hidden_states.device.type, enabled=False):
            weights = weights.float().softmax(-1).view(batch, tokens, heads, levels, points)
            if torch.compiler.is_exporting():
                positions = reference + (offsets.float() * STEPS_PER_PIXEL).round().long()
                output = gather_attention(value, spatial_shapes, positions, weights)
            else:
                positions = reference + offsets.float()  # (B, S, A, L, P, 2)
                output = deformable_attention(value, spatial_shapes, positions, weights)  # (B, S, C)
        projected: Tensor = self.output_proj(output)
        return projected
