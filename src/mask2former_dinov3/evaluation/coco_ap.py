"""COCO AP of a results file on an annotation file, equal to pycocotools."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray

from .coco_files import GroundTruth, Id, Source, read_ground_truth, read_results

AREAS = ("all", "small", "medium", "large")  # COCO's bounds: 32 x 32 and 96 x 96 pixels


def evaluate_coco(
    annotations: Source | Mapping[str, Any],
    predictions: Source | Iterable[Mapping[str, Any]],
    *,
    max_detections: int = 100,
    image_ids: Collection[Id] | None = None,
) -> dict[str, Any]:
    """COCO's scores of a results file (or list) on an annotation file (or what it holds).

    max_detections: the best so many results of an image and category count. 100 is COCO's own; AP, AP50 ... and AR100
    are all at this number (AR100 keeps its name, `max_detections` in the result says what it was).
    image_ids: score only these images.
    Returns AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100 of masks, boundary_AP, box_AP, per_class (name -> AP), each
    in 0..1 or -1 where there is nothing to find; images, detections, max_detections, seconds; notes (sentences a reader
    of the score should see). Raises DatasetError listing everything in either file that cannot be scored.
    """
    if max_detections < 1:
        raise ValueError(f"max_detections: expected at least 1, got {max_detections}")
    start = time.perf_counter()
    truth = read_ground_truth(annotations, image_ids)
    results = read_results(predictions, truth)
    # The number of detections at which each of AR1, AR10, AR100 is read; COCO's code wants them rising and different.
    at = {"AR1": 1, "AR10": min(10, max_detections), "AR100": max_detections}
    limits = sorted(set(at.values()))
    precision, recall = _match(truth, results, "segm", limits)
    metrics: dict[str, Any] = {
        "AP": _mean(precision[:, :, :, 0]),
        "AP50": _mean(precision[0, :, :, 0]),
        "AP75": _mean(precision[5, :, :, 0]),
        "APs": _mean(precision[:, :, :, 1]),
        "APm": _mean(precision[:, :, :, 2]),
        "APl": _mean(precision[:, :, :, 3]),
        **{name: _mean(recall[:, :, 0, limits.index(limit)]) for name, limit in at.items()},
        "boundary_AP": _mean(_match(truth, results, "boundary", limits)[0][:, :, :, 0]),
        "box_AP": _mean(_match(truth, results, "bbox", limits)[0][:, :, :, 0]),
        "per_class": {name: _mean(precision[:, :, index, 0]) for index, name in enumerate(truth.names)},
        "images": len(truth.images),
        "detections": len(results),
        "max_detections": max_detections,
        "notes": [*truth.notes, *coverage_notes(truth, results), *ceiling_notes(truth, max_detections)],
    }
    metrics["seconds"] = round(time.perf_counter() - start, 3)
    return metrics


def coverage_notes(truth: GroundTruth, results: list[dict[str, Any]]) -> list[str]:
    """One sentence when images with objects have no result at all: perhaps the results are for other images."""
    found = {result["image_id"] for result in results}
    wanted = {annotation["image_id"] for annotation in truth.annotations if not annotation["iscrowd"]}
    missed = len(wanted - found)
    return [f"no result for {missed} of {len(wanted)} images with objects; all of theirs count as missed"] * bool(
        missed
    )


def ceiling_notes(truth: GroundTruth, limit: int, reason: str = "max_detections") -> list[str]:
    """What a limit on detections costs on this ground truth: nothing (an empty list), or one sentence with numbers."""
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


def _match(
    truth: GroundTruth, results: list[dict[str, Any]], kind: str, limits: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (T, R, K, A) at the last of `limits` and recall (T, K, A, M); -1 where there is nothing to find.

    T IoU thresholds 0.50 to 0.95, R recalls 0.00 to 1.00, K categories, A areas (all, small, medium, large), M limits.
    """
    shape = (10, 101, len(truth.names), len(AREAS), len(limits))
    if not truth.annotations:
        return np.full(shape[:-1], -1.0), np.full(shape[:1] + shape[2:], -1.0)
    images = [{"id": number, "height": size[0], "width": size[1]} for number, size in sorted(truth.sizes.items())]
    categories = [{"id": number, "name": name} for number, name in enumerate(truth.names, start=1)]
    sides = []
    for entries in (truth.annotations, results):
        side = COCO(print_function=_silent)
        # Shallow copies: the evaluation writes into the dicts.
        copies = [dict(entry) for entry in entries]
        side.dataset = {"images": images, "categories": categories, "annotations": copies}
        side.createIndex()
        sides.append(side)
    evaluation = COCOeval_faster(*sides, iouType=kind, print_function=_silent)
    evaluation.params.maxDets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"], dtype=np.float64).reshape(shape)
    recall = np.asarray(evaluation.eval["recall"], dtype=np.float64).reshape(shape[:1] + shape[2:])
    return precision[..., -1], recall


def _silent(*_: object) -> None:
    """In place of what faster-coco-eval would print or log."""


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over what is defined, -1 if nothing is: COCO's summary."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
