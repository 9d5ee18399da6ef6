"""The operating point of an evaluation: the numbers of metrics.json, what a model stores, and what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import TypedDict

import numpy as np

from ..data.coco_types import CalibrationNumbers, ClassPoint, CopyNumbers, OperatingBlock, OperatingCurve, PointNumbers
from ..inference.score_calibration import UNCHANGED, ScoreCalibration
from ..inference.settings import DEFAULT_THRESHOLD, LARGEST_COUNT
from .calibration_fit import calibration_in, choose_calibration
from .coco_files import GroundTruth, ScoredMask
from .copy_choice import choose_copy_overlap
from .matches import Overlaps, ResultMatches, match_overlaps, overlaps_of
from .operating_point import (
    BEST_F1,
    FEWEST_OBJECTS,
    Aim,
    ThresholdChoice,
    best_point,
    choose_point,
    spread_places,
)
from .score_curves import CURVE_IOUS, ScoreCurve, score_curve

_Matched = tuple[Overlaps, dict[float, ResultMatches]]


class StoredThreshold(TypedDict):
    """The fields of a model's config.json on the operating point."""

    score_threshold: float | dict[str, float] | None
    score_threshold_source: dict[str, object] | None
    copy_overlap: float | None
    score_calibration: list[float] | None


NOT_STORED = StoredThreshold(
    score_threshold=None, score_threshold_source=None, copy_overlap=None, score_calibration=None
)


def operating_block(
    truth: GroundTruth, results: Sequence[ScoredMask], aim: Aim = BEST_F1, *, calibrate: bool = False
) -> OperatingBlock:
    """Thresholds for an aim, of all classes together and of each, with the numbers at them.

    All results count, whatever the limit of COCO's metrics. A class has a threshold of its own if it has at least
    `FEWEST_OBJECTS` objects and the choice on them is stable. calibrate: if calibrated scores are better, the
    thresholds are those of calibrated scores.
    """
    overlaps = overlaps_of(truth, results, LARGEST_COUNT)
    copies = choose_copy_overlap(overlaps, results)
    matches = {iou: match_overlaps(copies.overlaps, iou) for iou in CURVE_IOUS}
    calibration = choose_calibration(copies.overlaps, matches[CURVE_IOUS[0]])
    calibration["applied"] = calibrate and calibration["helps"]
    overlaps = copies.overlaps
    if calibration["applied"]:
        scores = calibration_in(calibration).apply(overlaps.score).astype(np.float32)
        overlaps = replace(overlaps, score=scores.astype(np.float64))
    matched = overlaps, matches
    choice = choose_point(overlaps, matches[CURVE_IOUS[0]], aim)
    threshold = None if choice is None else choice.point.threshold
    used = DEFAULT_THRESHOLD if threshold is None else threshold
    several = len(truth.names) > 1
    return OperatingBlock(
        data=truth.data,
        aim=aim.text,
        iou=CURVE_IOUS[0],
        threshold=threshold,
        reached=choice is not None and choice.reached,
        stable=choice is not None and not choice.unstable,
        why="no result finds an object" if choice is None else _not_stable(choice),
        images=0 if choice is None else choice.images,
        objects=int((~overlaps.crowd).sum()),
        points=_points(matched, used),
        default=_points(matched, DEFAULT_THRESHOLD),
        intervals=_intervals(choice),
        per_class={
            name: _class_point(matched, number, aim, used) for number, name in enumerate(truth.names, 1) if several
        },
        copies=CopyNumbers(
            overlap=copies.overlap,
            dropped=copies.dropped,
            gain=round(copies.gain, 6),
            gain_interval=[round(one, 6) for one in copies.gains],
        ),
        calibration=calibration,
        curves=_curves(matched),
    )


def _not_stable(choice: ThresholdChoice) -> str:
    return f"not stable: {choice.unstable}" if choice.unstable else ""


def _class_point(matched: _Matched, number: int, aim: Aim, overall: float) -> ClassPoint:
    """Of one category number. overall: the threshold where the class has none of its own."""
    overlaps, matches = matched
    objects = int((~overlaps.crowd & (overlaps.object_category == number)).sum())
    choice, why = None, f"{objects} objects, fewer than {FEWEST_OBJECTS}"
    if objects >= FEWEST_OBJECTS:
        choice = choose_point(overlaps, matches[CURVE_IOUS[0]], aim, number)
        why = "no result finds an object" if choice is None else _not_stable(choice)
    threshold = overall if choice is None or why else choice.point.threshold
    return ClassPoint(
        threshold=threshold,
        own=not why,
        why=why,
        objects=objects,
        points=_points(matched, threshold, number),
        intervals=_intervals(None if why else choice),
        curves=_curves(matched, number),
    )


def _points(matched: _Matched, threshold: float, number: int | None = None) -> dict[str, PointNumbers]:
    overlaps, matches = matched
    return {f"{iou:.2f}": score_curve(overlaps, one, number).at(threshold).to_json() for iou, one in matches.items()}


def _curves(matched: _Matched, number: int | None = None) -> dict[str, OperatingCurve]:
    overlaps, matches = matched
    return {f"{iou:.2f}": _thin_curve(score_curve(overlaps, one, number)) for iou, one in matches.items()}


def _thin_curve(curve: ScoreCurve) -> OperatingCurve:
    places = spread_places(curve) if len(curve.scores) else np.zeros(0, np.int64)
    return OperatingCurve(
        thresholds=curve.scores[places].tolist(), right=curve.right[places].tolist(), wrong=curve.wrong[places].tolist()
    )


def _intervals(choice: ThresholdChoice | None) -> dict[str, list[float]]:
    if choice is None:
        return {}
    ranges = {"threshold": choice.thresholds, "precision": choice.precision, "recall": choice.recall, "f1": choice.f1}
    return {name: [round(one, 6) for one in both] for name, both in ranges.items()}


def without_curves(block: OperatingBlock) -> OperatingBlock:
    """The block without its curves, which are long, for the state of a training run."""
    classes = {name: ClassPoint(**{**one, "curves": {}}) for name, one in block["per_class"].items()}
    return OperatingBlock(**{**block, "per_class": classes, "curves": {}})


def stored_maps(block: OperatingBlock, before: ScoreCalibration | None) -> tuple[ScoreCalibration, ScoreCalibration]:
    """The map from thresholds of an evaluation to those that a model stores, and the calibration that it stores.

    before: see `stored_threshold`.
    """
    numbers = block.get("calibration")
    found = calibration_in(numbers)
    if numbers is not None and numbers["applied"]:
        return UNCHANGED, found
    return (UNCHANGED, UNCHANGED) if before is None else (found, before.then(found))


def stored_threshold(block: OperatingBlock, before: ScoreCalibration | None = UNCHANGED) -> StoredThreshold:
    """What a model stores: one threshold, or one for each class where a class has its own.

    before: the calibration of the scores that were evaluated; None: unknown, so that none can follow it. Thresholds
    are those of calibrated scores where calibration helps.
    """
    if block["threshold"] is None:
        return NOT_STORED
    later, calibration = stored_maps(block, before)
    classes = block["per_class"]
    by_class = {name: float(later.apply(one["threshold"])) for name, one in classes.items()}
    overall = float(later.apply(block["threshold"]))
    return StoredThreshold(
        score_threshold=by_class if any(one["own"] for one in classes.values()) else overall,
        score_threshold_source={
            "metric": block["aim"],
            "iou": block["iou"],
            "data": block["data"],
            "images": block["images"],
            "date": date.today().isoformat(),
        },
        copy_overlap=block["copies"]["overlap"],
        score_calibration=None if calibration == UNCHANGED else [round(one, 6) for one in calibration],
    )


def choose_again(block: OperatingBlock, aim: Aim) -> OperatingBlock:
    """The block of another aim, chosen among the thresholds of its curves, without intervals.

    A class with at least `FEWEST_OBJECTS` objects has its own.
    """
    curves = {name: one["curves"] for name, one in block["per_class"].items()}
    overall = _again(block["curves"], block["objects"], aim)
    again = OperatingBlock(**{**block, "aim": aim.text, "intervals": {}, "per_class": {}})
    if overall is None:
        return again
    again["threshold"], again["reached"], again["points"] = overall
    again["stable"] = False
    again["why"] = "chosen from the evaluation's curves without intervals; `evaluate` with this target gives them"
    for name, one in block["per_class"].items():
        few = one["objects"] < FEWEST_OBJECTS
        found = None if few else _again(curves[name], one["objects"], aim)
        if found is None:
            whole = {key: restore_curve(key, curve, one["objects"]) for key, curve in curves[name].items()}
            found = overall[0], True, {key: curve.at(overall[0]).to_json() for key, curve in whole.items()}
            why = one["why"] if few else "no result finds an object"
        else:
            why = ""
        again["per_class"][name] = ClassPoint(
            threshold=found[0],
            own=not why,
            why=why,
            objects=one["objects"],
            points=found[2],
            intervals={},
            curves=curves[name],
        )
    return again


def _again(
    curves: dict[str, OperatingCurve], objects: int, aim: Aim
) -> tuple[float, bool, dict[str, PointNumbers]] | None:
    """Threshold, whether the target is reached, and the counts at it."""
    whole = {name: restore_curve(name, one, objects) for name, one in curves.items()}
    point = best_point(whole[f"{CURVE_IOUS[0]:.2f}"], aim)
    if point is None:
        return None
    points = {name: curve.at(point.threshold).to_json() for name, curve in whole.items()}
    return point.threshold, aim.reached(point), points


def restore_curve(iou: str, curve: OperatingCurve, objects: int) -> ScoreCurve:
    """The curve that metrics.json holds under its IoU. objects: of its class."""
    counts = (np.array(curve["right"], dtype=np.int64), np.array(curve["wrong"], dtype=np.int64))
    return ScoreCurve(float(iou), objects, np.array(curve["thresholds"], dtype=np.float64), *counts)


def operating_lines(block: OperatingBlock) -> list[str]:
    """The block in a few lines for people."""
    if block["threshold"] is None:
        return [f"operating point: none, {block['why']}"]
    first, second = (f"{iou:.2f}" for iou in CURVE_IOUS)
    point, default = block["points"][first], block["default"][first]
    inside = {name: f" ({low:.3f} to {high:.3f})" for name, (low, high) in block["intervals"].items()}
    numbers = {"precision": point["precision"], "recall": point["recall"], "f1": point["f1"]}
    shown = ", ".join(f"{name.replace('f1', 'F1')} {one:.3f}{inside.get(name, '')}" for name, one in numbers.items())
    lines = [
        f"operating point: score threshold {block['threshold']:g}, {block['aim']} at IoU {block['iou']:g}: {shown}",
        f"  at the threshold {DEFAULT_THRESHOLD:g}: precision {_show(default['precision'])}, recall "
        f"{_show(default['recall'])}, F1 {_show(default['f1'])}; at IoU {float(second):g}: F1 "
        f"{_show(block['points'][second]['f1'])}",
    ]
    if block["per_class"]:
        own = [f"{name} {one['threshold']:g}" for name, one in block["per_class"].items() if one["own"]]
        others = [f"{name} ({one['why']})" for name, one in block["per_class"].items() if not one["own"]]
        lines += [f"  by class: {', '.join(own)}"] if own else []
        lines += [f"  with the threshold of all: {', '.join(others)}"] if others else []
    if not block["reached"]:
        lines.append(f"note: a {block['aim']} is not reached at any threshold; the nearest is shown")
    if not block["stable"]:
        lines.append(f"note: the threshold is {block['why']}")
    return lines + _copy_lines(block["copies"]) + _calibration_lines(block.get("calibration"))


def _calibration_lines(numbers: CalibrationNumbers | None) -> list[str]:
    if numbers is None:
        return []
    if not numbers["helps"]:
        return [f"  scores stay as they are: {numbers['why']}"] if numbers["why"] else []
    known = f"{numbers['mapped']:.3f} instead of {numbers['error']:.3f} (expected calibration error on other images)"
    if numbers["applied"]:
        return [f"  scores are calibrated, and so are the thresholds: {known}"]
    return [f"  calibrated scores would be better: {known}; `set-threshold --from` stores both"]


def _copy_lines(copies: CopyNumbers) -> list[str]:
    if not copies["dropped"]:
        return []
    low, high = copies["gain_interval"]
    text = f"F1 {copies['gain']:+.4f} ({low:+.4f} to {high:+.4f}), {copies['dropped']} results"
    if copies["overlap"] is None:
        return [f"  dropping copies does not raise F1 beyond noise ({text}): off"]
    return [f"  copies: dropped where more than {copies['overlap']:g} of one lies in a better one ({text})"]


def _show(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "undefined"
