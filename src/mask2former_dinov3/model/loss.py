"""Mask2Former's criterion: class, mask and dice losses after every layer (arXiv:2112.01527, section 3.3 and 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration import Mask2FormerDinov3Config
from .matcher import HungarianMatcher
from .points import RandomPoints, choose_points, sample_logits, sample_targets
from .transformer_decoder import QueryPredictions

# T prediction layers, B batch, Q queries, K classes, E mask channels, N instances of an image, M matched pairs


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

    `rand` draws the points (a stand-in for torch.rand); tests put fixed points there.
    """

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        self.config = config
        self.rand: RandomPoints = torch.rand
        self.matcher = HungarianMatcher(
            config.class_weight, config.mask_weight, config.dice_weight, config.train_num_points
        )

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
            extent = real_extent(pixel_mask, features)
            matches = self.matcher(predictions, mask_labels, class_labels, extent, self.rand)
            if normalizers is None:
                normalizers = loss_normalizers(class_labels, self.config.num_queries, self.config.no_object_weight)
            num_masks, class_weight = normalizers.to(features.device, torch.float32).clamp(min=1.0)
            last = len(matches) - 1
            # Hugging Face's order (last layer first), so that injected random points meet the same layers.
            losses: dict[str, Tensor] = {}
            for layer in (last, *range(last)):
                suffix = "" if layer == last else f"_{layer}"
                pairs = matches[layer]
                mask_loss, dice_loss = self.mask_losses(
                    predictions.mask_embeddings[layer], features, mask_labels, pairs, extent
                )
                class_loss = self.class_loss(predictions.class_logits[layer], class_labels, pairs)
                losses[f"loss_cross_entropy{suffix}"] = self.config.class_weight * class_loss / class_weight
                losses[f"loss_mask{suffix}"] = self.config.mask_weight * mask_loss / num_masks
                losses[f"loss_dice{suffix}"] = self.config.dice_weight * dice_loss / num_masks
            return losses

    def class_loss(
        self, class_logits: Tensor, class_labels: list[Tensor], pairs: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Summed cross entropy of all queries, the unmatched ones as "no object" at its own weight.

        class_logits (B, Q, K+1); pairs: per image (query indices, target indices).
        """
        num_classes = class_logits.shape[-1] - 1
        targets = torch.full(class_logits.shape[:2], num_classes, device=class_logits.device)  # (B, Q)
        for image, (queries, instances) in enumerate(pairs):
            targets[image, queries.to(targets.device)] = class_labels[image][instances.to(targets.device)]
        weight = torch.ones(num_classes + 1, device=class_logits.device)
        weight[-1] = self.config.no_object_weight
        return F.cross_entropy(class_logits.flatten(0, 1), targets.flatten(), weight=weight, reduction="sum")

    def mask_losses(
        self,
        embeddings: Tensor,
        features: Tensor,
        mask_labels: list[Tensor],
        pairs: list[tuple[Tensor, Tensor]],
        extent: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Summed binary cross entropy and dice loss of the matched queries, on chosen points.

        embeddings (B, Q, E); features (B, E, h, w). Dense logits are made for matched queries only.
        """
        device = features.device
        counts = [len(queries) for queries, _ in pairs]
        if sum(counts) == 0:  # nothing to match: zero, but still a function of every parameter
            zero = 0.0 * (embeddings.sum() + features.sum())
            return zero, zero
        image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))  # (M,)
        slot = torch.cat([torch.arange(count) for count in counts])  # (M,)
        padded = torch.zeros(len(counts), max(counts), dtype=torch.long)  # (B, max M)
        padded[image, slot] = torch.cat([queries for queries, _ in pairs])
        image, slot, padded = image.to(device), slot.to(device), padded.to(device)
        chosen = embeddings.gather(1, padded[..., None].expand(-1, -1, embeddings.shape[2]))  # (B, max M, E)
        logits = torch.einsum("bme,behw->bmhw", chosen, features)[image, slot]  # (M, h, w)
        points = choose_points(
            logits.detach(),
            extent[image],
            self.config.train_num_points,
            self.config.oversample_ratio,
            self.config.importance_sample_ratio,
            self.rand,
        )  # (M, P, 2)
        targets = torch.cat(
            [
                sample_targets(masks[instances.to(device)], at)
                for masks, (_, instances), at in zip(mask_labels, pairs, points.split(counts), strict=True)
            ]
        )  # (M, P)
        values = sample_logits(logits[:, None], points)[:, 0]  # (M, P)
        cross_entropy = F.binary_cross_entropy_with_logits(values, targets, reduction="none").mean(1).sum()
        probabilities = values.sigmoid()
        overlap = 2 * (probabilities * targets).sum(1)
        dice = 1 - (overlap + 1) / (probabilities.sum(1) + targets.sum(1) + 1)
        return cross_entropy, dice.sum()


def real_extent(pixel_mask: Tensor | None, features: Tensor) -> Tensor:
    """Real share of (width, height) of each canvas, (B, 2); real pixels form a rectangle at the top left."""
    if pixel_mask is None:
        return torch.ones(features.shape[0], 2, device=features.device)
    return torch.stack((pixel_mask[:, 0].float().mean(1), pixel_mask[:, :, 0].float().mean(1)), dim=-1)
