"""Hungarian matching of queries and instances on sampled points (Mask2Former, arXiv:2112.01527, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..transformer_decoder import QueryPredictions
from .mask_places import Places
from .point_sampling import split_work

# T prediction layers, B batch, G images processed together, Q queries, K classes, N instances of one image, P points,
# E mask channels
Matches = list[list[tuple[Tensor, Tensor]]]  # [layer][image] -> (query indices, target indices), each (min(Q, N),)


def pairwise_costs(logits: Tensor, targets: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross entropy and dice loss of every query with every target.

    logits (..., Q, P), targets (..., N, P) in [0, 1]; counts (...,): number of the P places that are not padding ->
    two tensors (..., Q, N).
    """
    # -t log s(x) - (1 - t) log(1 - s(x)) = softplus(x) - t x, so one product with the targets is enough.
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ targets.mT) / counts[..., None, None]
    probabilities = logits.sigmoid()
    overlap = 2 * probabilities @ targets.mT
    dice = 1 - (overlap + 1) / (probabilities.sum(-1, keepdim=True) + targets.sum(-1)[..., None, :] + 1)
    return cross_entropy, dice


class HungarianMatcher:
    """Cheapest one-to-one assignment of queries to instances, for all layers and images.

    An image with N instances gets min(Q, N) pairs per layer; with more instances than queries the most expensive ones
    are not matched. Costs that are not finite count as the largest number.
    """

    def __init__(self, class_weight: float, mask_weight: float, dice_weight: float) -> None:
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight

    def cost(
        self, class_logits: Tensor, mask_logits: Tensor, labels: Tensor, targets: Tensor, counts: Tensor
    ) -> Tensor:
        """Cost of each pair, (G, R, N), for the R queries of G images in one or several layers.

        class_logits (G, R, K+1), mask_logits (G, R, P), labels (G, N), targets (G, N, P), counts (G,).
        """
        cross_entropy, dice = pairwise_costs(mask_logits, targets, counts)
        columns = labels[:, None].expand(-1, class_logits.shape[1], -1)  # (G, R, N)
        class_cost = -class_logits.softmax(-1).gather(2, columns)
        cost = self.mask_weight * cross_entropy + self.class_weight * class_cost + self.dice_weight * dice
        largest = torch.finfo(cost.dtype).max
        return torch.nan_to_num(cost, nan=largest, posinf=largest, neginf=largest)

    @torch.no_grad()
    def __call__(
        self,
        predictions: QueryPredictions,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        places: Places,
    ) -> Matches:
        """Pairs of every layer and image; costs are computed in the dtype of the predictions.

        mask_labels: B tensors (N, H, W) uint8 or bool; class_labels: B tensors (N,); places: where masks are compared,
        in all layers.
        """
        class_logits, embeddings = (x.transpose(0, 1) for x in predictions[:2])  # (B, T, Q, K+1) and (B, T, Q, E)
        (batch, layers, queries, channels), features = embeddings.shape, predictions.mask_features
        device = features.device
        labels = pad_sequence(class_labels, batch_first=True)  # (B, N)
        costs: list[Tensor] = []
        for group in split_work(device, batch, len(places) * channels):
            targets, sampler = places.targets(mask_labels, group), places.sampler(features, group)
            own = labels[group, : targets.shape[1]]
            parts = split_work(device, layers, len(targets) * queries * len(places))
            of_layers = [[x[group, some].flatten(1, 2) for x in (class_logits, embeddings)] for some in parts]
            found = [
                self.cost(logits, sampler.logits(rows), own, targets, places.counts(group))
                for logits, rows in of_layers
            ]
            costs.append(torch.cat(found, dim=1).unflatten(1, (layers, queries)))  # (G, T, Q, N)
        host = torch.cat([cost.flatten() for cost in costs]).cpu()  # one transfer for all layers and images
        blocks = host.split([cost.numel() for cost in costs])
        per_image = [image for block, cost in zip(blocks, costs, strict=True) for image in block.view(cost.shape)]
        return [
            [_assign(image[layer, :, : len(own)]) for image, own in zip(per_image, class_labels, strict=True)]
            for layer in range(layers)
        ]


def _assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs with the smallest total cost, (min(Q, N),) twice; cost (Q, N)."""
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)
