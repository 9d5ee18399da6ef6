"""Pixel decoder: deformable encoder over strides 32, 16, 8 and an FPN step to stride 4 (Mask2Former, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration import NORM_GROUPS, Mask2FormerDinov3Config
from .kernels.convolution import Conv2d
from .kernels.deformable_attention import STEPS_PER_PIXEL, MultiScaleDeformableAttention, SpatialShapes
from .padding import real_sides
from .position_embedding import sine_position_embedding

# B batch, C = feature_size, S tokens of the three coarse levels, L = 3 levels
NUM_LEVELS = 3  # of the encoder, and memories of the transformer decoder
NUM_POINTS = 4  # of deformable attention, per head and level
FEED_FORWARD_TOKENS = 4096  # tokens per chunk of the feed-forward part, on a CPU


def reference_points(real: Tensor, spatial_shapes: SpatialShapes, heads: int, points: int) -> Tensor:
    """Position of each token in pixels of every level (Deformable DETR, appendix A.4: "valid ratios").

    real (B, L, 2) int64: real (width, height) of each level in pixels. Returns (x, y), (B, S, A, L, P, 2), the same
    for all heads and points; expanded once here, because broadcasting it in every layer is slower. In an export int64,
    in units of 1 / STEPS_PER_PIXEL pixel: a runtime may compute floats in bf16, in which 100.5 is 100.
    """
    if torch.compiler.is_exporting():
        return _whole_reference_points(real, spatial_shapes, heads, points)
    real = real.float()
    per_level = []
    for level, (h, w) in enumerate(spatial_shapes):
        # Not arange(0.5, h): an exporter does not see that its length is h.
        y = (torch.arange(h, device=real.device) + 0.5)[:, None] / real[:, level, 1, None, None]  # (B, h, 1)
        x = (torch.arange(w, device=real.device) + 0.5)[None, :] / real[:, level, 0, None, None]  # (B, 1, w)
        per_level.append(torch.stack(torch.broadcast_tensors(x, y), dim=-1).flatten(1, 2))  # (B, h*w, 2)
    places = torch.cat(per_level, dim=1)[:, :, None] * real[:, None]  # (B, S, L, 2)
    return places[:, :, None, :, None].expand(-1, -1, heads, -1, points, -1).contiguous()


def _whole_reference_points(real: Tensor, spatial_shapes: SpatialShapes, heads: int, points: int) -> Tensor:
    """`reference_points` in whole units; no product exceeds 32 bits, in which some runtimes compute integers."""

    def scale(size: int, side: int, level: int) -> Tensor:
        """Centres of `size` pixels along one side of a level, on the same side of all levels: (B, size, L)."""
        halves = (2 * torch.arange(size, device=real.device) + 1)[None, :, None] * real[:, None, :, side]
        own = 2 * real[:, None, level : level + 1, side]
        whole = halves // own
        return whole * STEPS_PER_PIXEL + (halves - whole * own) * STEPS_PER_PIXEL // own

    per_level = []
    for level, (h, w) in enumerate(spatial_shapes):
        x, y = scale(w, 0, level)[:, None], scale(h, 1, level)[:, :, None]  # (B, 1, w, L), (B, h, 1, L)
        per_level.append(torch.stack(torch.broadcast_tensors(x, y), dim=-1).flatten(1, 2))  # (B, h*w, L, 2)
    places = torch.cat(per_level, dim=1)
    return places[:, :, None, :, None].expand(-1, -1, heads, -1, points, -1).contiguous()


class PixelDecoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention and feed-forward, each followed by a norm."""

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        super().__init__()
        width = config.feature_size
        self.self_attn = MultiScaleDeformableAttention(width, config.num_attention_heads, NUM_LEVELS, NUM_POINTS)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_feedforward_dim)
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, hidden_states: Tensor, position: Tensor, reference: Tensor, shapes: SpatialShapes, valid: Tensor
    ) -> Tensor:
        """hidden_states (B, S, C) -> (B, S, C); the other arguments as in `MultiScaleDeformableAttention`."""
        attended = self.self_attn(hidden_states, position, reference, shapes, valid)
        if hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
            return self._feed_forward(hidden_states, attended)
        # On a CPU allocating large buffers costs more than the arithmetic, and the wide activations would need many:
        # in chunks of tokens that the backward pass computes again, this is faster than all tokens at once.
        some = max(1, FEED_FORWARD_TOKENS // len(hidden_states))
        pairs = zip(hidden_states.split(some, dim=1), attended.split(some, dim=1), strict=True)
        done = [checkpoint(self._feed_forward, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
        return torch.cat(done, dim=1)

    def _feed_forward(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """Norm, feed-forward, norm after the attention: (B, n, C) twice -> (B, n, C)."""
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        # In place saves memory, but with autograd it would copy, since a linear layer's output is a view.
        wide = F.relu(self.fc1(hidden_states), inplace=not torch.is_grad_enabled())  # (B, n, encoder_feedforward_dim)
        done: Tensor = self.final_layer_norm(hidden_states + self.fc2(wide))
        return done


class PixelDecoder(nn.Module):
    """Makes three memories for the transformer decoder and one map of mask features from four feature maps."""

    def __init__(self, config: Mask2FormerDinov3Config, in_channels: list[int]) -> None:
        super().__init__()
        width = config.feature_size
        self.num_heads = config.num_attention_heads
        # In the order of the encoder: stride 32 first.
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(NORM_GROUPS, width))
            for channels in in_channels[:-4:-1]
        )
        self.level_embed = nn.Parameter(torch.zeros(NUM_LEVELS, width))
        self.layers = nn.ModuleList(PixelDecoderLayer(config) for _ in range(config.encoder_layers))
        self.lateral = nn.Sequential(nn.Conv2d(in_channels[-4], width, 1, bias=False), nn.GroupNorm(NORM_GROUPS, width))
        self.output = nn.Sequential(
            Conv2d(width, width, 3, padding=1), nn.GroupNorm(NORM_GROUPS, width), nn.ReLU(inplace=True)
        )
        if config.mask_stride == config.finest_stride:
            self.mask_projection: nn.Module = nn.Conv2d(width, config.mask_feature_size, 1)
        else:  # each pixel becomes 2 x 2
            self.mask_projection = nn.ConvTranspose2d(width, config.mask_feature_size, 2, stride=2)
        self.detail_projections = nn.ModuleList(nn.Conv2d(x, config.mask_feature_size, 1) for x in in_channels[:-4])

    def forward(self, feature_maps: list[Tensor], valid: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """feature_maps: four maps, finest first; before them the neck's detail map at the mask stride, if it has one,
        which is added to the mask features. valid: the real pixels of all maps, (B, h_i, w_i) bool.

        Padding is set to zero before any operation that mixes neighbours or takes statistics, so its values have no
        influence. Returns mask_features (B, mask_feature_size, H/s, W/s) for mask stride s, the finest map (B, C, h_0,
        w_0) from which they are computed, and three memories (B, C, h, w) of the coarser maps, coarsest first.
        """
        details = [torch.where(v[:, None], x, 0.0) for x, v in zip(feature_maps[:-4], valid[:-4], strict=True)]
        feature_maps, valid = feature_maps[-4:], valid[-4:]
        coarse_valid = valid[:0:-1]
        # torch.where keeps maps channels last, which the convolutions need to be fast; masked_fill would not.
        coarse = [torch.where(v[:, None], x, 0.0) for x, v in zip(feature_maps[:0:-1], coarse_valid, strict=True)]
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
        real = torch.stack([real_sides(v) for v in coarse_valid], dim=1)  # (B, L, 2)
        reference = reference_points(real, shapes, self.num_heads, NUM_POINTS)  # (B, S, A, L, P, 2)
        valid_tokens = torch.cat([v.flatten(1) for v in coarse_valid], dim=1)  # (B, S)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position, reference, shapes, valid_tokens)
        memories = [
            x.unflatten(1, shape).permute(0, 3, 1, 2)
            for x, shape in zip(hidden_states.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
        ]
        projection, norm = self.lateral
        # The projection has no bias, so zeros may be set after it. Not in place: torch 2.13 compiles a wrong gradient
        # of a convolution whose output is filled in place.
        fine_valid = valid[0][:, None]
        fine = norm(torch.where(fine_valid, projection(feature_maps[0]), 0.0))
        fine += F.interpolate(memories[-1], size=fine.shape[2:], mode="bilinear", align_corners=False)
        # Otherwise the 3x3 convolution would mix into real pixels what the lateral norm wrote into the padding.
        fine = self.output(fine.masked_fill_(~fine_valid, 0.0))
        mask_features = self.mask_projection(fine)  # (B, E, H/s, W/s)
        for project, detail in zip(self.detail_projections, details, strict=True):
            mask_features = mask_features + project(detail)
        return mask_features, fine, memories
