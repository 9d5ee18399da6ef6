"""Every number of a report in one structure: what `report.json` holds, and the page shows.

K classes, D results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..data.array_types import Bools, Floats, Ints
from ..data.coco_types import ClassPoint, Metrics, OperatingBlock, PointNumbers
from ..inference.settings import DEFAULT_THRESHOLD, LARGEST_COUNT
from .average_precision import count_objects, mean_over_classes
from .bootstrap import ApInterval, BootstrapIntervals, bootstrap_intervals
from .breakdown import Breakdown, breakdown_of
from .calibration import Calibration, calibration_of
from .coco_files import GroundTruth, ScoredMask
from .confusion import confusion_matrix
from .copy_choice import drop_copies
from .doubtful_labels import DoubtfulLabel, count_kinds, doubtful_labels
from .error_kinds import ErrorCost, ErrorKinds, classify_errors, error_costs
from .image_ranking import ImageCount, count_images
from .matches import Overlaps, ResultMatches, match_overlaps, overlaps_of
from .score_curves import CURVE_IOUS, ScorePoint
from .stored_evaluation import names_of_images
from .threshold_choice import operating_block, restore_curve

_POINT = f"{CURVE_IOUS[0]:.2f}"


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
class ReportCurve:
    """Precision, recall and F1 over the score threshold, of the operating point in metrics.json. name: a class, or ""
    for all. score: descending."""

    name: str
    iou: float
    score: list[float]
    precision: list[float]
    recall: list[float]
    f1: list[float]


@dataclass(frozen=True)
class ReportNumbers:
    """All numbers. objects: without crowd regions. classes, confusion: in the order of the class numbers.

    operating: the thresholds, those of metrics.json. point: counts of all classes together, each at its threshold.
    confusion: see `confusion_matrix`. AP50: that the errors are counted against. images: in the order of their numbers.
    """

    metrics: Metrics
    objects: int
    crowd_regions: int
    intervals: BootstrapIntervals
    classes: list[ClassNumbers]
    operating: OperatingBlock
    point: ScorePoint
    curves: list[ReportCurve]
    confusion: Ints
    calibration: Calibration
    breakdown: Breakdown
    AP50: float
    errors: list[ErrorCost]
    images: list[ImageCount]
    doubts: list[DoubtfulLabel]


@dataclass(frozen=True)
class Findings:
    """The numbers with what they are counted from.

    overlaps, matches (at an IoU of 0.5), errors: of all results but copies, where the operating point drops these.
    thresholds (K,): by class; shown (D,) bool: results that count at these. image_ids, file_names: by image number.
    """

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


def count_findings(truth: GroundTruth, results: Sequence[ScoredMask], metrics: Metrics, *, seed: int = 0) -> Findings:
    """Count everything that a report shows.

    metrics: those of the results, whose operating point gives the thresholds; without one they are chosen for the best
    F1. AP and errors by kind count the results that COCO counts (max_detections), the rest counts all. seed: of the
    resamples.
    """
    names, images = truth.names, np.array(sorted(truth.sizes), dtype=np.int64)
    block = metrics.get("operating_point") or operating_block(truth, results)
    common = DEFAULT_THRESHOLD if block["threshold"] is None else block["threshold"]
    classes = [block["per_class"].get(name) for name in names]
    thresholds = np.array([common if one is None else one["threshold"] for one in classes], dtype=np.float64)
    scored = overlaps_of(truth, results, metrics["max_detections"])
    scored_matches = match_overlaps(scored, CURVE_IOUS[0])
    ap50, costs = error_costs(scored, scored_matches, classify_errors(scored, scored_matches), len(names))
    intervals = bootstrap_intervals(scored, images, names, seed)
    every = overlaps_of(truth, results, LARGEST_COUNT) if scored.left_out else scored
    overlaps = drop_copies(every, results, block["copies"]["overlap"], float(thresholds.min(initial=common)))
    matches = match_overlaps(overlaps, CURVE_IOUS[0])
    shown = overlaps.score >= thresholds[overlaps.result_category - 1]
    right, objects = int((shown & matches.right).sum()), count_objects(overlaps, len(names))
    doubts = doubtful_labels(truth, overlaps, matches, thresholds)
    points = [block["points"] if one is None else one["points"] for one in classes]
    numbers = ReportNumbers(
        metrics=metrics,
        objects=int(objects.sum()),
        crowd_regions=int(overlaps.crowd.sum()),
        intervals=intervals,
        classes=[
            _class_numbers(name, int(count), point[_POINT], float(threshold), intervals.per_class[name], float(value))
            for name, count, point, threshold, value in zip(names, objects, points, thresholds, ap50, strict=True)
        ],
        operating=block,
        point=ScorePoint(common, right, int((shown & matches.wrong).sum()), int(objects.sum()) - right),
        curves=[*_curves("", block), *(curve for name in names for curve in _curves(name, block))],
        confusion=confusion_matrix(overlaps, thresholds),
        calibration=calibration_of(overlaps, matches),
        breakdown=breakdown_of(scored, truth),
        AP50=float(mean_over_classes(ap50)),
        errors=costs,
        images=count_images(overlaps, matches, shown, images, doubts),
        doubts=doubts,
    )
    ids = {number: key for key, number in truth.images.items()}
    file_names = {number: f"image {key}" for number, key in ids.items()} | names_of_images(truth)
    errors = classify_errors(overlaps, matches)
    return Findings(truth, results, overlaps, matches, errors, thresholds, shown, ids, file_names, numbers)


def _class_numbers(
    name: str, objects: int, point: PointNumbers, threshold: float, ap: ApInterval, ap50: float
) -> ClassNumbers:
    rates = (point["precision"], point["recall"], point["f1"])
    return ClassNumbers(name, objects, point["right"] + point["wrong"], ap, ap50, threshold, *rates)


def _curves(name: str, block: OperatingBlock) -> list[ReportCurve]:
    """The curves of one class, or of all together."""
    if name and name not in block["per_class"]:  # the only class
        return []
    own: OperatingBlock | ClassPoint = block["per_class"][name] if name else block
    found = []
    for iou, counts in own["curves"].items():
        curve = restore_curve(iou, counts, own["objects"])
        columns = (curve.scores, curve.precision, curve.recall, curve.f1)
        found.append(ReportCurve(name, curve.iou, *(column.tolist() for column in columns)))
    return found


def numbers_to_json(findings: Findings) -> dict[str, object]:
    """The content of report.json, but the verdict and the run: numbers in 0..1, -1 where they are undefined."""
    numbers, names = findings.numbers, findings.truth.names
    content = asdict(numbers)
    for key in ("confusion", "operating", "curves", "point", "images", "doubts"):  # the curves are in the metrics
        del content[key]
    rows, columns = np.nonzero(numbers.confusion)
    content["operating_point"] = {"threshold": numbers.point.threshold, **numbers.point.to_json()}
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
