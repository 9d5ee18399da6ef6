"""Which query answers for which instance: Hungarian matching on sampled points (Mask2Former, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .points import RandomPoints, sample_logits, sample_targets
from .transformer_decoder import QueryPredictions

# T prediction layers, B batch, Q queries, N instances of one image, P points
Matches = list[list[tuple[Tensor, Tensor]]]  # [layer][image] -> (query indices, target indices), each (min(Q, N),)


def pairwise_costs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross entropy and dice loss of every query with every target.

    logits (T, Q, P), targets (N, P) in [0, 1] -> two tensors (T, Q, N).
    """
    # -t log s(x) - (1 - t) log(1 - s(x)) = softplus(x) - t x, so one product with the targets is enough.
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ targets.T) / logits.shape[-1]
    probabilities = logits.sigmoid()
    overlap = 2 * probabilities @ targets.T
    dice = 1 - (overlap + 1) / (probabilities.sum(-1, keepdim=True) + targets.sum(-1) + 1)
    return cross_entropy, dice


class HungarianMatcher:
    """Cheapest one-to-one assignment of queries to instances, for all layers and images.

    An image with N instances gets min(Q, N) pairs per layer; with more instances than queries the dearest are left
    out. Costs that are not finite count as the dearest of all.
    """

    def __init__(self, class_weight: float, mask_weight: float, dice_weight: float, num_points: int) -> None:
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.num_points = num_points

    @torch.no_grad()
    def __call__(
        self,
        predictions: QueryPredictions,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        extent: Tensor,
        rand: RandomPoints = torch.rand,
    ) -> Matches:
        """mask_labels: B tensors (N, H, W) uint8 or bool; class_labels: B tensors (N,); extent (B, 2): real share of
        (width, height). All layers of an image are compared at the same points.
        """
        class_logits, embeddings, features = (x.float() for x in predictions)
        layers, batch = class_logits.shape[:2]
        points = rand(batch, self.num_points, 2, device=features.device) * extent[:, None]  # (B, P, 2)
        sampled = sample_logits(features, points)  # (B, E, P)
        costs = []
        for image in range(batch):
            targets = sample_targets(mask_labels[image], points[image])  # (N, P)
            cross_entropy, dice = pairwise_costs(embeddings[:, image] @ sampled[image], targets)  # (T, Q, N)
            class_cost = -class_logits[:, image].softmax(-1)[..., class_labels[image]]  # (T, Q, N)
            cost = self.mask_weight * cross_entropy + self.class_weight * class_cost + self.dice_weight * dice
            largest = torch.finfo(cost.dtype).max
            costs.append(torch.nan_to_num(cost, nan=largest, posinf=largest, neginf=largest))
        host = torch.cat([cost.flatten() for cost in costs]).cpu()  # one transfer for all layers and images
        per_image = [
            block.view(cost.shape).numpy()
            for block, cost in zip(host.split([c.numel() for c in costs]), costs, strict=True)
        ]
        return [
            [
                (torch.from_numpy(rows), torch.from_numpy(columns))
                for rows, columns in (linear_sum_assignment(cost[layer]) for cost in per_image)
            ]
            for layer in range(layers)
        ]
