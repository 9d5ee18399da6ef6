"""Overlaps of results with objects, and which result finds which object: what everything but AP is counted from.

Operating points, errors by kind, confusion, labels in doubt and comparisons all start here, so they agree with each
other and with COCO's matching.

D results, G objects, P pairs of a result and an object of the same image that overlap, whatever their classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import NDArray

from ..data.array_types import Bools, Floats, Ints
from .coco_files import GroundTruth, ScoredMask


@dataclass(frozen=True)
class Overlaps:
    """Results and objects as arrays, with the IoU of those that overlap.

    Results are in the order of their images, best first, equal scores in the order of the list. Image and category
    numbers are those of `GroundTruth`, from 1.
    result_row (D,): index in the list of results. result_image, result_category (D,). score, result_area (D,) float64.
    object_image, object_category (G,), in the order of `GroundTruth.annotations`. crowd (G,) bool. area (G,) float64:
    square pixels, as annotated. pair_result, pair_object (P,): indices into results and objects, sorted by result, then
    object. pair_iou (P,) float64, above 0: IoU of the masks; for a crowd region the part of the result in it, as in
    COCO. left_out: number of results beyond max_detections of their image and class.
    """

    result_row: Ints
    result_image: Ints
    result_category: Ints
    score: Floats
    result_area: Floats
    object_image: Ints
    object_category: Ints
    crowd: Bools
    area: Floats
    pair_result: Ints
    pair_object: Ints
    pair_iou: Floats
    left_out: int


@dataclass(frozen=True)
class ResultMatches:
    """Which result finds which object at one IoU threshold.

    iou: the threshold. object_of (D,): index of the object that the result finds, -1: none. iou_of (D,) float64: its
    IoU, 0 without one. ignored (D,) bool: the result lies in a crowd region or finds an object that is set aside, and
    counts neither as right nor as wrong. result_of (G,): index of the result that finds the object, -1: none; of a
    crowd region always -1.
    """

    iou: float
    object_of: Ints
    iou_of: Floats
    ignored: Bools
    result_of: Ints

    @property
    def right(self) -> Bools:
        """(D,) bool: results that find an object (true positives)."""
        found: Bools = (self.object_of >= 0) & ~self.ignored
        return found

    @property
    def wrong(self) -> Bools:
        """(D,) bool: results that find nothing (false positives)."""
        missed: Bools = (self.object_of < 0) & ~self.ignored
        return missed


def overlaps_of(truth: GroundTruth, results: Sequence[ScoredMask], max_detections: int) -> Overlaps:
    """Overlaps of results with objects of every class.

    max_detections: number of results per image and category that count, best first, as in COCO's evaluation.
    Time and memory grow with the pairs that overlap; of one image the whole table of IoUs is in memory.
    """
    order, left_out = _rank(results, max_detections)
    objects = truth.annotations
    object_image = _numbers(objects, "image_id")
    result_image = _numbers(results, "image_id")[order]
    crowd = np.array([one["iscrowd"] for one in objects], dtype=bool)
    of_image: dict[int, list[int]] = defaultdict(list)
    for index, image in enumerate(object_image.tolist()):
        of_image[image].append(index)
    parts: list[tuple[Ints, Ints, Floats]] = []
    edges = [*np.flatnonzero(np.diff(result_image, prepend=-1)).tolist(), len(order)]
    for start, end in pairwise(edges):
        theirs = np.array(of_image.get(int(result_image[start]), []), dtype=np.int64)
        if not len(theirs):
            continue
        table = rle_codec.iou(
            [results[row]["segmentation"] for row in order[start:end].tolist()],
            [objects[index]["segmentation"] for index in theirs.tolist()],
            crowd[theirs].astype(np.uint8),
        )
        table = np.asarray(table, dtype=np.float64).reshape(end - start, len(theirs))
        rows, columns = np.nonzero(table)
        parts.append((rows.astype(np.int64) + start, theirs[columns], table[rows, columns]))
    pair_result, pair_object = (
        np.concatenate([part[side] for part in parts]) if parts else np.zeros(0, np.int64) for side in (0, 1)
    )
    return Overlaps(
        result_row=order,
        result_image=result_image,
        result_category=_numbers(results, "category_id")[order],
        score=np.array([results[row].get("score", 0.0) for row in order.tolist()], dtype=np.float64),
        result_area=np.array([results[row]["area"] for row in order.tolist()], dtype=np.float64),
        object_image=object_image,
        object_category=_numbers(objects, "category_id"),
        crowd=crowd,
        area=np.array([one["area"] for one in objects], dtype=np.float64),
        pair_result=pair_result,
        pair_object=pair_object,
        pair_iou=np.concatenate([part[2] for part in parts]) if parts else np.zeros(0),
        left_out=left_out,
    )


def match_overlaps(overlaps: Overlaps, iou: float, set_aside: Bools | None = None) -> ResultMatches:
    """Assign results to objects of their class at an IoU of at least `iou`, as COCO's evaluation does for all areas.

    Each result, best first, takes the free object of its class that it overlaps most (of equal ones the last), or else
    a free object that is set aside, or a crowd region (pycocotools, `COCOeval.evaluateImg`).
    set_aside (G,) bool: objects that count neither as found nor as missed, as those of other sizes for AP of a size.
    """
    close = overlaps.pair_iou >= min(iou, 1 - 1e-10)
    close &= overlaps.result_category[overlaps.pair_result] == overlaps.object_category[overlaps.pair_object]
    object_of = np.full(len(overlaps.score), -1, dtype=np.int64)
    iou_of = np.zeros(len(overlaps.score))
    result_of = [-1] * len(overlaps.object_image)
    crowd = overlaps.crowd.tolist()
    passed_over = overlaps.crowd if set_aside is None else overlaps.crowd | set_aside
    ignored = passed_over.tolist()
    results, objects = overlaps.pair_result[close].tolist(), overlaps.pair_object[close].tolist()
    # The best of each result, compared by (counts, IoU, place in the file).
    best: tuple[bool, float, int] | None = None
    for position, (result, index, value) in enumerate(zip(results, objects, overlaps.pair_iou[close], strict=True)):
        if result_of[index] < 0:
            candidate = (not ignored[index], float(value), index)
            best = candidate if best is None else max(best, candidate)
        if (position + 1 == len(results) or results[position + 1] != result) and best is not None:
            _, iou_of[result], taken = best
            object_of[result] = taken
            if not crowd[taken]:
                result_of[taken] = result
            best = None
    inside = object_of >= 0
    inside[inside] = passed_over[object_of[inside]]
    return ResultMatches(iou, object_of, iou_of, inside, np.array(result_of, dtype=np.int64))


def _rank(results: Sequence[ScoredMask], limit: int) -> tuple[Ints, int]:
    """Rows of the results that count, by image and score, and the number of those beyond the limit."""
    images, categories = _numbers(results, "image_id"), _numbers(results, "category_id")
    scores = np.array([one.get("score", 0.0) for one in results], dtype=np.float64)
    order = np.lexsort((np.arange(len(results)), -scores, categories, images))
    place = np.arange(len(order))
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = np.diff(images[order]).astype(bool) | np.diff(categories[order]).astype(bool)
    place -= np.maximum.accumulate(np.where(fresh, place, 0))
    kept = order[place < limit]
    best_first = np.lexsort((kept, -scores[kept], images[kept]))
    return kept[best_first], len(order) - len(kept)


def _numbers(masks: Sequence[ScoredMask], key: str) -> NDArray[np.int64]:
    return np.array([one[key] for one in masks], dtype=np.int64)  # type: ignore[literal-required]
