"""The metric that StarDist published on nuclei: TP / (TP + FP + FN) at IoU 0.5 to 0.9, and its mean.

U. Schmidt et al., Cell Detection with Star-convex Polygons, MICCAI 2018, arXiv:1806.03535, section 3.2; the counting is
that of `stardist.matching.matching_dataset` (pairs by the Hungarian method, counts summed over the images). StarDist
compares label images, in which a pixel belongs to one object: here it belongs to the instance with the best score, and
an instance that better ones cover by more than half is left out. The score threshold is a choice: make it on other
images than those that are scored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mask2former_dinov3.evaluation.coco_files import GroundTruth, ScoredMask

IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(9))
MIN_VISIBLE = 0.5
# Finer near 1: a model that was trained for long gives most objects a score above 0.95.
THRESHOLDS = (*(round(0.05 * step, 2) for step in range(1, 20)), 0.96, 0.97, 0.98, 0.99, 0.995)
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class StardistScore:
    """accuracy: IoU -> TP / (TP + FP + FN) over all images, 1 where nothing was to be found and nothing was."""

    threshold: float
    accuracy: dict[float, float]

    @property
    def mean(self) -> float:
        """Mean over the nine IoUs."""
        return sum(self.accuracy.values()) / len(self.accuracy)


def paint_labels(found: Iterable[ScoredMask], size: tuple[int, int]) -> Labels:
    """(H, W) label image, 0 on background. found: objects, or results, of which a better score covers a worse."""
    labels: Labels = np.zeros(size, np.int32)
    number = 0
    for one in sorted(found, key=lambda one: -one.get("score", 1.0)):
        mask = rle_codec.decode(one["segmentation"]).astype(bool)
        visible = mask & (labels == 0)
        if visible.any() and visible.sum() >= MIN_VISIBLE * mask.sum():
            number += 1
            labels[visible] = number
    return labels


def label_ious(truth: Labels, found: Labels) -> NDArray[np.float64]:
    """(G, D) IoU of every object with every instance of two label images."""
    objects, instances = int(truth.max(initial=0)), int(found.max(initial=0))
    joint = np.bincount(truth.ravel() * (instances + 1) + found.ravel(), minlength=(objects + 1) * (instances + 1))
    both = joint.reshape(objects + 1, instances + 1)
    union = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    return np.asarray((both / np.maximum(union, 1))[1:, 1:])


def count_pairs(ious: NDArray[np.float64], at: float) -> int:
    """The most pairs of an object and an instance with an IoU of at least `at`; among equal numbers the best IoUs."""
    if not ious.size or ious.max() < at:
        return 0
    rows, columns = linear_sum_assignment(-(ious >= at).astype(float) - ious / (2 * min(ious.shape)))
    return int((ious[rows, columns] >= at).sum())


def score_stardist(
    truth: GroundTruth, results: Sequence[ScoredMask], thresholds: Sequence[float]
) -> list[StardistScore]:
    """One score for each score threshold. Classes are not looked at: StarDist's data have one."""
    objects, found = _by_image(truth.annotations), _by_image(results)
    images = {image: paint_labels(objects[image], size) for image, size in truth.sizes.items()}
    scores = []
    for threshold in thresholds:
        right, wrong = dict.fromkeys(IOUS, 0), dict.fromkeys(IOUS, 0)
        for image, labels in images.items():
            kept = [one for one in found[image] if one["score"] >= threshold]
            ious = label_ious(labels, paint_labels(kept, labels.shape))
            for at in IOUS:
                pairs = count_pairs(ious, at)
                right[at] += pairs
                wrong[at] += sum(ious.shape) - 2 * pairs
        accuracy = {at: right[at] / max(right[at] + wrong[at], 1) for at in IOUS}
        scores.append(StardistScore(threshold, accuracy))
    return scores


def choose_threshold(truth: GroundTruth, results: Sequence[ScoredMask]) -> float:
    """The score threshold with the best mean over the nine IoUs."""
    return max(score_stardist(truth, results, THRESHOLDS), key=lambda score: score.mean).threshold


def _by_image(masks: Iterable[ScoredMask]) -> defaultdict[int, list[ScoredMask]]:
    found: defaultdict[int, list[ScoredMask]] = defaultdict(list)
    for one in masks:
        if not one["iscrowd"]:
            found[one["image_id"]].append(one)
    return found
