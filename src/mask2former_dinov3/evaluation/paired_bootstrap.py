"""Paired bootstrap over images of the difference in AP of two sets of results on the same ground truth.

The images of a test set are a sample of those that the model will meet. Drawing as many of them again with replacement,
thousands of times, shows how much of a difference comes from the choice of images (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 6 and 13). Both sets of results are scored on the same draws, so what is
easy or hard for both cancels out. What another seed of the training would change is not in these intervals.

I images, K classes, D results, O objects, S draws, T IoU thresholds 0.50 to 0.95.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..data.array_types import Bools, Floats, Ints
from ..errors import OptionError
from .coco_files import GroundTruth, ScoredMask
from .matches import Overlaps, match_overlaps, overlaps_of

COCO_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
_RECALLS = np.linspace(0, 1, 101)
CONFIDENCE = 0.95


class _ClassRanking(NamedTuple):
    """Results of one class, best first. image (D,): row of the image; right, wrong (T, D) bool; objects (I,) float."""

    image: Ints
    right: Bools
    wrong: Bools
    objects: Floats


@dataclass(frozen=True)
class RankedMatches:
    """Matches of a set of results, in the form in which the AP of any weighting of the images is quick to compute."""

    classes: tuple[_ClassRanking, ...]
    images: int

    @classmethod
    def of(cls, truth: GroundTruth, overlaps: Overlaps) -> RankedMatches:
        """Match at COCO's ten IoU thresholds. Results of equal score stay in the order of the images, as in COCO."""
        rows = {image: row for row, image in enumerate(sorted(truth.sizes))}
        matches = [match_overlaps(overlaps, iou) for iou in COCO_IOUS]
        right = np.stack([one.right for one in matches])
        wrong = np.stack([one.wrong for one in matches])
        of_result = np.array([rows[image] for image in overlaps.result_image.tolist()], dtype=np.int64)
        of_object = np.array([rows[image] for image in overlaps.object_image.tolist()], dtype=np.int64)
        order = np.argsort(-overlaps.score, kind="stable")
        classes = []
        for number in range(1, len(truth.names) + 1):
            chosen = order[overlaps.result_category[order] == number]
            counted = (overlaps.object_category == number) & ~overlaps.crowd
            objects = np.bincount(of_object[counted], minlength=len(rows)).astype(np.float64)
            classes.append(_ClassRanking(of_result[chosen], right[:, chosen], wrong[:, chosen], objects))
        return cls(tuple(classes), len(rows))

    def average_precision(self, weights: Floats | None = None) -> Floats:
        """AP (K, T) with each image counted `weights` (I,) times, None: once; NaN for a class without objects.

        Equal to COCO's AP of a data set that holds each image so many times (101 recalls, interpolated precision).
        """
        weights = np.ones(self.images) if weights is None else weights
        return np.stack([_precision_at_recalls(one, weights).mean(axis=1) for one in self.classes])

    def precision_curve(self, iou: float) -> Floats:
        """Precision (101,) at the recalls 0.00 to 1.00, mean over the classes that have objects; NaN if none has."""
        ones, level = np.ones(self.images), COCO_IOUS.index(iou)
        curves = [_precision_at_recalls(one, ones)[level] for one in self.classes if one.objects.any()]
        return np.mean(curves, axis=0) if curves else np.full(len(_RECALLS), np.nan)


def rank_matches(truth: GroundTruth, results: Sequence[ScoredMask], max_detections: int) -> RankedMatches:
    """Overlaps and matches of results in one step. max_detections: per image and class, as in COCO."""
    return RankedMatches.of(truth, overlaps_of(truth, results, max_detections))


def _precision_at_recalls(ranking: _ClassRanking, weights: Floats) -> Floats:
    """Interpolated precision (T, 101) of one class at COCO's recalls; NaN without objects."""
    total = float(weights @ ranking.objects)
    found = np.zeros((len(ranking.right), len(_RECALLS)))
    if not total:
        return np.full_like(found, np.nan)
    if not len(ranking.image):
        return found
    own = weights[ranking.image]
    right, wrong = np.cumsum(ranking.right * own, axis=1), np.cumsum(ranking.wrong * own, axis=1)
    # As pycocotools: the best precision at this recall or a higher one; spacing(1) keeps 0 / 0 at 0.
    precision = right / (right + wrong + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = right / total
    for level, values in enumerate(found):
        places = np.searchsorted(recall[level], _RECALLS, side="left")
        reached = places < recall.shape[1]
        values[reached] = precision[level, places[reached]]
    return found


@dataclass(frozen=True)
class Difference:
    """B minus A of one number, with its interval over the choice of images.

    before, after: the number of A and of B; difference: after - before; low, high: the interval of `CONFIDENCE`; all
    are NaN where the ground truth has no object of the kind. worse, better: whether the interval lies below or above 0.
    """

    before: float
    after: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def worse(self) -> bool:
        """B is worse than A beyond the noise of the images."""
        return self.high < 0

    @property
    def better(self) -> bool:
        """B is better than A beyond the noise of the images."""
        return self.low > 0


@dataclass(frozen=True)
class PairedDifferences:
    """Differences of AP, AP50 and AP75 over all classes, and of AP of each class, in the order of the classes."""

    overall: dict[str, Difference]
    per_class: tuple[Difference, ...]


def paired_bootstrap(
    before: RankedMatches, after: RankedMatches, *, samples: int = 2000, seed: int = 0
) -> PairedDifferences:
    """Percentile intervals of AP(after) - AP(before) over `samples` draws of the images, the same for both.

    The same seed gives the same intervals. In a draw without an object of a class, the class is left out of the mean of
    both. Raises OptionError for fewer than 100 samples; ValueError for matches on different ground truths.
    """
    if samples < 100:
        raise OptionError("samples", "at least 100 draws", samples)
    if before.images != after.images or len(before.classes) != len(after.classes):
        raise ValueError("expected matches on the same ground truth")
    rng = np.random.default_rng(seed)
    own = [_summary(one.average_precision()) for one in (before, after)]
    drawn = np.full((samples, len(own[0])), np.nan)
    if before.images:
        share = np.full(before.images, 1 / before.images)
        for row in range(samples):
            weights = rng.multinomial(before.images, share).astype(np.float64)
            drawn[row] = _summary(after.average_precision(weights)) - _summary(before.average_precision(weights))
    found = [
        Difference(float(one), float(other), *_interval(drawn[:, column]))
        for column, (one, other) in enumerate(zip(*own, strict=True))
    ]
    return PairedDifferences(dict(zip(("AP", "AP50", "AP75"), found[:3], strict=True)), tuple(found[3:]))


def _summary(average_precision: Floats) -> Floats:
    """AP, AP50, AP75, and AP of each class, (3 + K,), from AP (K, T)."""
    return np.concatenate(
        [
            [_mean(average_precision), _mean(average_precision[:, 0]), _mean(average_precision[:, 5])],
            average_precision.mean(axis=1),
        ]
    )


def _mean(values: Floats) -> float:
    """Mean of what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _interval(drawn: Floats) -> tuple[float, float]:
    """The central interval of `CONFIDENCE`; draws in which the number is undefined do not count."""
    defined = drawn[~np.isnan(drawn)]
    if not defined.size:
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
