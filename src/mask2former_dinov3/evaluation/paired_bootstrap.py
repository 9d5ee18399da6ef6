"""Paired bootstrap over images of the difference in AP of two sets of results on the same ground truth.

The images of a test set are a sample of those that the model will meet. Drawing as many of them again with replacement,
thousands of times, shows how much of a difference comes from the choice of images (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 6 and 13). Both sets of results are scored on the same draws, so what is
easy or hard for both cancels out. What another seed of the training would change is not in these intervals, so a
difference between two trainings of one recipe must exceed `SEED_NOISE` as well.

I images, K classes, S draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.array_types import Floats, Ints
from ..errors import OptionError
from .average_precision import RECALLS, make_monotonic, rank_results
from .bootstrap import draw_resamples, number_of_resamples, resampled_bounds, weighted_metrics
from .matches import Overlaps, match_overlaps

FEWEST_DRAWS = 100
FEWEST_COMPARED = 6  # five that all change in one direction are still a chance of 1 in 16, more than 5 %
SEED_NOISE = 0.03  # of AP between trainings of one recipe on a few hundred images, docs/log.md


@dataclass(frozen=True)
class Difference:
    """B minus A of one number, with its interval over the choice of images.

    before, after: the number of A and of B; low, high: bounds of the difference, at the level of `bootstrap.LEVEL`. All
    are NaN where the ground truth has no object of the kind.
    """

    before: float
    after: float
    low: float
    high: float
    noise: float = 0.0

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def worse(self) -> bool:
        """B is worse than A beyond noise."""
        return self.high < -self.noise

    @property
    def better(self) -> bool:
        """B is better than A beyond noise."""
        return self.low > self.noise


@dataclass(frozen=True)
class PairedDifferences:
    """Differences of AP, AP50 and AP75 over all classes, and of AP of each class, in the order of the classes.

    samples: how many draws they are from.
    """

    overall: dict[str, Difference]
    per_class: tuple[Difference, ...]
    samples: int


def paired_bootstrap(
    before: Overlaps,
    after: Overlaps,
    images: Ints,
    num_classes: int,
    *,
    samples: int | None = None,
    seed: int = 0,
    noise: float = 0.0,
) -> PairedDifferences:
    """Intervals of AP(after) - AP(before) from `samples` draws of the images, the same for both.

    samples: None for as many as the report draws: 1,000, fewer where that would take long (`number_of_resamples`).
    images (I,): numbers of the images, ascending. noise: as in `Difference`, infinite below `FEWEST_COMPARED`. The same
    seed gives the same intervals. In a draw without an object of a class, the class is left out of the mean of both.
    Raises OptionError for fewer than `FEWEST_DRAWS` samples.
    """
    if samples is None:
        samples = number_of_resamples(max(len(before.score), len(after.score)))
    if samples < FEWEST_DRAWS:
        raise OptionError("samples", f"at least {FEWEST_DRAWS} draws", samples)
    drawn = np.concatenate([np.ones((1, len(images)), np.int32), draw_resamples(len(images), samples, seed)])
    first, first_classes = weighted_metrics(before, images, num_classes, drawn, with_sizes=False)
    second, second_classes = weighted_metrics(after, images, num_classes, drawn, with_sizes=False)
    noise = noise if len(images) >= FEWEST_COMPARED else math.inf

    def difference(own: Floats, other: Floats) -> Difference:
        return _difference(own, other, len(images), noise)

    return PairedDifferences(
        {name: difference(values, second[name]) for name, values in first.items()},
        tuple(difference(first_classes[:, place], second_classes[:, place]) for place in range(num_classes)),
        samples,
    )


def _difference(before: Floats, after: Floats, num_images: int, noise: float) -> Difference:
    """The difference of a number, and its interval. before, after (1 + S,): of the data set, then of the draws.

    Draws in which the number is undefined (-1, for both) do not count.
    """
    defined = (before > -1) & (after > -1)
    if not defined[0] or not defined[1:].any():
        return Difference(*[float("nan")] * 4)
    drawn = (after - before)[1:][defined[1:]]
    return Difference(float(before[0]), float(after[0]), *resampled_bounds(drawn, num_images), noise)


def precision_at_recalls(overlaps: Overlaps, images: Ints, num_classes: int, iou: float) -> Floats:
    """Interpolated precision (101,) at COCO's recalls, mean over the classes that have objects; NaN if none has."""
    curves: list[Floats] = []
    for ranked in rank_results(overlaps, match_overlaps(overlaps, iou), images, num_classes):
        total = int(ranked.objects.sum())
        if total:
            found = np.arange(1, len(ranked.right) + 1)
            precision = np.append(make_monotonic(found / (ranked.right + 1)), 0.0)
            curves.append(precision[np.searchsorted(found / total, RECALLS)])
    return _mean_curve(curves)


def _mean_curve(curves: Sequence[Floats]) -> Floats:
    return np.asarray(np.mean(curves, axis=0)) if curves else np.full(len(RECALLS), np.nan)
