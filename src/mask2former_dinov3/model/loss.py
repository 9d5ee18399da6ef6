"""Mask2Former's criterion: class, mask and dice losses after every layer (arXiv:2112.01527, section 3.3 and 4.1)."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .configuration import Mask2FormerDinov3Config
from .matcher import HungarianMatcher, Matches
from .points import RandomPoints, choose_points, in_parts, mask_sampler, sample_targets
from .transformer_decoder import QueryPredictions

# T prediction layers, t of them, B batch, G images of it, Q queries, K classes, E mask channels, N instances of an
# image, M matched pairs, P points that a loss reads, R points it chooses them from


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

    # The matching leaves the device, and numbers of instances differ from batch to batch.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
    Some images and some layers at a time, forward and backward: logits (M, R) of all never exist together, and what
    is saved grows with the P points that the losses read, not with the image. No double backward.
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
        groups = _groups(matches, points, features.shape[1])
        for group in groups:
            at = points[group.images]
            targets = sample_targets(mask_labels[group.images], at)  # (G, N, R)
            first = torch.arange(len(at), device=at.device)[:, None, None] * targets.shape[1]  # (G, 1, 1)
            sampler = mask_sampler(features[group.images], at)
            for layers in group.parts:
                logits = sampler.logits(group.rows(embeddings, layers)).flatten(0, 1)  # (G*t*M, R)
                columns = choose_points(logits, candidates, uncertain)  # (G*t*M, P)
                values = logits.gather(1, columns)
                row = (first + group.instances[:, layers]).reshape(-1, 1)  # (G*t*M, 1) into (G*N, R)
                target = targets.take(row * targets.shape[2] + columns)  # (G*t*M, P)
                entropy = (F.softplus(values).sum(1) - torch.linalg.vecdot(values, target)) / values.shape[1]
                probabilities = values.sigmoid_()
                overlap = 2 * torch.linalg.vecdot(probabilities, target) + 1
                total = probabilities.sum(1) + target.sum(1) + 1
                for column, loss in enumerate((entropy, 1 - overlap / total)):
                    sums[layers, column] += (loss.view(group.shape(layers)) * group.real).sum((0, 2))
                saved += [columns.int(), probabilities, target, overlap, total]
        ctx.save_for_backward(embeddings, features, points, *saved)
        ctx.groups = groups
        return sums[:, 0], sums[:, 1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_entropy: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, features, points, *saved = ctx.saved_tensors
        groups: list[_Group] = ctx.groups
        grad_embeddings = torch.zeros_like(embeddings)
        grad_features = torch.empty_like(features, memory_format=torch.channels_last)
        parts = iter(zip(*[iter(saved)] * 5, strict=True))
        for group in groups:
            at = points[group.images]
            sampler = mask_sampler(features[group.images], at)
            grad_logits = features.new_zeros(math.prod(group.shape(group.parts[0])), at.shape[1])  # (G*t*M, R)
            for layers in group.parts:
                columns, probabilities, target, overlap, total = next(parts)
                columns = columns.long()
                along_entropy, along_dice = (
                    (grad[layers, None] * group.real).reshape(-1, 1) for grad in (grad_entropy, grad_dice)
                )  # (G*t*M, 1)
                # d dice / dp = overlap / total^2 - 2 t / total, and dp / dlogit = p (1 - p)
                slope = torch.addcmul((overlap / total**2)[:, None], target, (-2 / total)[:, None])
                slope.mul_(along_dice).mul_(torch.addcmul(probabilities, probabilities, probabilities, value=-1))
                slope.add_((probabilities - target).mul_(along_entropy / columns.shape[1]))
                grad = grad_logits[: len(slope)].scatter_(1, columns, slope).unflatten(0, (len(at), -1))  # (G, t*M, R)
                grad_rows = sampler.backward(grad, group.rows(embeddings, layers))  # (G, t*M, E)
                group.add_rows(grad_embeddings, layers, grad_rows)
                grad_logits[: len(slope)].scatter_(1, columns, 0.0)
            grad_features[group.images] = sampler.grad_features()
        return grad_embeddings, grad_features, None, None, None, None, None


class _Group(NamedTuple):
    """G images that are worked on together, and M matched pairs of each layer and image, the most that one has."""

    images: slice
    queries: Tensor  # (G, T, M); 0 where an image has fewer pairs
    instances: Tensor
    real: Tensor  # (G, 1, M) float32; 0 there, else 1
    parts: list[slice]  # layers that are worked on together

    def shape(self, layers: slice) -> tuple[int, int, int]:
        """(G, t, M) for t layers."""
        return len(self.queries), layers.stop - layers.start, self.queries.shape[2]

    def rows(self, embeddings: Tensor, layers: slice) -> Tensor:
        """Embeddings of the matched queries: (T, B, Q, E) -> (G, t*M, E)."""
        own = embeddings[layers, self.images].transpose(0, 1)  # (G, t, Q, E)
        return own.gather(2, self._along(layers, own)).flatten(1, 2)

    def add_rows(self, grad_embeddings: Tensor, layers: slice, grad: Tensor) -> None:
        """The gradient of `rows`: grad (G, t*M, E) is added to (T, B, Q, E)."""
        own = grad_embeddings[layers, self.images].transpose(0, 1)
        own.scatter_add_(2, self._along(layers, own), grad.view(*self.shape(layers), own.shape[-1]))

    def _along(self, layers: slice, embeddings: Tensor) -> Tensor:
        """(G, t, M, E): the same query for all channels."""
        return self.queries[:, layers, :, None].expand(-1, -1, -1, embeddings.shape[-1])


def _groups(matches: Matches, points: Tensor, channels: int) -> list[_Group]:
    """The images in groups; points (B, R, 2)."""
    counts = [len(queries) for queries, _ in matches[0]]
    (batch, num_points, _), num_layers = points.shape, len(matches)
    table = torch.zeros(3, batch, num_layers, max(counts), dtype=torch.long)
    for layer, images in enumerate(matches):
        for image, (queries, instances) in enumerate(images):
            table[:, image, layer, : counts[image]] = torch.stack((queries, instances, torch.ones_like(queries)))
    table = table.to(points.device)  # all of them together
    groups = []
    for some in in_parts(points.device, batch, num_points * channels):
        queries, instances, real = table[:, some, :, : max(counts[some])]
        parts = in_parts(points.device, num_layers, queries[:, 0].numel() * num_points)
        groups.append(_Group(some, queries, instances, real[:, :1].float(), parts))
    return groups


def real_extent(pixel_mask: Tensor | None, features: Tensor) -> Tensor:
    """Real share of (width, height) of each canvas, (B, 2); real pixels form a rectangle at the top left."""
    if pixel_mask is None:
        return torch.ones(features.shape[0], 2, device=features.device)
    return torch.stack((pixel_mask[:, 0].float().mean(1), pixel_mask[:, :, 0].float().mean(1)), dim=-1)
