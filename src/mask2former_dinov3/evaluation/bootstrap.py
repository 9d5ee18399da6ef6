"""Confidence intervals of AP: the data set resampled image by image, from the matches of each image.

Matches do not depend on other images, so AP of a resample is exact: no number is approximated. The interval lies
between two quantiles of the resamples (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13), further out
for few images (Hesterberg, arXiv:1411.5279, "expanded percentile interval").

I images, B resamples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from ..data.array_types import Floats, Ints
from .average_precision import SIZES, mean_over_classes, precision_table, rank_all
from .matches import Overlaps

MOST_RESAMPLES = 1000
FEWEST_RESAMPLES = 200
LEVEL = 0.95  # of the intervals
_WORK = 200_000_000  # results times resamples, beyond which fewer are drawn: about a quarter of a minute
_AREAS = {"APs": "small", "APm": "medium", "APl": "large"}


@dataclass(frozen=True)
class ApInterval:
    """A metric of the data set itself, and the bounds of its `LEVEL` interval; -1: undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BootstrapIntervals:
    """Intervals of AP, AP50, AP75, APs, APm, APl, and of AP of each class by name. resamples: how many were drawn."""

    metrics: dict[str, ApInterval]
    per_class: dict[str, ApInterval]
    resamples: int
    seed: int


def draw_resamples(num_images: int, resamples: int, seed: int) -> npt.NDArray[np.int32]:
    """How often each image is drawn in each resample, (B, I). The same numbers give the same resamples."""
    rng = np.random.default_rng(seed)
    even = np.full(num_images, 1 / max(num_images, 1))
    return rng.multinomial(num_images, even, size=resamples).astype(np.int32)


def number_of_resamples(num_results: int) -> int:
    """`MOST_RESAMPLES`, or fewer where they would take more than about a quarter of a minute."""
    return int(np.clip(_WORK // max(num_results, 1), FEWEST_RESAMPLES, MOST_RESAMPLES))


def weighted_metrics(
    overlaps: Overlaps, images: Ints, num_classes: int, weights: npt.NDArray[np.int32], *, with_sizes: bool = True
) -> tuple[dict[str, Floats], Floats]:
    """AP, AP50, AP75, APs, APm, APl of each set of weights of the images, (B,) each, and AP of each class, (B, K).

    images (I,): their numbers, ascending. weights (B, I): how often each image counts. with_sizes: APs, APm, APl too,
    which take three quarters of the time. -1: nothing to find.
    """
    table = precision_table(rank_all(overlaps, images, num_classes), weights)  # (B, T, K)
    per_iou = mean_over_classes(table)
    values = {"AP": per_iou.mean(1), "AP50": per_iou[:, 0], "AP75": per_iou[:, 5]}
    for name, size in _AREAS.items() if with_sizes else ():
        ranked = rank_all(overlaps, images, num_classes, SIZES[size])
        values[name] = mean_over_classes(precision_table(ranked, weights)).mean(1)
    return values, table.mean(1)


def bootstrap_intervals(overlaps: Overlaps, images: Ints, names: list[str], seed: int = 0) -> BootstrapIntervals:
    """Intervals of the metrics of results.

    images (I,): numbers of the images, ascending. names: of the classes, in the order of their numbers.
    """
    resamples = number_of_resamples(len(overlaps.score))
    once = np.ones((1, len(images)), np.int32)
    drawn = np.concatenate([once, draw_resamples(len(images), resamples, seed)])
    values, per_class = weighted_metrics(overlaps, images, len(names), drawn)
    return BootstrapIntervals(
        metrics={name: interval_of(column, len(images)) for name, column in values.items()},
        per_class={name: interval_of(per_class[:, place], len(images)) for place, name in enumerate(names)},
        resamples=resamples,
        seed=seed,
    )


def interval_of(values: Floats, num_images: int) -> ApInterval:
    """The interval of a metric: its value first, then those of the resamples, (1 + B,). Resamples in which it is
    undefined do not count."""
    defined = values[1:][values[1:] > -1]
    if values[0] == -1 or not len(defined):
        return ApInterval(float(values[0]), -1.0, -1.0)
    return ApInterval(float(values[0]), *resampled_bounds(defined, num_images))


def resampled_bounds(values: Floats, num_images: int) -> tuple[float, float]:
    """The bounds of the `LEVEL` interval of a number, from its values (B,) in resamples of so many images.

    The middle 95 % of the resamples are too narrow for few images: their spread is that of a variance divided by I, not
    I - 1, and their tails are those of the normal, not Student's distribution. The quantiles lie further out by both.
    """
    if num_images < 2:
        return float(values.min()), float(values.max())
    student = stdtrit(num_images - 1, (1 + LEVEL) / 2)
    edge = float(ndtr(-student * np.sqrt(num_images / (num_images - 1))))
    low, high = np.quantile(values, [edge, 1 - edge])
    return float(low), float(high)
