"""Precision, recall and F1 over the score threshold, from the matches of all results.

A result counts as right or wrong by `matches`: the best results take their objects first, so the matches of the results
above a threshold are the same whatever lies below it, and one matching gives the whole curve.

D results, G objects, S thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..data.array_types import Bools, Floats, Ints
from ..data.coco_types import PointNumbers
from .matches import Overlaps, ResultMatches

CURVE_IOUS = (0.5, 0.75)  # IoU thresholds at which curves are counted; the first one chooses


def defined_ratio(part: ArrayLike, whole: ArrayLike) -> Floats:
    """part / whole, -1 where whole is 0: undefined, as in COCO's metrics."""
    above, below = np.broadcast_arrays(np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64))
    quotient: Floats = np.divide(above, below, out=np.full(above.shape, -1.0), where=below > 0)
    return quotient


@dataclass(frozen=True)
class ScorePoint:
    """What is counted with the results whose score is at least `threshold`.

    right: results that find an object (true positives). wrong: results that find none (false positives). missed:
    objects that no result finds (false negatives). precision, recall, f1: 0..1, -1 where they are undefined.
    """

    threshold: float
    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float:
        return _one_ratio(self.right, self.right + self.wrong)

    @property
    def recall(self) -> float:
        return _one_ratio(self.right, self.right + self.missed)

    @property
    def f1(self) -> float:
        return _one_ratio(2 * self.right, 2 * self.right + self.wrong + self.missed)

    def to_json(self) -> PointNumbers:
        """The counts and their ratios, rounded to 6 decimals."""
        return {
            "right": self.right,
            "wrong": self.wrong,
            "missed": self.missed,
            "precision": round(self.precision, 6),
            "recall": round(self.recall, 6),
            "f1": round(self.f1, 6),
        }


def _one_ratio(part: int, whole: int) -> float:
    return part / whole if whole else -1.0


@dataclass(frozen=True)
class ScoreCurve:
    """Counts of the results with a score of at least each of S thresholds, which are all scores that occur.

    iou: at which a result finds an object. objects: number of objects, without crowd regions. scores (S,) float64,
    descending and different. right, wrong (S,) int64: results with at least that score that find an object, or none.
    """

    iou: float
    objects: int
    scores: Floats
    right: Ints
    wrong: Ints

    @property
    def precision(self) -> Floats:
        """(S,)."""
        return defined_ratio(self.right, self.right + self.wrong)

    @property
    def recall(self) -> Floats:
        """(S,)."""
        return defined_ratio(self.right, self.objects)

    @property
    def f1(self) -> Floats:
        """(S,): 2 right / (results + objects)."""
        return defined_ratio(2 * self.right, self.right + self.wrong + self.objects)

    def at(self, threshold: float) -> ScorePoint:
        """The counts with the results whose score is at least `threshold`."""
        last = int(np.searchsorted(-self.scores, -threshold, side="right")) - 1
        right, wrong = (int(self.right[last]), int(self.wrong[last])) if last >= 0 else (0, 0)
        return ScorePoint(threshold, right, wrong, self.objects - right)


def score_curve(overlaps: Overlaps, matches: ResultMatches, category: int | None = None) -> ScoreCurve:
    """The curve of all classes, or of one category number. Results in crowd regions count neither way."""
    counted = counted_results(overlaps, matches, category)
    scores = overlaps.score[counted]
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], matches.right[counted][order]
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of equal scores the last
    right = np.cumsum(found)[last]
    objects = int(counted_objects(overlaps, category).sum())
    return ScoreCurve(matches.iou, objects, scores[last], right.astype(np.int64), (last + 1 - right).astype(np.int64))


def counted_results(overlaps: Overlaps, matches: ResultMatches, category: int | None) -> Bools:
    """(D,) bool: the results of a category that are right or wrong."""
    kept = ~matches.ignored
    return kept if category is None else kept & (overlaps.result_category == category)


def counted_objects(overlaps: Overlaps, category: int | None) -> Bools:
    """(G,) bool: the objects of a category that can be found."""
    kept = ~overlaps.crowd
    return kept if category is None else kept & (overlaps.object_category == category)
