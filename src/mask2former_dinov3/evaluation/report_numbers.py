"""Every number of a report in one structure: what `report.json` holds, and the page shows.

K classes, D results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..data.array_types import Bools, Floats, Ints
from ..data.coco_types import Metrics
from .average_precision import mean_over_classes
from .bootstrap import ApInterval, BootstrapIntervals, bootstrap_intervals
from .breakdown import Breakdown, breakdown_of
from .calibration import Calibration, calibration_of
from .coco_files import GroundTruth, ScoredMask
from .confusion import confusion_matrix
from .doubtful_labels import DoubtfulLabel, count_kinds, doubtful_labels
from .error_kinds import ErrorCost, ErrorKinds, classify_errors, error_costs
from .image_ranking import ImageCount, count_images
from .matches import Overlaps, ResultMatches, match_overlaps, overlaps_of
from .operating_point import BEST_F1, FEWEST_OBJECTS, Aim, ThresholdChoice, best_point, choose_point
from .score_curves import CURVE_IOUS, ScoreCurve, ScorePoint, score_curve
from .stored_evaluation import names_of_images

CURVE_POINTS = 200  # of a curve in a report
NO_THRESHOLD = 0.5  # where no result finds an object, so that none can be chosen


@dataclass(frozen=True)
class ClassNumbers:
    """One class. objects: without crowd regions. results: those with a score of at least `threshold`. ap: with its
    interval. precision, recall, f1: at the threshold and an IoU of 0.5. -1: undefined."""

    name: str
    objects: int
    results: int
    ap: ApInterval
    AP50: float
    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class CurveNumbers:
    """Precision, recall and F1 over the score threshold, at most `CURVE_POINTS` of each. name: a class, or "" for all.

    score: descending."""

    name: str
    iou: float
    score: list[float]
    precision: list[float]
    recall: list[float]
    f1: list[float]


@dataclass(frozen=True)
class ReportNumbers:
    """All numbers. objects: without crowd regions. classes, confusion: in the order of the class numbers.

    point: counts of all classes together, each at its own threshold. choice: the threshold of all classes together with
    its uncertainty, None where no result finds an object. confusion: see `confusion_matrix`. AP50: that the errors are
    counted against. images: in the order of their numbers.
    """

    metrics: Metrics
    objects: int
    crowd_regions: int
    intervals: BootstrapIntervals
    classes: list[ClassNumbers]
    choice: ThresholdChoice | None
    point: ScorePoint
    curves: list[CurveNumbers]
    confusion: Ints
    calibration: Calibration
    breakdown: Breakdown
    AP50: float
    errors: list[ErrorCost]
    images: list[ImageCount]
    doubts: list[DoubtfulLabel]


@dataclass(frozen=True)
class Findings:
    """The numbers with what they are counted from. thresholds (K,): by class; shown (D,) bool: results that count at
    these; matches: at an IoU of 0.5; image_ids, file_names: by image number."""

    truth: GroundTruth
    results: Sequence[ScoredMask]
    overlaps: Overlaps
    matches: ResultMatches
    errors: ErrorKinds
    thresholds: Floats
    shown: Bools
    image_ids: Mapping[int, int]
    file_names: Mapping[int, str]
    numbers: ReportNumbers


def count_findings(
    truth: GroundTruth, results: Sequence[ScoredMask], metrics: Metrics, *, aim: Aim = BEST_F1, seed: int = 0
) -> Findings:
    """Count everything that a report shows. metrics: those of the results, with `max_detections`. seed: of resamples.

    Thresholds are chosen for the aim, for a class with fewer than `FEWEST_OBJECTS` objects the one of all classes.
    """
    names, images = truth.names, np.array(sorted(truth.sizes), dtype=np.int64)
    overlaps = overlaps_of(truth, results, metrics["max_detections"])
    matches = match_overlaps(overlaps, CURVE_IOUS[0])
    choice = choose_point(overlaps, matches, aim, seed=seed)
    by_class = [score_curve(overlaps, matches, number) for number in range(1, len(names) + 1)]
    thresholds = _thresholds(by_class, choice, aim)
    shown = overlaps.score >= thresholds[overlaps.result_category - 1]
    errors = classify_errors(overlaps, matches)
    ap50, costs = error_costs(overlaps, matches, errors, len(names))
    doubts = doubtful_labels(truth, overlaps, matches, thresholds)
    intervals = bootstrap_intervals(overlaps, images, names, seed)
    points = [curve.at(float(threshold)) for curve, threshold in zip(by_class, thresholds, strict=True)]
    numbers = ReportNumbers(
        metrics=metrics,
        objects=int((~overlaps.crowd).sum()),
        crowd_regions=int(overlaps.crowd.sum()),
        intervals=intervals,
        classes=[
            _class_numbers(name, curve, point, intervals.per_class[name], float(value))
            for name, curve, point, value in zip(names, by_class, points, ap50, strict=True)
        ],
        choice=choice,
        point=ScorePoint(
            choice.point.threshold if choice else NO_THRESHOLD,
            sum(one.right for one in points),
            sum(one.wrong for one in points),
            sum(one.missed for one in points),
        ),
        curves=[
            *(_curve_numbers("", score_curve(overlaps, match_overlaps(overlaps, iou))) for iou in CURVE_IOUS),
            *(_curve_numbers(name, curve) for name, curve in zip(names, by_class, strict=True) if len(names) > 1),
        ],
        confusion=confusion_matrix(overlaps, thresholds),
        calibration=calibration_of(overlaps, matches),
        breakdown=breakdown_of(overlaps, truth),
        AP50=float(mean_over_classes(ap50)),
        errors=costs,
        images=count_images(overlaps, matches, shown, images, doubts),
        doubts=doubts,
    )
    ids = {number: key for key, number in truth.images.items()}
    file_names = {number: f"image {key}" for number, key in ids.items()} | names_of_images(truth)
    return Findings(truth, results, overlaps, matches, errors, thresholds, shown, ids, file_names, numbers)


def _thresholds(curves: Sequence[ScoreCurve], choice: ThresholdChoice | None, aim: Aim) -> Floats:
    """The threshold of every class, (K,)."""
    common = choice.point.threshold if choice else NO_THRESHOLD
    own = [best_point(curve, aim) if curve.objects >= FEWEST_OBJECTS else None for curve in curves]
    return np.array([common if one is None else one.threshold for one in own], dtype=np.float64)


def _class_numbers(name: str, curve: ScoreCurve, point: ScorePoint, ap: ApInterval, ap50: float) -> ClassNumbers:
    made = point.right + point.wrong
    rates = (point.precision, point.recall, point.f1)
    return ClassNumbers(name, curve.objects, made, ap, ap50, point.threshold, *rates)


def _curve_numbers(name: str, curve: ScoreCurve) -> CurveNumbers:
    """The curve, thinned evenly over its points."""
    count = len(curve.scores)
    places = np.unique(np.linspace(0, count - 1, min(count, CURVE_POINTS)).round().astype(np.int64))
    columns = (curve.scores, curve.precision, curve.recall, curve.f1)
    return CurveNumbers(name, curve.iou, *(np.round(column[places], 6).tolist() for column in columns))


def numbers_to_json(findings: Findings) -> dict[str, object]:
    """The content of report.json, but the verdict and the run: numbers in 0..1, -1 where they are undefined."""
    numbers, names = findings.numbers, findings.truth.names
    content = asdict(numbers)
    for key in ("confusion", "choice", "point", "images", "doubts"):
        del content[key]
    rows, columns = np.nonzero(numbers.confusion)
    content["operating_point"] = numbers.point.to_json()
    content["threshold_choice"] = None if numbers.choice is None else _choice_to_json(numbers.choice)
    content["confusion"] = {
        "true": [*names, "(nothing)"],
        "found": [*names, "(missed)"],
        "cells": [
            [row, column, int(numbers.confusion[row, column])]
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ],
    }
    content["images"] = [
        {
            **asdict(one),
            "image": findings.image_ids[one.image],
            "file_name": findings.file_names[one.image],
        }
        for one in numbers.images
    ]
    content["labels_in_doubt"] = {"counts": count_kinds(numbers.doubts), "file": "labels_in_doubt.json"}
    return content


def _choice_to_json(choice: ThresholdChoice) -> dict[str, object]:
    return {
        "aim": choice.aim.text,
        "reached": choice.reached,
        **choice.point.to_json(),
        "intervals": {name: list(getattr(choice, name)) for name in ("thresholds", "precision", "recall", "f1")},
        "loss": choice.loss,
        "unstable": choice.unstable,
    }
