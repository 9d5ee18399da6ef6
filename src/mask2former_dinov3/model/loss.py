"""Mask2Former's criterion: class, mask and dice losses after every layer (arXiv:2112.01527, section 3.3 and 4.1)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .configuration import Mask2FormerDinov3Config
from .matcher import HungarianMatcher, Matches
from .points import RandomPoints, choose_points, sample_features, sample_targets, spread_to_features
from .transformer_decoder import QueryPredictions

# T prediction layers, B batch, Q queries, K classes, E mask channels, N instances of an image, M matched pairs,
# P points that a loss reads, R points it chooses them from


def loss_normalizers(class_labels: list[Tensor], num_queries: int, no_object_weight: float) -> Tensor:
    """What the losses of these images are divided by: (instances, summed class weights of all queries), shape (2,).

    Both are known before the forward pass. Summed over every process and accumulation step of one update and handed
    to the criterion, they make the update equal to that of one big batch. (Hugging Face averages the first per
    process and lets the second differ, so images on a sparse process weigh more.)
    """
    counts = [len(labels) for labels in class_labels]
    matched = [min(count, num_queries) for count in counts]
    weights = sum(m + no_object_weight * (num_queries - m) for m in matched)
    return torch.tensor([float(sum(counts)), float(weights)])


class Mask2FormerCriterion:
    """Matching, then the weighted sum of three losses per layer. Holds no parameters.

    All instances of an image and all layers are compared at the same random points (the reference draws new ones for
    each), so mask features and targets are sampled once per image and no mask is ever made in full. `rand` draws the
    points (a stand-in for torch.rand); tests put fixed points there.
    """

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        self.config = config
        self.rand: RandomPoints = torch.rand
        self.matcher = HungarianMatcher(config.class_weight, config.mask_weight, config.dice_weight)

    def __call__(
        self,
        predictions: QueryPredictions,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        pixel_mask: Tensor | None = None,
        normalizers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses by Hugging Face's names: `loss_cross_entropy`, `loss_mask`, `loss_dice` of the last layer,
        with `_0` … `_{T-2}` appended those of the layers before it.

        mask_labels: B tensors (N, H, W) uint8 or bool; class_labels: B tensors (N,) int64; pixel_mask (B, H, W);
        normalizers (2,): see `loss_normalizers`, by default those of this batch alone. Always in float32.
        """
        with torch.autocast(predictions.mask_features.device.type, enabled=False):
            predictions = QueryPredictions(*(x.float() for x in predictions))
            if not self.config.use_auxiliary_loss:
                predictions = predictions._replace(
                    class_logits=predictions.class_logits[-1:], mask_embeddings=predictions.mask_embeddings[-1:]
                )
            features = predictions.mask_features
            if normalizers is None:
                normalizers = loss_normalizers(class_labels, self.config.num_queries, self.config.no_object_weight)
            num_masks, class_weight = normalizers.to(features.device, torch.float32).clamp(min=1.0)

            num_points = self.config.train_num_points
            uncertain = int(num_points * self.config.importance_sample_ratio)
            candidates = int(num_points * self.config.oversample_ratio)
            extent = real_extent(pixel_mask, features)[:, None]  # (B, 1, 2)
            at_random, to_choose, anywhere = (
                self.rand(len(features), count, 2, device=features.device) * extent
                for count in (num_points, candidates, num_points - uncertain)
            )
            matches = self.matcher(predictions, mask_labels, class_labels, at_random)
            class_losses = self.class_losses(predictions.class_logits, class_labels, matches)
            mask_losses, dice_losses = _MaskLosses.apply(  # type: ignore[no-untyped-call]
                predictions.mask_embeddings,
                features,
                torch.cat([to_choose, anywhere], dim=1),
                mask_labels,
                matches,
                candidates,
                uncertain,
            )

            losses: dict[str, Tensor] = {}
            for layer in range(len(matches)):
                suffix = "" if layer == len(matches) - 1 else f"_{layer}"
                losses[f"loss_cross_entropy{suffix}"] = self.config.class_weight * class_losses[layer] / class_weight
                losses[f"loss_mask{suffix}"] = self.config.mask_weight * mask_losses[layer] / num_masks
                losses[f"loss_dice{suffix}"] = self.config.dice_weight * dice_losses[layer] / num_masks
            return losses

    def class_losses(self, class_logits: Tensor, class_labels: list[Tensor], matches: Matches) -> Tensor:
        """Summed cross entropy of all queries of each layer, (T,); the unmatched are "no object" at its own weight.

        class_logits (T, B, Q, K+1).
        """
        layers, batch, queries, columns = class_logits.shape
        device, num_classes = class_logits.device, columns - 1
        starts = [0, *itertools.accumulate(len(labels) for labels in class_labels)]
        matched = [
            torch.stack(((layer * batch + image) * queries + own, starts[image] + instances))
            for layer, images in enumerate(matches)
            for image, (own, instances) in enumerate(images)
        ]
        place, label = torch.cat(matched, dim=1).to(device)  # (pairs,) into (T*B*Q,) and into the labels of all images
        targets = torch.full((layers * batch * queries,), num_classes, device=device)
        targets[place] = torch.cat(class_labels).to(device)[label]
        weight = torch.ones(columns, device=device)
        weight[-1] = self.config.no_object_weight
        losses = F.cross_entropy(class_logits.flatten(0, 2), targets, weight=weight, reduction="none")
        return losses.view(layers, -1).sum(1)


class _MaskLosses(torch.autograd.Function):
    """Binary cross entropy and dice loss of the matched queries, summed over each layer: two tensors (T,).

    embeddings (T, B, Q, E), features (B, E, h, w); points (B, R, 2), of which the first `candidates` compete for the
    `uncertain` places of each mask and the rest are read by all; mask_labels B x (N, H, W) uint8 or bool.
    One image and one layer at a time, forward and backward: logits (M, R) of more than one never exist together, and
    what is saved grows with the P points that the losses read, not with the image. No double backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        features: Tensor,
        points: Tensor,
        mask_labels: list[Tensor],
        matches: Matches,
        candidates: int,
        uncertain: int,
    ) -> tuple[Tensor, Tensor]:
        sums = embeddings.new_zeros(len(embeddings), 2)
        saved: list[Tensor] = []
        per_image = list(zip(*matches, strict=True))  # [image][layer] -> (query indices, target indices)
        counts = [len(queries) for layers in per_image for queries, _ in layers]
        indices = torch.cat([torch.stack(pair) for layers in per_image for pair in layers], dim=1).to(features.device)
        pairs = iter(indices.split(counts, dim=1))  # (2, M) of each layer of each image, uploaded together
        sampled = features.new_empty(points.shape[1], features.shape[1])  # (R, E), for one image after the other
        for image, at in enumerate(points):
            targets = sample_targets(mask_labels[image], at)  # (N, R)
            sample_features(features[image], at, out=sampled)
            logits = features.new_empty(len(per_image[image][0][0]), len(at))  # (M, R), for one layer after the other
            for layer in range(len(matches)):
                queries, instances = next(pairs)
                torch.mm(embeddings[layer, image, queries], sampled.T, out=logits)
                columns = choose_points(logits, candidates, uncertain)  # (M, P)
                values = logits.gather(1, columns)  # (M, P)
                target = targets.take(columns + instances[:, None] * len(at))  # (M, P)
                entropy = (F.softplus(values).sum(1) - torch.linalg.vecdot(values, target)) / values.shape[1]
                probabilities = values.sigmoid_()
                overlap = 2 * torch.linalg.vecdot(probabilities, target) + 1
                total = probabilities.sum(1) + target.sum(1) + 1
                sums[layer, 0] += entropy.sum()
                sums[layer, 1] += (1 - overlap / total).sum()
                saved += [queries, columns.int(), probabilities, target, overlap, total]
        ctx.save_for_backward(embeddings, features, points, *saved)
        return sums[:, 0], sums[:, 1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_entropy: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, features, points, *saved = ctx.saved_tensors
        grad_embeddings = torch.zeros_like(embeddings)
        grad_features = torch.empty_like(features, memory_format=torch.channels_last)
        parts = list(zip(*[iter(saved)] * 6, strict=True))
        sampled = features.new_empty(points.shape[1], features.shape[1])  # (R, E)
        grad_sampled = torch.empty_like(sampled)
        for image, at in enumerate(points):
            sample_features(features[image], at, out=sampled)
            grad_sampled.zero_()
            grad_logits = features.new_zeros(len(parts[0][0]), len(at))  # (M, R)
            for layer in range(len(embeddings)):
                queries, columns, probabilities, target, overlap, total = parts.pop(0)
                columns = columns.long()
                # d dice / dp = overlap / total^2 - 2 t / total, and dp / dlogit = p (1 - p)
                slope = torch.addcmul((overlap / total**2)[:, None], target, (-2 / total)[:, None])
                slope.mul_(grad_dice[layer]).mul_(torch.addcmul(probabilities, probabilities, probabilities, value=-1))
                slope.add_((probabilities - target).mul_(grad_entropy[layer] / columns.shape[1]))
                grad_logits.scatter_(1, columns, slope)
                grad_embeddings[layer, image, queries] = grad_logits @ sampled
                grad_sampled.addmm_(grad_logits.T, embeddings[layer, image, queries])
                grad_logits.scatter_(1, columns, 0.0)
            grad_features[image] = spread_to_features(grad_sampled, at, *features.shape[2:])
        return grad_embeddings, grad_features, None, None, None, None, None


def real_extent(pixel_mask: Tensor | None, features: Tensor) -> Tensor:
    """Real share of (width, height) of each canvas, (B, 2); real pixels form a rectangle at the top left."""
    if pixel_mask is None:
        return torch.ones(features.shape[0], 2, device=features.device)
    return torch.stack((pixel_mask[:, 0].float().mean(1), pixel_mask[:, :, 0].float().mean(1)), dim=-1)
