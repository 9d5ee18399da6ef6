"""The choice of a score threshold for an aim, and its uncertainty by resampling the images.

S thresholds, I images with a result or an object, B resamples of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.array_types import Floats, Ints
from ..errors import ConfigError, OptionError
from .bootstrap import LEVEL, resampled_bounds
from .matches import Overlaps, ResultMatches
from .score_curves import ScoreCurve, ScorePoint, counted_objects, counted_results, defined_ratio, score_curve

RESAMPLES = 1000
_CANDIDATES = 100  # thresholds among which a resample chooses
FEWEST_OBJECTS = 20  # of a class that gets a threshold of its own
FEWEST_IMAGES = 10  # with a result or an object, below which no choice counts as stable
LARGEST_LOSS = 0.02  # what a stable choice may lose on other images
_BLOCK = 2**22  # numbers of a block of resamples, weights of images


@dataclass(frozen=True)
class Aim:
    """What a threshold is chosen for: the best F1 unless one of the others is given.

    target_precision: the highest recall with at least this precision, 0..1. target_recall: the highest precision with
    at least this recall. cost_fp, cost_fn (both, above 0): the lowest sum of the costs of wrong results and missed
    objects. Raises OptionError for a value out of range, ConfigError for a combination that cannot be.
    """

    target_precision: float | None = None
    target_recall: float | None = None
    cost_fp: float | None = None
    cost_fn: float | None = None

    def __post_init__(self) -> None:
        for name in ("target_precision", "target_recall"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise OptionError(name, "a fraction above 0, up to 1", value)
        for name in ("cost_fp", "cost_fn"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError(name, "a number above 0", value)
        costs = self.cost_fp is not None, self.cost_fn is not None
        if any(costs) and not all(costs):
            given, other = ("cost_fp", "cost_fn") if costs[0] else ("cost_fn", "cost_fp")
            raise OptionError(other, f"a number above 0, as {given} has one", "none")
        if (self.target_precision is not None) + (self.target_recall is not None) + all(costs) > 1:
            raise ConfigError("aim: expected one of target_precision, target_recall, and cost_fp with cost_fn, got two")

    @property
    def text(self) -> str:
        """The aim in words."""
        if self.target_precision is not None:
            return f"precision of at least {self.target_precision:g}"
        if self.target_recall is not None:
            return f"recall of at least {self.target_recall:g}"
        if self.cost_fp is not None:
            return f"lowest cost ({self.cost_fp:g} per wrong result, {self.cost_fn:g} per missed object)"
        return "best F1"

    @property
    def measure(self) -> str:
        """What `losses` are in."""
        if self.target_precision is not None:
            return "precision"
        if self.target_recall is not None:
            return "recall"
        return "F1" if self.cost_fp is None else "the cost of missing all"

    def value(self, right: Floats, wrong: Floats, objects: Floats) -> Floats:
        """What the chosen threshold has the highest value of; right, wrong (..., S), objects (..., 1).

        Thresholds that reach a target have values from 2 on, the others the value nearest to it.
        """
        if self.cost_fp is not None and self.cost_fn is not None:
            return np.asarray(-self.cost_fp * wrong - self.cost_fn * (objects - right))
        if self.target_precision is None and self.target_recall is None:
            return defined_ratio(2 * right, right + wrong + objects)
        precision, recall = defined_ratio(right, right + wrong), defined_ratio(right, objects)
        if self.target_precision is not None:
            return np.where(precision >= self.target_precision, 2 + recall, precision)
        return np.where(recall >= (self.target_recall or 0.0), 2 + precision, recall)

    def reached(self, point: ScorePoint) -> bool:
        """Whether the target is reached; always without one."""
        if self.target_precision is not None:
            return point.precision >= self.target_precision
        return self.target_recall is None or point.recall >= self.target_recall

    def losses(self, curve: ScoreCurve, best: ScorePoint, thresholds: Floats) -> Floats:
        """What each threshold loses on the curve against the best point, 0 for nothing.

        In F1; in precision or recall below what `best` has of the target; in parts of the cost of missing all objects.
        """
        points = [curve.at(threshold) for threshold in thresholds.tolist()]
        if self.target_precision is not None:
            goal = min(best.precision, self.target_precision)
            return np.array([max(goal - max(one.precision, 0.0), 0.0) for one in points])
        if self.target_recall is not None:
            goal = min(best.recall, self.target_recall)
            return np.array([max(goal - max(one.recall, 0.0), 0.0) for one in points])
        if self.cost_fp is not None and self.cost_fn is not None:
            costs = np.array([self.cost_fp * one.wrong + self.cost_fn * one.missed for one in points])
            least = self.cost_fp * best.wrong + self.cost_fn * best.missed
            return np.asarray((costs - least) / (self.cost_fn * curve.objects))
        return np.array([best.f1 - one.f1 for one in points])


BEST_F1 = Aim()
Range = tuple[float, float]


@dataclass(frozen=True)
class ThresholdChoice:
    """The threshold chosen for an aim on one curve, and how far it can be trusted.

    point: the counts at it. reached: whether the target is reached; if not, the point is the nearest to it. images:
    number of images with a result or an object. thresholds, precision, recall, f1: where 95 % of the resamples of the
    images lie, of the threshold chosen on each, and of the numbers at the chosen threshold. loss: what 95 % of the
    thresholds chosen on resamples lose at most on all images (`Aim.losses`). unstable: why the choice is not stable,
    "" if it is: it is stable if that loss is at most `LARGEST_LOSS`, on at least `FEWEST_IMAGES` images.
    """

    point: ScorePoint
    reached: bool
    images: int
    thresholds: Range
    precision: Range
    recall: Range
    f1: Range
    loss: float
    unstable: str


def best_point(curve: ScoreCurve, aim: Aim = BEST_F1) -> ScorePoint | None:
    """The point with the best value of the aim, of equal ones the highest; None where no result finds an object.

    Its threshold lies between two scores, with as few decimals as that takes.
    """
    if not curve.right.any():
        return None
    values = aim.value(*(np.asarray(one, dtype=np.float64) for one in (curve.right, curve.wrong, curve.objects)))
    best = int(values.argmax())
    below = float(curve.scores[best + 1]) if best + 1 < len(curve.scores) else float(curve.scores[best]) - 0.01
    return curve.at(short_number_between(max(below, 0.0), float(curve.scores[best])))


def choose_point(
    overlaps: Overlaps,
    matches: ResultMatches,
    aim: Aim = BEST_F1,
    category: int | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ThresholdChoice | None:
    """The threshold with the best value of the aim, of equal ones the highest; None where no result finds an object.

    category: a category number; None: all classes together. The uncertainty is that of images drawn with replacement
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13, `resampled_bounds`), with `seed`.
    """
    curve = score_curve(overlaps, matches, category)
    point = best_point(curve, aim)
    if point is None:
        return None
    images = active_images(overlaps, matches, category)
    counts = _count_by_image(overlaps, matches, category, point.threshold, curve, images)
    chosen, at_point = _resample(counts, aim, resamples, seed)
    values, place = np.unique(chosen, return_inverse=True)  # at most as many as there are candidates
    losses = aim.losses(curve, point, values)[place]
    loss = float(np.quantile(losses, LEVEL))
    return ThresholdChoice(
        point,
        aim.reached(point),
        len(images),
        _range(chosen, len(images)),
        _range(at_point[:, 0], len(images)),
        _range(at_point[:, 1], len(images)),
        _range(at_point[:, 2], len(images)),
        loss,
        _why_unstable(len(images), loss, aim.measure),
    )


def _why_unstable(images: int, loss: float, measure: str) -> str:
    if images < FEWEST_IMAGES:
        return f"{images} images are too few to tell; {FEWEST_IMAGES} are the least"
    if loss > LARGEST_LOSS:
        return f"one chosen on other images like these may cost {loss:.3f} of {measure}, more than {LARGEST_LOSS}"
    return ""


def _range(values: Floats, num_images: int) -> Range:
    """The interval of the defined values of resamples; (-1, -1) if there are none."""
    defined = values[values >= 0]
    return resampled_bounds(defined, num_images) if len(defined) else (-1.0, -1.0)


def short_number_between(low: float, high: float) -> float:
    """The number with the fewest decimals above `low`, up to `high`, near their middle."""
    middle = (low + high) / 2
    for decimals in range(1, 13):
        if low < (value := round(middle, decimals)) <= high:
            return value
    return high


@dataclass(frozen=True)
class _ImageCounts:
    """Counts of each image: right, wrong (I, S) float32 at `thresholds` (S,), descending; objects (I,) float32.

    chosen: index of the chosen threshold. float32 counts exactly up to 16 million.
    """

    thresholds: Floats
    right: NDArray[np.float32]
    wrong: NDArray[np.float32]
    objects: NDArray[np.float32]
    chosen: int


def active_images(overlaps: Overlaps, matches: ResultMatches, category: int | None = None) -> Ints:
    """Numbers of the images (I,) with a result or an object that counts, ascending."""
    counted, whole = counted_results(overlaps, matches, category), counted_objects(overlaps, category)
    return np.unique(np.concatenate([overlaps.result_image[counted], overlaps.object_image[whole]]))


def spread_places(curve: ScoreCurve) -> Ints:
    """Places on a curve that have equally many results between them, at most 100, the first and the last among them."""
    results = curve.right + curve.wrong
    return np.unique(np.searchsorted(results, np.linspace(results[0], results[-1], _CANDIDATES)))


class BestF1(NamedTuple):
    """The best F1 of some results, and that of each resample of their images (B,). images: how many are drawn from."""

    f1: float
    resampled: Floats
    images: int


def best_f1(overlaps: Overlaps, matches: ResultMatches, images: Ints) -> BestF1 | None:
    """The best F1 with its resamples; None where no result finds an object. images (I,): those that are drawn from.

    Each resample chooses its best threshold again.
    """
    curve = score_curve(overlaps, matches)
    point = best_point(curve)
    if point is None:
        return None
    counts = _count_by_image(overlaps, matches, None, point.threshold, curve, images)
    return BestF1(point.f1, _best_f1_of_resamples(counts, RESAMPLES, 0), len(images))


def gain_in_f1(before: BestF1 | None, after: BestF1 | None) -> tuple[float, Range]:
    """How much higher the best F1 is with other results of the same images, and the interval of that."""
    if before is None or after is None:
        return 0.0, (0.0, 0.0)
    return after.f1 - before.f1, resampled_bounds(after.resampled - before.resampled, after.images)


def _best_f1_of_resamples(counts: _ImageCounts, resamples: int, seed: int) -> Floats:
    """The best F1 of each resample (B,)."""
    best = []
    for right, wrong, objects in _resampled_counts(counts, resamples, seed):
        best.append(BEST_F1.value(right, wrong, objects).max(axis=1))
    return np.concatenate(best)


def _resampled_counts(counts: _ImageCounts, resamples: int, seed: int) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Right and wrong results (B, S) and objects (B, 1) of some resamples at a time."""
    for weights in draw_weights(counts.right.shape[0], resamples, seed):
        right, wrong = ((weights @ side).astype(np.float64) for side in (counts.right, counts.wrong))
        yield right, wrong, (weights @ counts.objects).astype(np.float64)[:, None]


def _count_by_image(
    overlaps: Overlaps, matches: ResultMatches, category: int | None, threshold: float, curve: ScoreCurve, images: Ints
) -> _ImageCounts:
    """Counts at the chosen threshold and at scores that have equally many results between them."""
    candidates = np.unique([threshold, *curve.scores[spread_places(curve)].tolist()])[::-1]
    counted, whole = counted_results(overlaps, matches, category), counted_objects(overlaps, category)
    of_result = np.searchsorted(images, overlaps.result_image[counted])
    of_object = np.searchsorted(images, overlaps.object_image[whole])
    first = np.searchsorted(-candidates, -overlaps.score[counted])  # the highest candidate that the score reaches
    inside = first < len(candidates)
    found = matches.right[counted]
    sides = []
    for side in (found, ~found):
        kept = inside & side
        flat = np.bincount(
            of_result[kept] * len(candidates) + first[kept], minlength=len(images) * len(candidates)
        ).reshape(len(images), len(candidates))
        sides.append(np.cumsum(flat, axis=1).astype(np.float32))
    objects = np.bincount(of_object, minlength=len(images)).astype(np.float32)
    return _ImageCounts(candidates, sides[0], sides[1], objects, int(np.flatnonzero(candidates == threshold)[0]))


def _resample(counts: _ImageCounts, aim: Aim, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """The threshold chosen on each resample (B,), and precision, recall and F1 at the chosen threshold (B, 3)."""
    chosen: list[Floats] = []
    at_point: list[Floats] = []
    for right, wrong, objects in _resampled_counts(counts, resamples, seed):
        chosen.append(counts.thresholds[aim.value(right, wrong, objects).argmax(axis=1)])
        one, other, all_of = right[:, counts.chosen], wrong[:, counts.chosen], objects[:, 0]
        columns = (
            defined_ratio(one, one + other),
            defined_ratio(one, all_of),
            defined_ratio(2 * one, one + other + all_of),
        )
        at_point.append(np.stack(columns, axis=1))
    return np.concatenate(chosen), np.concatenate(at_point)


def draw_weights(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """How often each image is drawn, (b, I) float32 in blocks of bounded memory."""
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, _BLOCK // images))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(images, size=(size, images)) + np.arange(size)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(np.float32)
