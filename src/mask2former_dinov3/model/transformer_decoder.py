"""Transformer decoder with masked attention (Mask2Former, arXiv:2112.01527, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration import Mask2FormerDinov3Config
from .mask_prior import MaskPrior, place_channels, prior_logits
from .pixel_decoder import NUM_LEVELS
from .position_embedding import sine_position_embedding
from .query_seeds import QuerySeeds, Seeds

# B batch, Q queries, K classes, C = hidden_dim, E = mask_feature_size, A heads, T prediction layers (= decoder_layers),
# S tokens of one memory


class QueryPredictions(NamedTuple):
    """Predictions of the queries after every layer, masks in factored form.

    The mask logits of layer t are `mask_embeddings[t] @ mask_features`. Inference needs this product once, the losses
    only at sampled points and for matched queries. Query seeds add their spatial prior, a product of the same form that
    is always in float32 or more.
    """

    class_logits: Tensor  # (T, B, Q, K+1), last class: no object
    mask_embeddings: Tensor  # (T, B, Q, E)
    mask_features: Tensor  # (B, E, h, w)
    prior_embeddings: Tensor | None = None  # (T, B, Q, 6)
    prior_features: Tensor | None = None  # (6, h, w)
    seed_logits: Tensor | None = None  # (B, h, w) of the finest map
    drawn_prior: Tensor | None = None  # (B, Q, h, w) of the last layer, in exports, instead of the two above

    def mask_logits(self, layer: int) -> Tensor:
        """Dense mask logits of one layer, (B, Q, h, w)."""
        logits = torch.einsum("bqe,behw->bqhw", self.mask_embeddings[layer], self.mask_features)
        if self.drawn_prior is not None:
            return logits + self.drawn_prior
        if self.prior_embeddings is None or self.prior_features is None:
            return logits
        prior = prior_logits(self.prior_embeddings[layer], self.prior_features.flatten(1))  # (B, Q, h*w)
        return logits + prior.view_as(logits)

    def merge_prior(self) -> QueryPredictions:
        """The same in float32, with the prior's channels appended to the others: one product gives the masks."""
        class_logits, embeddings, features = (x.float() for x in self[:3])
        if self.prior_embeddings is not None and self.prior_features is not None:
            embeddings = torch.cat((embeddings, self.prior_embeddings), dim=-1)
            place = self.prior_features.permute(1, 2, 0).expand(len(features), -1, -1, -1)
            features = torch.cat((features.permute(0, 2, 3, 1), place), dim=-1).permute(0, 3, 1, 2)  # channels last
        return QueryPredictions(class_logits, embeddings, features, seed_logits=self.seed_logits)


@dataclass
class QueryStates:
    """What the decoder keeps of its layers on request; lists, in the order of the layers.

    queries T x (B, Q, C): before the first layer and after each. memories: three maps (B, feature_size, h_i, w_i).
    attentions (B, A, Q, Q) and cross_attentions (B, A, Q, S) of every layer if `with_attentions`.
    """

    with_attentions: bool = False
    queries: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)
    cross_attentions: list[Tensor] = field(default_factory=list)
    memories: list[Tensor] = field(default_factory=list)

    def add(self, queries: Tensor, weights: Tensor | None = None, cross_weights: Tensor | None = None) -> None:
        """The queries after a layer, or before the first, and the layer's weights."""
        self.queries.append(queries)
        if self.with_attentions and weights is not None and cross_weights is not None:
            self.attentions.append(weights)
            self.cross_attentions.append(cross_weights)


class Attention(nn.Module):
    """Multi-head attention with the positions added to queries and keys only (DETR, arXiv:2005.12872)."""

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        super().__init__()
        embed_dim = config.hidden_dim
        self.config = config  # its attn_implementation may change
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, output_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """query (B, Q, C); key, value (B, S, C); allowed (B, Q, S) bool, True where a query may attend.

        Every row of `allowed` must hold at least one True. Returns (B, Q, C), and the weights (B, A, Q, S) if they are
        asked for or the configuration's attn_implementation is "eager": one fused operation never makes them.
        """
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, A, Q or S, C/A)
            for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = None if allowed is None else allowed[:, None]  # (B, 1, Q, S)
        weights = None
        if output_weights or self.config._attn_implementation == "eager":
            scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, A, Q, S)
            weights = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)
            output = weights.to(v.dtype) @ v
        else:
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(output.transpose(1, 2).flatten(2)), weights


class DecoderLayer(GradientCheckpointingLayer):
    """Masked cross-attention, self-attention, feed-forward, in this order, each followed by a norm."""

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        super().__init__()
        width = config.hidden_dim
        self.cross_attn = Attention(config)
        self.cross_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.dim_feedforward)
        self.fc2 = nn.Linear(config.dim_feedforward, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activation = ACT2FN[config.activation_function]

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        memory: Tensor,
        placed_memory: Tensor,
        allowed: Tensor,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """queries, query_position (B, Q, C); memory, without and with its position (B, S, C); allowed (B, Q, S).

        Returns (B, Q, C), and the weights of self-attention and cross-attention as `Attention` does.
        """
        attended, cross_weights = self.cross_attn(
            queries + query_position, placed_memory, memory, allowed, output_attentions
        )
        queries = self.cross_attn_layer_norm(queries + attended)
        placed = queries + query_position
        attended, weights = self.self_attn(placed, placed, queries, output_weights=output_attentions)
        queries = self.self_attn_layer_norm(queries + attended)
        queries = self.final_layer_norm(queries + self.fc2(self.activation(self.fc1(queries))))
        return queries, weights, cross_weights


class MaskEmbedder(nn.Sequential):
    """Three-layer perceptron from a query to the weights of its mask product. (B, Q, C) -> (B, Q, E)."""

    def __init__(self, hidden_dim: int, mask_feature_size: int) -> None:
        super().__init__(
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, mask_feature_size),
        )


class TransformerDecoder(nn.Module):
    """Queries attend to the three memories in turn, each within its own previous mask.

    Queries are learned, as published; or they start at the peaks of a dense score (`QuerySeeds`), with the position of
    their place, and add an ellipse there to their masks (`MaskPrior`).
    """

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        super().__init__()
        width = config.hidden_dim
        self.mask_stride = config.mask_stride
        self.seeds = self.mask_prior = None
        if config.query_init == "seeds":
            self.seeds, self.mask_prior = QuerySeeds(config), MaskPrior(width)
        else:
            self.queries_features = nn.Embedding(config.num_queries, width)
            self.queries_embedder = nn.Embedding(config.num_queries, width)  # their positions
        self.level_embed = nn.Embedding(NUM_LEVELS, width)
        project = config.feature_size != width or config.enforce_input_projection
        self.input_projections = nn.ModuleList(
            nn.Conv2d(config.feature_size, width, 1) if project else nn.Identity() for _ in range(NUM_LEVELS)
        )
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers - 1))
        self.layernorm = nn.LayerNorm(width)
        self.class_predictor = nn.Linear(width, config.num_labels + 1)
        self.mask_embedder = MaskEmbedder(width, config.mask_feature_size)

    def forward(
        self,
        mask_features: Tensor,
        fine: Tensor,
        memories: list[Tensor],
        valid: list[Tensor],
        states: QueryStates | None = None,
    ) -> QueryPredictions:
        """Predictions of all layers.

        mask_features (B, E, h, w); fine (B, feature_size, h_0, w_0), the finest map; memories: three maps (B,
        feature_size, h_i, w_i), coarsest first; valid: real pixels of the memories and the finest map, (B, h_i, w_i)
        bool. states: filled if given.
        """
        tokens, placed, attention_features = self._place_memories(mask_features, memories, valid)
        seeds = None
        if self.seeds is None:
            queries = rows_of(self.queries_features, fine.device).expand(fine.shape[0], -1, -1)  # (B, Q, C)
            query_position = rows_of(self.queries_embedder, fine.device).expand(fine.shape[0], -1, -1)
        else:
            seeds = self.seeds(fine, valid[-1])
            queries, query_position = seeds.features, seeds.position

        if states is not None:
            states.memories.extend(memories)
            states.add(queries)
        class_logits, mask_embeddings, prior_embeddings = [], [], []
        for index in range(len(self.layers) + 1):
            normed = self.layernorm(queries)
            class_logits.append(self.class_predictor(normed))  # (B, Q, K+1)
            mask_embeddings.append(self.mask_embedder(normed))  # (B, Q, E)
            if seeds is not None and self.mask_prior is not None and not torch.compiler.is_exporting():
                prior_embeddings.append(self.mask_prior(normed, seeds.places))  # (B, Q, 6)
            if index == len(self.layers):
                break
            level = index % NUM_LEVELS
            logits = mask_embeddings[-1].detach() @ attention_features[level]  # (B, Q, S)
            if seeds is not None and torch.compiler.is_exporting():
                logits = logits + self._draw_prior(normed, seeds, mask_features, memories[level]).flatten(2)
            elif seeds is not None:
                channels = self._prior_features(mask_features, memories[level]).flatten(1)  # (6, S)
                logits = logits + prior_logits(prior_embeddings[-1].detach(), channels)
            allowed = attention_mask(logits, valid[level])
            with_attentions = states is not None and states.with_attentions
            layer_inputs = (query_position, tokens[level], placed[level], allowed)
            queries, *weights = self.layers[index](queries, *layer_inputs, with_attentions)
            if states is not None:
                states.add(queries, *weights)
        predictions = QueryPredictions(torch.stack(class_logits), torch.stack(mask_embeddings), mask_features)
        if seeds is None:
            return predictions
        if torch.compiler.is_exporting():
            return predictions._replace(drawn_prior=self._draw_prior(normed, seeds, mask_features, mask_features))
        return predictions._replace(
            prior_embeddings=torch.stack(prior_embeddings),
            prior_features=self._prior_features(mask_features, mask_features),
            seed_logits=seeds.logits,
        )

    def _place_memories(
        self, mask_features: Tensor, memories: list[Tensor], valid: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of each memory: its tokens (B, S, C), without and with their position, and the mask features (B, E, S)."""
        tokens, placed, attention_features = [], [], []
        level_embed = rows_of(self.level_embed, mask_features.device)
        for level, memory in enumerate(memories):
            tokens.append(
                self.input_projections[level](memory).flatten(2).transpose(1, 2) + level_embed[level]
            )  # (B, S, C)
            position = sine_position_embedding(valid[level], tokens[-1].shape[2])
            placed.append(tokens[-1] + position.flatten(2).transpose(1, 2).to(tokens[-1].dtype))  # (B, S, C)
            attention_features.append(_resize_features(mask_features, memory.shape[2], memory.shape[3]))  # (B, E, S)
        return tokens, placed, attention_features

    def _prior_features(self, mask_features: Tensor, like: Tensor) -> Tensor:
        """The pixels' factors of the prior, (6, h, w); the map's stride follows from that of the mask features."""
        height, width = like.shape[2:]
        return place_channels(height, width, self._stride_of(mask_features, like), like.device)

    def _draw_prior(self, normed: Tensor, seeds: Seeds, mask_features: Tensor, like: Tensor) -> Tensor:
        """The prior of the queries on a map, (B, Q, h, w)."""
        assert self.mask_prior is not None
        size = (like.shape[2], like.shape[3])
        return self.mask_prior.draw(normed, seeds.doubled, size, self._stride_of(mask_features, like))

    def _stride_of(self, mask_features: Tensor, like: Tensor) -> int:
        stride: int = self.mask_stride * mask_features.shape[2] // like.shape[2]
        return stride


def rows_of(table: nn.Embedding, device: torch.device) -> Tensor:
    """All rows of a table, by a call of it: where accelerate offloads weights, the call brings them to the device."""
    rows: Tensor = table(torch.arange(table.num_embeddings, device=device))
    return rows


def _resize_features(mask_features: Tensor, height: int, width: int) -> Tensor:
    """Resize mask features to a coarser grid, (B, E, h, w) -> (B, E, height * width), without gradient.

    Bilinear resizing and the mask product are both linear, so resizing the features once per level gives the same
    attention masks as resizing every query's mask at every layer.
    """
    resized = F.interpolate(mask_features.detach(), size=(height, width), mode="bilinear", align_corners=False)
    return resized.flatten(2)


def attention_mask(mask_logits: Tensor, valid: Tensor) -> Tensor:
    """Where each query may attend: within its own mask (equation 1 of the paper), never to padding.

    mask_logits (B, Q, S); valid (B, h, w) bool with h * w = S. A query whose mask has no real pixel attends to all real
    pixels. Returns (B, Q, S) bool.
    """
    real = valid.flatten(1)[:, None]  # (B, 1, S)
    inside = (mask_logits >= 0) & real  # (B, Q, S)
    return real & (inside | ~inside.any(-1, keepdim=True))
