"""Pixel decoder: deformable encoder over strides 32, 16, 8 and an FPN step to stride 4 (Mask2Former, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import Mask2FormerDinov3Config
from .deformable_attention import MultiScaleDeformableAttention, SpatialShapes
from .position import sine_position_embedding

# B batch, C = feature_size, S tokens of the three coarse levels, L = 3 levels
NUM_LEVELS = 3


def reference_points(valid_ratios: Tensor, spatial_shapes: SpatialShapes) -> Tensor:
    """Each token's own place, expressed on every level (Deformable DETR, appendix A.4: "valid ratios").

    valid_ratios (B, L, 2): real share of (width, height) of each level. Returns (B, S, L, 2), (x, y) in [0, 1].
    """
    per_level = []
    for level, (h, w) in enumerate(spatial_shapes):
        real = valid_ratios[:, level] * valid_ratios.new_tensor([w, h])  # (B, 2)
        y = torch.arange(0.5, h, device=real.device)[:, None] / real[:, 1, None, None]  # (B, h, 1)
        x = torch.arange(0.5, w, device=real.device)[None, :] / real[:, 0, None, None]  # (B, 1, w)
        per_level.append(torch.stack(torch.broadcast_tensors(x, y), dim=-1).flatten(1, 2))  # (B, h*w, 2)
    points = torch.cat(per_level, dim=1)  # (B, S, 2), 1.0 at the end of the real area
    return points[:, :, None] * valid_ratios[:, None]  # (B, S, L, 2)


class PixelDecoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each followed by a norm."""

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        super().__init__()
        width = config.feature_size
        self.self_attn = MultiScaleDeformableAttention(width, config.num_attention_heads, NUM_LEVELS)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_feedforward_dim)
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, hidden_states: Tensor, position: Tensor, reference: Tensor, shapes: SpatialShapes, valid: Tensor
    ) -> Tensor:
        """hidden_states (B, S, C) -> (B, S, C); the other arguments as in `MultiScaleDeformableAttention`."""
        attended = self.self_attn(hidden_states, position, reference, shapes, valid)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        hidden_states = self.final_layer_norm(hidden_states + self.fc2(F.relu(self.fc1(hidden_states))))
        return hidden_states


class PixelDecoder(nn.Module):
    """Four feature maps become three memories for the transformer decoder and one map of mask features."""

    def __init__(self, config: Mask2FormerDinov3Config, in_channels: list[int]) -> None:
        super().__init__()
        width = config.feature_size
        # In the order of the encoder: stride 32 first.
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(32, width)) for channels in in_channels[:0:-1]
        )
        self.level_embed = nn.Parameter(torch.zeros(NUM_LEVELS, width))
        self.layers = nn.ModuleList(PixelDecoderLayer(config) for _ in range(config.encoder_layers))
        self.lateral = nn.Sequential(nn.Conv2d(in_channels[0], width, 1, bias=False), nn.GroupNorm(32, width))
        self.output = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(32, width), nn.ReLU()
        )
        self.mask_projection = nn.Conv2d(width, config.mask_feature_size, 1)

    def forward(self, feature_maps: list[Tensor], valid: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """feature_maps: four maps, finest first; valid: their real pixels, (B, h_i, w_i) bool.

        Padding is set to zero before anything mixes neighbours or takes statistics, so what stands there has no
        influence. Returns mask_features (B, mask_feature_size, h_0, w_0) and the memories of the three coarser maps,
        coarsest first, each (B, C, h, w).
        """
        feature_maps = [x.masked_fill(~v[:, None], 0.0) for x, v in zip(feature_maps, valid, strict=True)]
        coarse, coarse_valid = feature_maps[:0:-1], valid[:0:-1]
        shapes = [(x.shape[2], x.shape[3]) for x in coarse]
        projected = [project(x) for project, x in zip(self.input_projections, coarse, strict=True)]
        hidden_states = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], dim=1)  # (B, S, C)
        width = hidden_states.shape[2]
        position = torch.cat(
            [
                sine_position_embedding(v, width).flatten(2).transpose(1, 2) + self.level_embed[level]
                for level, v in enumerate(coarse_valid)
            ],
            dim=1,
        ).to(hidden_states.dtype)  # (B, S, C)
        ratios = torch.stack(
            [torch.stack((v[:, 0].float().mean(1), v[:, :, 0].float().mean(1)), dim=-1) for v in coarse_valid], dim=1
        )  # (B, L, 2)
        reference = reference_points(ratios, shapes)
        valid_tokens = torch.cat([v.flatten(1) for v in coarse_valid], dim=1)  # (B, S)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position, reference, shapes, valid_tokens)
        memories = [
            x.transpose(1, 2).unflatten(2, shape)
            for x, shape in zip(hidden_states.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
        ]
        fine = self.lateral(feature_maps[0])
        fine = fine + F.interpolate(memories[-1], size=fine.shape[2:], mode="bilinear", align_corners=False)
        # The 3x3 convolution would carry whatever the lateral norm wrote into the padding back over its edge.
        fine = self.output(fine.masked_fill(~valid[0][:, None], 0.0))
        return self.mask_projection(fine), memories
