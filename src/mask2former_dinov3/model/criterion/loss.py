"""Mask2Former's criterion: class, mask and dice losses after every layer (arXiv:2112.01527, section 3.3 and 4.1)."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ..configuration import Mask2FormerDinov3Config
from ..padding import real_extent, real_pixels
from ..transformer_decoder import QueryPredictions
from .mask_places import Pixels, Places, Points, coverage
from .matcher import HungarianMatcher, Matches
from .point_sampling import RandomPoints, split_work
from .seed_loss import heat_map, seed_loss

# T prediction layers, t of them, B batch, G images of it, Q queries, K classes, E mask channels, N instances of an
# image, M matched pairs, P places where masks are compared, R of them that a loss reads


def loss_normalizers(class_labels: list[Tensor], num_queries: int, no_object_weight: float) -> Tensor:
    """Divisors of the losses of these images: (instances, summed class weights of all queries), shape (2,).

    Both are known before the forward pass. Summed over all processes and accumulation steps of one update and given to
    the criterion, they make the update equal to that of one large batch. (Hugging Face averages the first over
    processes and computes the second per process, so images on a process with fewer instances weigh more.)
    """
    counts = [len(labels) for labels in class_labels]
    matched = [min(count, num_queries) for count in counts]
    weights = sum(m + no_object_weight * (num_queries - m) for m in matched)
    return torch.tensor([float(sum(counts)), float(weights)])


class Mask2FormerCriterion:
    """Matching, then the weighted sum of three losses per layer. Has no parameters.

    All instances of an image and all layers are compared at the same random points (the reference implementation draws
    new ones for each), so mask features and targets are sampled once per image, and no mask is computed in full. `rand`
    draws the points; tests replace it by fixed points.
    """

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        self.config = config
        self.rand: RandomPoints = torch.rand
        self.matcher = HungarianMatcher(config.class_weight, config.mask_weight, config.dice_weight)

    # The matching runs on the CPU, and the number of instances differs from batch to batch.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self,
        predictions: QueryPredictions,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
        pixel_mask: Tensor | None = None,
        normalizers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses under Hugging Face's names, always in float32.

        `loss_cross_entropy`, `loss_mask` and `loss_dice` are those of the last layer; with the suffix `_0` … `_{T-2}`
        those of the earlier layers; `loss_seed` is that of query seeds.

        mask_labels: B tensors (N, H, W) uint8 or bool; class_labels: B tensors (N,) int64; pixel_mask (B, H, W);
        normalizers (2,): see `loss_normalizers`, by default those of this batch.
        """
        with torch.autocast(predictions.mask_features.device.type, enabled=False):
            predictions = predictions.merge_prior()
            if not self.config.use_auxiliary_loss:
                predictions = predictions._replace(
                    class_logits=predictions.class_logits[-1:], mask_embeddings=predictions.mask_embeddings[-1:]
                )
            features = predictions.mask_features
            if normalizers is None:
                normalizers = loss_normalizers(class_labels, self.config.num_queries, self.config.no_object_weight)
            num_masks, class_weight = normalizers.to(features.device, torch.float32).clamp(min=1.0)

            for_matching, for_losses = self.places(features, pixel_mask)
            matches = self.match(predictions, mask_labels, class_labels, for_matching)
            class_losses = self.class_losses(predictions.class_logits, class_labels, matches)
            mask_losses, dice_losses = _MaskLosses.apply(  # type: ignore[no-untyped-call]
                predictions.mask_embeddings, features, for_losses, mask_labels, matches
            )

            losses: dict[str, Tensor] = {}
            for layer in range(len(matches)):
                suffix = "" if layer == len(matches) - 1 else f"_{layer}"
                losses[f"loss_cross_entropy{suffix}"] = self.config.class_weight * class_losses[layer] / class_weight
                losses[f"loss_mask{suffix}"] = self.config.mask_weight * mask_losses[layer] / num_masks
                losses[f"loss_dice{suffix}"] = self.config.dice_weight * dice_losses[layer] / num_masks
            if predictions.seed_logits is not None:
                seeds = self.seed_losses(predictions.seed_logits, mask_labels, pixel_mask)
                losses["loss_seed"] = self.config.seed_weight * seeds / num_masks
            return losses

    def places(self, features: Tensor, pixel_mask: Tensor | None) -> tuple[Places, Places]:
        """Places where masks are compared: for the matching, and for the losses."""
        config, extent = self.config, real_extent(pixel_mask, features)[:, None]  # (B, 1, 2)

        def draw(count: int) -> Tensor:
            return self.rand(len(features), count, 2, device=features.device) * extent

        num_points = config.train_num_points
        for_matching: Places
        if config.matching == "points":
            for_matching = Points(draw(num_points))
        else:
            for_matching = Pixels(real_pixels(self.pool_features(features), pixel_mask))
        if config.mask_loss == "pixels":
            return for_matching, Pixels(real_pixels(features, pixel_mask))
        uncertain, candidates = (
            int(num_points * ratio) for ratio in (config.importance_sample_ratio, config.oversample_ratio)
        )
        points = torch.cat([draw(candidates), draw(num_points - uncertain)], dim=1)
        return for_matching, Points(points, candidates, uncertain)

    def pool_features(self, features: Tensor) -> Tensor:
        """Average mask features to the finest feature map's stride, for matching on pixels.

        Stride 4 distinguishes masks as well as stride 2, at a quarter of the work. The mean of the features gives the
        mean of the logits.
        """
        finer = self.config.finest_stride // self.config.mask_stride
        return F.avg_pool2d(features, finer) if finer > 1 else features

    def match(
        self, predictions: QueryPredictions, mask_labels: list[Tensor], class_labels: list[Tensor], places: Places
    ) -> Matches:
        """Match queries with instances, in every layer."""
        if self.config.matching == "pixels":
            predictions = predictions._replace(mask_features=self.pool_features(predictions.mask_features))
        return self.matcher(predictions, mask_labels, class_labels, places)

    def seed_losses(self, logits: Tensor, mask_labels: list[Tensor], pixel_mask: Tensor | None) -> Tensor:
        """Loss of the seed scores (B, h, w) against their heat maps, summed."""
        height, width = logits.shape[1:]
        heat = torch.stack([heat_map(coverage([masks], height, width)[0]) for masks in mask_labels])
        return seed_loss(logits, heat, real_pixels(logits[:, None], pixel_mask))

    def class_losses(self, class_logits: Tensor, class_labels: list[Tensor], matches: Matches) -> Tensor:
        """Cross entropy of each layer, summed over its queries, (T,); unmatched queries have the class "no object".

        class_logits (T, B, Q, K+1). `label_weights` multiply the terms, not the divisor (`loss_normalizers`), which
        would otherwise take the weight of a rare class back where it is alone in a batch.
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
        labels = self.config.label_weights or [1.0] * num_classes
        weight = torch.tensor([*labels, self.config.no_object_weight], device=device)
        losses = F.cross_entropy(class_logits.flatten(0, 2), targets, weight=weight, reduction="none")
        return losses.view(layers, -1).sum(1)


class _MaskLosses(torch.autograd.Function):
    """Binary cross entropy and dice loss of the matched queries, summed over each layer: two tensors (T,).

    embeddings (T, B, Q, E), features (B, E, h, w); mask_labels B x (N, H, W) uint8 or bool.
    Forward and backward work on some images and layers at a time, so that the logits (M, P) of all never exist at once.
    The saved tensors grow with the R places that the losses read, not with the image. No double backward.
    """

    class Context(FunctionCtx):
        """What `forward` keeps for `backward`."""

        groups: list[_Group]
        places: Places
        saved_tensors: tuple[Tensor, ...]

    @staticmethod
    def forward(
        ctx: Context, embeddings: Tensor, features: Tensor, places: Places, mask_labels: list[Tensor], matches: Matches
    ) -> tuple[Tensor, Tensor]:
        sums = embeddings.new_zeros(len(embeddings), 2)
        saved: list[Tensor | None] = []
        groups = _group_images(matches, features, len(places))
        for group in groups:
            targets, sampler = places.targets(mask_labels, group.images), places.sampler(features, group.images)
            first = torch.arange(len(targets), device=targets.device)[:, None, None] * targets.shape[1]  # (G, 1, 1)
            for layers in group.parts:
                values = sampler.logits(group.rows(embeddings, layers)).flatten(0, 1)  # (G*t*M, P)
                row = (first + group.instances[:, layers]).flatten()  # (G*t*M,) into (G*N, P)
                columns = places.choose(values)  # (G*t*M, R)
                if columns is None:
                    target = targets.flatten(0, 1)[row]
                    share = (1 / places.counts(group.images))[:, None, None].expand(group.shape(layers)).flatten()
                else:
                    values = values.gather(1, columns)
                    target = targets.take(row[:, None] * len(places) + columns)
                    share = values.new_full((len(values),), 1 / values.shape[1])
                    columns = columns.int()
                entropy = (F.softplus(values).sum(1) - torch.linalg.vecdot(values, target)) * share
                probabilities = values.sigmoid_()
                overlap = 2 * torch.linalg.vecdot(probabilities, target) + 1
                total = probabilities.sum(1) + target.sum(1) + 1
                for column, loss in enumerate((entropy, 1 - overlap / total)):
                    sums[layers, column] += (loss.view(group.shape(layers)) * group.real).sum((0, 2))
                saved += [columns, probabilities, target, overlap, total, share]
        ctx.save_for_backward(embeddings, features, *saved)  # type: ignore[arg-type]  # None is allowed
        ctx.groups, ctx.places = groups, places
        return sums[:, 0], sums[:, 1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_entropy: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, features, *saved = ctx.saved_tensors
        groups, places = ctx.groups, ctx.places
        grad_embeddings = torch.zeros_like(embeddings)
        grad_features = torch.empty_like(features, memory_format=torch.channels_last)
        parts = iter(zip(*[iter(saved)] * 6, strict=True))
        for group in groups:
            sampler = places.sampler(features, group.images)
            grad_logits: Tensor | None = None  # (G*t*M, P), zeros between its uses
            for layers in group.parts:
                columns, probabilities, target, overlap, total, share = next(parts)
                along_entropy, along_dice = (
                    (grad[layers, None] * group.real).reshape(-1, 1) for grad in (grad_entropy, grad_dice)
                )  # (G*t*M, 1)
                # d dice / dp = overlap / total^2 - 2 t / total, and dp / dlogit = p (1 - p)
                slope = torch.addcmul((overlap / total**2)[:, None], target, (-2 / total)[:, None])
                slope.mul_(along_dice).mul_(torch.addcmul(probabilities, probabilities, probabilities, value=-1))
                slope.add_((probabilities - target).mul_(along_entropy * share[:, None]))  # (G*t*M, R)
                rows = group.rows(embeddings, layers)
                if columns is None:
                    grad_rows = sampler.backward(slope.unflatten(0, (len(rows), -1)), rows)
                else:
                    columns = columns.long()
                    if grad_logits is None:  # the first part is the largest
                        grad_logits = slope.new_zeros(len(slope), len(places))
                    grad = grad_logits[: len(slope)].scatter_(1, columns, slope)
                    grad_rows = sampler.backward(grad.unflatten(0, (len(rows), -1)), rows)  # (G, t*M, E)
                    grad.scatter_(1, columns, 0.0)
                group.add_rows(grad_embeddings, layers, grad_rows)
            grad_features[group.images] = sampler.grad_features()
        return grad_embeddings, grad_features, None, None, None


class _Group(NamedTuple):
    """G images that are processed together, with M matched pairs per layer and image (the maximum of the group)."""

    images: slice
    queries: Tensor  # (G, T, M); 0 if an image has fewer pairs
    instances: Tensor
    real: Tensor  # (G, 1, M) float32: 1 for a pair, 0 otherwise
    parts: list[slice]  # layers that are processed together

    def shape(self, layers: slice) -> tuple[int, int, int]:
        """(G, t, M) for t layers."""
        return len(self.queries), layers.stop - layers.start, self.queries.shape[2]

    def rows(self, embeddings: Tensor, layers: slice) -> Tensor:
        """Gather the embeddings of the matched queries: (T, B, Q, E) -> (G, t*M, E)."""
        own = embeddings[layers, self.images].transpose(0, 1)  # (G, t, Q, E)
        return own.gather(2, self._along(layers, own)).flatten(1, 2)

    def add_rows(self, grad_embeddings: Tensor, layers: slice, grad: Tensor) -> None:
        """Add the gradient of `rows`, (G, t*M, E), to (T, B, Q, E)."""
        own = grad_embeddings[layers, self.images].transpose(0, 1)
        own.scatter_add_(2, self._along(layers, own), grad.view(*self.shape(layers), own.shape[-1]))

    def _along(self, layers: slice, embeddings: Tensor) -> Tensor:
        """Indices of the queries, (G, t, M, E), the same for all channels."""
        return self.queries[:, layers, :, None].expand(-1, -1, -1, embeddings.shape[-1])


def _group_images(matches: Matches, features: Tensor, num_places: int) -> list[_Group]:
    """Divide the images into groups that are processed together; features (B, E, h, w)."""
    counts = [len(queries) for queries, _ in matches[0]]
    (batch, channels), num_layers = features.shape[:2], len(matches)
    table = torch.zeros(3, batch, num_layers, max(counts), dtype=torch.long)
    for layer, images in enumerate(matches):
        for image, (queries, instances) in enumerate(images):
            table[:, image, layer, : counts[image]] = torch.stack((queries, instances, torch.ones_like(queries)))
    table = table.to(features.device)  # one transfer
    groups = []
    for some in split_work(features.device, batch, num_places * channels):
        queries, instances, real = table[:, some, :, : max(counts[some])]
        parts = split_work(features.device, num_layers, queries[:, 0].numel() * num_places)
        groups.append(_Group(some, queries, instances, real[:, :1].float(), parts))
    return groups
