"""Types of what COCO files hold: masks, results, metrics. Keys and units are COCO's own."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class CocoRle(TypedDict):
    """A mask as COCO's compressed run-length encoding: runs down the columns; size: [height, width]."""

    size: list[int]
    counts: str


class CocoResult(TypedDict):
    """One entry of a COCO results file. bbox: [left, top, width, height] in pixels."""

    image_id: int
    category_id: int
    segmentation: CocoRle
    score: float
    bbox: NotRequired[list[float]]


class PointNumbers(TypedDict):
    """Counts with the results whose score is at least the threshold; ratios in 0..1, -1 where they are undefined.

    right, wrong: results that find an object, or none. missed: objects that no result finds.
    """

    right: int
    wrong: int
    missed: int
    precision: float
    recall: float
    f1: float


class OperatingCurve(TypedDict):
    """Counts with the results whose score is at least each of some thresholds, from the highest down."""

    thresholds: list[float]
    right: list[int]
    wrong: list[int]


class ClassPoint(TypedDict):
    """The operating point of one class. own: the threshold is of this class; if not, `why` the overall one is used.

    points, intervals, curves: as in `OperatingBlock`, at `threshold`.
    """

    threshold: float
    own: bool
    why: str
    objects: int
    points: dict[str, PointNumbers]
    intervals: dict[str, list[float]]
    curves: dict[str, OperatingCurve]


class CopyNumbers(TypedDict):
    """What dropping copies brings: the best overlap, None if it does not raise F1 beyond noise."""

    overlap: float | None
    dropped: int
    gain: float
    gain_interval: list[float]


class CalibrationNumbers(TypedDict):
    """How well scores say how often results are right, and the map that says it better (`ScoreCalibration`).

    error: the expected calibration error at the IoU of the operating point, of the scores as they are; mapped: of the
    scores after a map that was fitted on other images; both -1 without results. scale, shift: of the map. helps:
    whether it is better on images that it was not fitted on, beyond noise; if not, `why`. applied: whether the scores,
    and so the thresholds, of this evaluation are those after the map. before: scale and shift that the model had; None:
    unknown, of a file of results.
    """

    scale: float
    shift: float
    error: float
    mapped: float
    helps: bool
    why: str
    applied: bool
    before: list[float] | None


class OperatingBlock(TypedDict):
    """The operating point of an evaluation.

    data: name of the data, see `name_of_data`. aim: what the threshold is chosen for. iou: at which a result
    finds an object. threshold: of all classes together; None if no result finds an object. reached: whether the target
    is reached. stable: whether the choice can be trusted; if not, `why`. images: with a result or an object. points:
    IoU ("0.50", "0.75") -> counts at the threshold; default: the same at the threshold 0.5. intervals: precision,
    recall, f1 and threshold -> where 95 % of the resamples of the images lie. per_class: name -> the same of one class.
    copies: of the results; if their overlap is a number, all counts are without them. calibration: of the
    scores. curves: IoU -> counts over the threshold.
    """

    data: str
    aim: str
    iou: float
    threshold: float | None
    reached: bool
    stable: bool
    why: str
    images: int
    objects: int
    points: dict[str, PointNumbers]
    default: dict[str, PointNumbers]
    intervals: dict[str, list[float]]
    per_class: dict[str, ClassPoint]
    copies: CopyNumbers
    calibration: NotRequired[CalibrationNumbers]  # not in evaluations of earlier versions
    curves: dict[str, OperatingCurve]


class Metrics(TypedDict, total=False):
    """The content of metrics.json: numbers in 0..1, -1 where COCO leaves a metric undefined.

    per_class: name -> AP. operating_point: precision, recall and F1 at a score threshold. notes: sentences that a
    reader of the metrics should see. step: optimiser steps so far.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    boundary_AP: float
    box_AP: float
    per_class: dict[str, float]
    operating_point: OperatingBlock
    images: int
    detections: int
    max_detections: int
    notes: list[str]
    seconds: float
    step: int
