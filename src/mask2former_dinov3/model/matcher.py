"""Which query answers for which instance: Hungarian matching on sampled points (Mask2Former, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .points import layers_at_once, sample_features, sample_targets
from .transformer_decoder import QueryPredictions

# T prediction layers, B batch, Q queries, K classes, N instances of one image, P points, E mask channels
Matches = list[list[tuple[Tensor, Tensor]]]  # [layer][image] -> (query indices, target indices), each (min(Q, N),)


def pairwise_costs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross entropy and dice loss of every query with every target.

    logits (..., Q, P), targets (N, P) in [0, 1] -> two tensors (..., Q, N).
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

    def __init__(self, class_weight: float, mask_weight: float, dice_weight: float) -> None:
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight

    def cost(self, class_logits: Tensor, mask_logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """class_logits (..., Q, K+1), mask_logits (..., Q, P), labels (N,), targets (N, P) -> cost of each pair,
        (..., Q, N).
        """
        cross_entropy, dice = pairwise_costs(mask_logits, targets)  # (..., Q, N)
        class_cost = -class_logits.softmax(-1)[..., labels]  # (..., Q, N)
        cost = self.mask_weight * cross_entropy + self.class_weight * class_cost + self.dice_weight * dice
        largest = torch.finfo(cost.dtype).max
        return torch.nan_to_num(cost, nan=largest, posinf=largest, neginf=largest)

    @torch.no_grad()
    def __call__(
        self, predictions: QueryPredictions, mask_labels: list[Tensor], class_labels: list[Tensor], points: Tensor
    ) -> Matches:
        """mask_labels: B tensors (N, H, W) uint8 or bool; class_labels: B tensors (N,); points (B, P, 2) in [0, 1]:
        where the masks of an image are compared, in all layers. In the dtype of the predictions.
        """
        costs = []
        buffer = points.new_empty(points.shape[1], predictions.mask_features.shape[1])  # (P, E)
        for image, (masks, labels, at) in enumerate(zip(mask_labels, class_labels, points, strict=True)):
            targets = sample_targets(masks, at)  # (N, P)
            sampled = sample_features(predictions.mask_features[image], at, out=buffer).T  # (E, P)
            logits, embeddings = predictions.class_logits[:, image], predictions.mask_embeddings[:, image]
            some = layers_at_once(points.device, len(logits), logits.shape[1] * len(at))
            costs.append(
                torch.cat(
                    [
                        self.cost(classes, rows @ sampled, labels, targets)
                        for classes, rows in zip(logits.split(some), embeddings.split(some), strict=True)
                    ]
                )
            )  # (T, Q, N)
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
            for layer in range(len(predictions.class_logits))
        ]
