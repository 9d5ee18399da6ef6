"""Where queries are born: at the peaks of a dense score, each on its own object.

The score is trained directly, as a heat map of one point per instance (CenterNet, arXiv:1904.07850, section 3), so that
it points at objects long before the first matching means anything.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import Mask2FormerDinov3Config
from .kernels.memory_layout import as_rows
from .position_embedding import sine_embedding

# B batch, C = feature_size, D = hidden_dim, Q queries, N instances of one image, h x w the finest map (stride 4)
PRIOR = 0.01  # share of places that hold a seed, as far as an untrained score knows (RetinaNet, arXiv:1708.02002)


class Seeds(NamedTuple):
    """The Q places with the best scores."""

    logits: Tensor  # (B, h, w): the score of every place
    places: Tensor  # (B, Q, 2) float32, (x, y) in pixels of the image
    features: Tensor  # (B, Q, D): what the queries start as
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
        """maps (B, C, h, w), the finest; valid (B, h, w) bool: its real pixels, of which there must be one."""
        logits = self.score(maps)[:, 0]  # (B, h, w)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        index = peaks(logits.detach(), valid, self.num_queries)  # (B, Q)
        width = logits.shape[2]
        row = index // width
        places = torch.stack((index - row * width, row), dim=-1) + 0.5  # (B, Q, 2) in pixels of the map
        rows = as_rows(maps)  # (B, h*w, C)
        features = self.features(rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2])))
        real = torch.stack((valid[:, 0].sum(1), valid[:, :, 0].sum(1)), dim=-1)[:, None]  # (B, 1, 2)
        position = self.position(sine_embedding(places / real, features.shape[2]).to(features.dtype))  # (B, Q, D)
        return Seeds(logits, places * self.stride, features, position)


def peaks(logits: Tensor, valid: Tensor, count: int) -> Tensor:
    """The `count` highest of those places that none of their eight neighbours exceeds, then the highest of the rest.

    logits (B, h, w), valid (B, h, w) bool: padding comes last. Returns indices into h*w, (B, count); a map with fewer
    places gives some of them twice.
    """
    highest = F.max_pool2d(logits[:, None], 3, stride=1, padding=1)[:, 0]
    # A thousand is more than any two logits differ by: a peak is above all that are none.
    ranked = torch.where(logits == highest, logits, logits - 1000.0).masked_fill(~valid, -math.inf).flatten(1)
    if ranked.shape[1] >= count:
        return ranked.topk(count, dim=1).indices
    found = ranked.topk(ranked.shape[1], dim=1).indices
    return found.repeat(1, -(-count // found.shape[1]))[:, :count]
