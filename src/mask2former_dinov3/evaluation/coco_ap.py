"""COCO AP of a results file on an annotation file.

The numbers are those of pycocotools (to 1e-6, tested), computed by faster-coco-eval, which also gives boundary AP
(arXiv:2103.16562).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray

from ..data.coco_types import Metrics
from ..data.layout import Split
from ..data.read_rules import ReadRules
from ..inference.settings import InferenceSettings
from ..json_files import is_number
from .coco_files import (
    GroundTruth,
    ScoredMask,
    Source,
    read_ground_truth,
    read_results,
)
from .operating_point import BEST_F1, Aim
from .result_ids import NamedResults, read_both_forms, translate_results
from .threshold_choice import operating_block
from .truth_notes import duplicate_notes, misplaced_notes, overlap_notes

_LOW_SCORE, _FEWEST_CUT = 0.1, 20  # least score, and number of results, from which a threshold was applied
_NEAR_ZERO = 0.1  # AP50 below which results may belong to other images
CATEGORIES_AT_ONCE = 256
"""COCO's evaluation takes 0.3 MB for each class at a time, as Python's floats."""
AREAS = ("all", "small", "medium", "large")  # COCO's bounds: 32 x 32 and 96 x 96 pixels


def evaluate_coco(
    annotations: Source | Mapping[str, object] | Split,
    predictions: Source | Mapping[str, object] | Iterable[Mapping[str, object]],
    *,
    max_detections: int = 100,
    image_ids: Collection[int] | None = None,
    rules: ReadRules | None = None,
    aim: Aim = BEST_F1,
    calibrate: bool = False,
) -> Metrics:
    """COCO's metrics of a results file (or list) on an annotation file (or its content, or a split of any format).

    predictions: COCO results, a bare list; or a COCO data set whose annotations have scores, as `predict` writes it.
    max_detections: number of results per image and category that count, best first. COCO's own is 100; AP, AP50 ... and
    AR100 are all at this number (AR100 keeps its name; `max_detections` in the result says what it was).
    image_ids: score only these images. rules: what crowd flags and incomplete images mean; None: as for the split, or
    as in COCO. A data set, or an images.json beside the results file, says what its ids mean: images and classes are
    then matched by name. aim: what the score threshold is chosen for. calibrate: see `operating_block`.
    Returns AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100 of masks, boundary_AP, box_AP, per_class (name -> AP), each
    in 0..1 or -1 where there is nothing to find; operating_point (of all results); images, detections, max_detections,
    seconds; notes (sentences that a reader of the metrics should see). Raises DatasetError listing everything in either
    file that cannot be scored, OptionError for max_detections below 1.
    """
    InferenceSettings(max_detections=max_detections)  # checks the value
    start = time.perf_counter()
    truth = read_ground_truth(annotations, image_ids, rules)
    metrics = score_predictions(truth, predictions, max_detections, aim, calibrate=calibrate)
    metrics["seconds"] = round(time.perf_counter() - start, 3)
    return metrics


def score_predictions(
    truth: GroundTruth,
    predictions: Source | NamedResults | Mapping[str, object] | Iterable[Mapping[str, object]],
    max_detections: int,
    aim: Aim = BEST_F1,
    *,
    calibrate: bool = False,
) -> Metrics:
    """The metrics of `evaluate_coco`, but `seconds`, with the annotations, and perhaps the results, read already."""
    results, notes = read_named_results(truth, predictions)
    metrics = score_results(truth, results, max_detections, aim, calibrate=calibrate)
    misplaced = misplaced_notes(truth, results) if 0 <= metrics["AP50"] < _NEAR_ZERO else []
    metrics["notes"] = [*notes, *metrics["notes"], *misplaced]
    return metrics


def read_named_results(
    truth: GroundTruth, predictions: Source | NamedResults | Mapping[str, object] | Iterable[Mapping[str, object]]
) -> tuple[list[ScoredMask], list[str]]:
    """Results with the numbers of `truth`, by the names of their images and classes where known, and notes on that.

    predictions: as for `evaluate_coco`, or read by `read_both_forms`.
    """
    if isinstance(predictions, str | PathLike):
        predictions = read_both_forms(Path(predictions))
    elif isinstance(predictions, Mapping):
        predictions = read_both_forms(predictions)
    if not isinstance(predictions, NamedResults):
        return read_results(predictions, truth), []
    entries, notes = translate_results(predictions, truth.listed, truth.name)
    return read_results(cast("list[Mapping[str, object]]", entries), truth, predictions.name), notes


def score_results(
    truth: GroundTruth, results: list[ScoredMask], max_detections: int, aim: Aim = BEST_F1, *, calibrate: bool = False
) -> Metrics:
    """The metrics of `evaluate_coco`, but `seconds`, of files that are already read."""
    # The numbers of detections at which AR1, AR10, AR100 are read; COCO's code needs them ascending and different.
    at = {"AR1": 1, "AR10": min(10, max_detections), "AR100": max_detections}
    limits = sorted(set(at.values()))
    precision, recall = match_masks(truth, results, "segm", limits)
    recalls = {name: mean_of_defined(recall[:, :, 0, limits.index(limit)]) for name, limit in at.items()}
    return Metrics(
        AP=mean_of_defined(precision[:, :, :, 0]),
        AP50=mean_of_defined(precision[0, :, :, 0]),
        AP75=mean_of_defined(precision[5, :, :, 0]),
        APs=mean_of_defined(precision[:, :, :, 1]),
        APm=mean_of_defined(precision[:, :, :, 2]),
        APl=mean_of_defined(precision[:, :, :, 3]),
        AR1=recalls["AR1"],
        AR10=recalls["AR10"],
        AR100=recalls["AR100"],
        boundary_AP=mean_of_defined(match_masks(truth, results, "boundary", limits)[0][:, :, :, 0]),
        box_AP=mean_of_defined(match_masks(truth, results, "bbox", limits)[0][:, :, :, 0]),
        per_class=dict.fromkeys(truth.names, -1.0)
        | {
            truth.names[number - 1]: mean_of_defined(precision[:, :, place, 0])
            for place, number in enumerate(present_categories(truth))
        },
        operating_point=operating_block(truth, results, aim, calibrate=calibrate),
        images=len(truth.images),
        detections=len(results),
        max_detections=max_detections,
        notes=[
            *truth.notes,
            *duplicate_notes(truth),
            *coverage_notes(truth, results),
            *overlap_notes(truth, results),
            *ceiling_notes(truth, max_detections),
        ],
    )


def coverage_notes(truth: GroundTruth, results: list[ScoredMask]) -> list[str]:
    """One sentence if images with objects have no result at all: perhaps the results are for other images."""
    found = {result["image_id"] for result in results}
    wanted = {annotation["image_id"] for annotation in truth.annotations if not annotation["iscrowd"]}
    missed = len(wanted - found)
    if not missed:
        return []
    return [f"no result for {missed} of {len(wanted)} images with objects; all objects in them count as missed"]


def ceiling_notes(truth: GroundTruth, limit: int, reason: str = "max_detections") -> list[str]:
    """One sentence with the highest AP and AR that a limit on detections allows on this ground truth; [] if it costs
    nothing. reason: the name of the limit in the sentence."""
    counts = Counter((a["image_id"], a["category_id"]) for a in truth.annotations if not a["iscrowd"])
    crowded = [count for count in counts.values() if count > limit]
    if not crowded:
        return []
    recalls = list(truth.recall_limit(limit).values())
    # Interpolated AP reads the precision at 101 recalls, 0.00 to 1.00; those that cannot be reached count as 0.
    precisions = [(np.linspace(0, 1, 101) <= recall + 1e-12).mean() for recall in recalls]
    images = len({image for (image, _), count in counts.items() if count > limit})
    return [
        f"{images} of {len(truth.images)} images hold more than {limit} instances of one class ({reason}={limit}; up "
        f"to {max(crowded)}): AP cannot be above {np.mean(precisions):.3f} nor AR above {np.mean(recalls):.3f}, "
        f"however good the masks"
    ]


def cut_notes(entries: Sequence[object]) -> list[str]:
    """One sentence if no result of a file has a low score: a threshold was applied, and AP misses what it cut off."""
    scores = [one["score"] for one in entries if isinstance(one, Mapping) and is_number(one.get("score"))]
    least = min(scores, default=0.0)
    if len(scores) < _FEWEST_CUT or least < _LOW_SCORE:
        return []
    return [
        f"no result has a score below {least:.2g}: with a score threshold applied, AP is lower than that of the model; "
        f"`evaluate --model`, or results of `predict --threshold 0`, give the AP of all results"
    ]


def match_masks(
    truth: GroundTruth, results: list[ScoredMask], kind: str, limits: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (T, R, P, A) at the last of `limits` and recall (T, P, A, M); -1 where there is nothing to find.

    kind: "segm", "boundary" or "bbox", what the IoU is of.
    T IoU thresholds 0.50 to 0.95, R recalls 0.00 to 1.00, P categories with ground truth (`present_categories`), A
    areas (all, small, medium, large), M limits.
    """
    present = present_categories(truth)
    parts = [
        _match_categories(truth, results, kind, limits, present[start : start + CATEGORIES_AT_ONCE])
        for start in range(0, len(present), CATEGORIES_AT_ONCE)
    ]
    none = np.zeros((10, 101, 0, len(AREAS))), np.zeros((10, 0, len(AREAS), len(limits)))
    precisions, recalls = zip(*parts, strict=True) if parts else ([none[0]], [none[1]])
    return np.concatenate(precisions, axis=2), np.concatenate(recalls, axis=1)


def present_categories(truth: GroundTruth) -> list[int]:
    """The categories, 1..K, that the ground truth has objects or crowd regions of; no other has an AP."""
    return sorted({annotation["category_id"] for annotation in truth.annotations})


def _match_categories(
    truth: GroundTruth, results: list[ScoredMask], kind: str, limits: list[int], chosen: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As `match_masks`, for some of the categories."""
    shape = (10, 101, len(chosen), len(AREAS), len(limits))
    images = [{"id": number, "height": size[0], "width": size[1]} for number, size in sorted(truth.sizes.items())]
    categories = [{"id": number, "name": truth.names[number - 1]} for number in chosen]
    wanted = set(chosen)
    sides = []
    for entries in (truth.annotations, results):
        side = COCO(print_function=_ignore)
        # Shallow copies: the evaluation writes into the dicts.
        copies = [dict(entry) for entry in entries if entry["category_id"] in wanted]
        side.dataset = {"images": images, "categories": categories, "annotations": copies}
        side.createIndex()
        sides.append(side)
    evaluation = COCOeval_faster(*sides, iouType=kind, print_function=_ignore)
    evaluation.params.maxDets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"], dtype=np.float64).reshape(shape)
    recall = np.asarray(evaluation.eval["recall"], dtype=np.float64).reshape(shape[:1] + shape[2:])
    return precision[..., -1].copy(), recall  # a copy: the last limit alone is kept in memory


def _ignore(*_: object) -> None:
    """Swallow what faster-coco-eval would print."""


def mean_of_defined(values: NDArray[np.float64]) -> float:
    """Mean over the defined values, -1 if there are none, as in COCO's summary."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
