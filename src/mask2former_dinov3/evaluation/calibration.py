"""Calibration: whether results with a score of 0.8 are right in 80 of 100 cases.

D results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.array_types import Bools, Floats
from .matches import Overlaps, ResultMatches

BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Results with scores from `low` to `high`: number, mean score, and the part of them that finds an object."""

    low: float
    high: float
    count: int
    score: float
    precision: float


@dataclass(frozen=True)
class Calibration:
    """Reliability of scores at one IoU. error: the expected calibration error (ECE, arXiv:1706.04599), the mean
    distance between score and precision over results; -1 without results. bins: those that hold results."""

    iou: float
    error: float
    bins: list[ReliabilityBin]


def calibration_of(overlaps: Overlaps, matches: ResultMatches) -> Calibration:
    """Scores of all results against their precision, in `BINS` bins of equal width.

    Results in crowd regions do not count.
    """
    counted = ~matches.ignored
    return Calibration(matches.iou, *reliability_of(overlaps.score[counted], matches.right[counted]))


def reliability_of(score: Floats, right: Bools) -> tuple[float, list[ReliabilityBin]]:
    """The expected calibration error, -1 without results, and the bins. score, right (D,): whether it finds an object.

    Scores outside of 0..1, which are no probabilities, count in the first or last bin.
    """
    place = np.clip(score * BINS, 0, BINS - 1).astype(np.int64)
    count = np.bincount(place, minlength=BINS)
    total, hits = np.bincount(place, score, BINS), np.bincount(place, right, BINS)
    filled = np.flatnonzero(count).tolist()
    found = [
        ReliabilityBin(
            number / BINS,
            (number + 1) / BINS,
            int(count[number]),
            total[number] / count[number],
            hits[number] / count[number],
        )
        for number in filled
    ]
    distance = sum(one.count * abs(one.score - one.precision) for one in found)
    return (distance / len(score) if len(score) else -1.0), found
