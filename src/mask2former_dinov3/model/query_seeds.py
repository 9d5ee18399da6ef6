"""Query seeds: queries start at the peaks of a dense score, each on one object.

The score is trained directly, as a heat map with one point per instance (CenterNet, arXiv:1904.07850, section 3), so
that it finds objects before the matching of queries and instances is meaningful.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import Mask2FormerDinov3Config
from .kernels.memory_layout import as_rows
from .padding import real_sides
from .position_embedding import sine_embedding

# B batch, C = feature_size, D = hidden_dim, Q queries, N instances of one image, h x w the finest map (stride 4)
SEED_PRIOR = 0.01  # probability of a seed that an untrained score predicts everywhere (RetinaNet, arXiv:1708.02002)


class Seeds(NamedTuple):
    """The Q places with the highest scores."""

    logits: Tensor  # (B, h, w): score of every place
    places: Tensor  # (B, Q, 2) float32, (x, y) in pixels of the image
    doubled: Tensor  # (B, Q, 2) int64: twice the places, which are halves; no runtime rounds integers
    features: Tensor  # (B, Q, D): initial queries
    position: Tensor  # (B, Q, D): their position embedding


class QuerySeeds(nn.Module):
    """Scores every place of the finest feature map and starts the queries at the best peaks."""

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        super().__init__()
        self.num_queries, self.stride = config.num_queries, config.finest_stride
        width = config.feature_size
        self.score = nn.Sequential(
            nn.Conv2d(width, width // 2, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 2, 1, 1),
        )
        self.features = nn.Linear(width, config.hidden_dim)
        self.position = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(self, maps: Tensor, valid: Tensor) -> Seeds:
        """maps (B, C, h, w), the finest; valid (B, h, w) bool: its real pixels, at least one per image."""
        logits = self.score(maps)[:, 0]  # (B, h, w)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        index = find_peaks(logits.detach(), valid, self.num_queries)  # (B, Q)
        width = logits.shape[2]
        row = index // width
        cells = torch.stack((index - row * width, row), dim=-1)  # (B, Q, 2) of the map
        places = cells + 0.5  # (B, Q, 2) in pixels of the map
        rows = as_rows(maps)  # (B, h*w, C)
        features = self.features(rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2])))
        real = real_sides(valid)[:, None]  # (B, 1, 2)
        position = self.position(sine_embedding(places / real, features.shape[2]).to(features.dtype))  # (B, Q, D)
        return Seeds(logits, places * self.stride, (2 * cells + 1) * self.stride, features, position)


def find_peaks(logits: Tensor, valid: Tensor, count: int) -> Tensor:
    """Find the `count` highest local maxima (no neighbour of eight is higher), then the highest other places.

    logits (B, h, w); valid (B, h, w) bool: padding comes last. Returns indices into h*w, (B, count); a map with fewer
    places returns some of them twice.
    """
    highest = F.max_pool2d(logits[:, None], 3, stride=1, padding=1)[:, 0]
    # Logits never differ by 1000, so subtracting it ranks every peak above every other place.
    ranked = torch.where(logits == highest, logits, logits - 1000.0).masked_fill(~valid, -math.inf).flatten(1)
    if ranked.shape[1] >= count:
        return ranked.topk(count, dim=1).indices
    found = ranked.topk(ranked.shape[1], dim=1).indices
    return found.repeat(1, -(-count // found.shape[1]))[:, :count]
