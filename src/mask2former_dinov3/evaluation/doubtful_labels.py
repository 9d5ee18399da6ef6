"""Labels that the results contradict: where a look at the annotation is worth more than another training run.

A contradiction weighs as much as the model is to be believed: by its score, and by the precision and recall of the
class at the operating point. This follows the idea of confident learning (arXiv:1911.00068), object by object.

D results, G objects, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..data.array_types import Bools, Floats, Ints
from .coco_files import GroundTruth
from .error_kinds import BACKGROUND_IOU, strongest_pairs
from .matches import Overlaps, ResultMatches
from .truth_notes import near_copies

DOUBT_KINDS = ("annotated twice", "other class", "no label", "never found", "other outline")
LEAST_SUSPICION = 0.3  # below it a contradiction is what any model makes
NEVER_FOUND = 0.1  # highest score times IoU of any result on an object that is never found
_ABSENCE = 0.5  # a result that is not there says less than one that is, the less the more the model misses
OUTLINE = 0.8  # part of the usual IoU of its class below which the outline of an object disagrees


@dataclass(frozen=True)
class DoubtfulLabel:
    """One label that may be wrong.

    kind: of `DOUBT_KINDS`. suspicion: 0..1. image: its number. item: index in `GroundTruth.annotations`, -1 for an
    object without a label. result: index in the list of results, -1 without one; of "annotated twice": -1. category:
    number of the labelled class, 0 without a label. suggested: number of the class that the model says, 0: none. score,
    iou: of the result with the label; of "annotated twice" iou is that of the two labels. other: index of the other
    label, -1: none.
    """

    kind: str
    suspicion: float
    image: int
    item: int
    result: int
    category: int
    suggested: int
    score: float
    iou: float
    other: int = -1


def doubtful_labels(
    truth: GroundTruth, overlaps: Overlaps, matches: ResultMatches, thresholds: Floats
) -> list[DoubtfulLabel]:
    """The labels in doubt, the most suspicious first; of each object and result the most suspicious one.

    matches: at an IoU of 0.5. thresholds (K,): lowest score of a result that counts, by class.
    annotated twice: two masks with an IoU of 0.95. other class: a result overlaps the object as a match would, with
    another class and a higher score than any result of its own. no label: a result overlaps no object. never found: no
    result of any class overlaps the object well. other outline: the IoU with the best result of its class is far below
    what is usual for the class.
    """
    shown = overlaps.score >= thresholds[overlaps.result_category - 1]
    precision, recall = _reliability(overlaps, matches, shown, len(thresholds))
    found = [
        *_twice(truth),
        *_other_class(overlaps, matches, shown, precision),
        *_no_label(overlaps, matches, shown, precision),
        *_never_found(overlaps, recall),
        *_other_outline(overlaps, matches, shown, precision),
    ]
    found = [one for one in found if one.suspicion >= LEAST_SUSPICION]
    found.sort(key=lambda one: (-one.suspicion, one.image, one.item, one.result))
    items: set[int] = set()
    results: set[int] = set()
    kept = []
    for one in found:
        if one.item in items or one.result in results:
            continue
        items |= {one.item} - {-1}
        results |= {one.result} - {-1}
        kept.append(one)
    return kept


def _reliability(overlaps: Overlaps, matches: ResultMatches, shown: Bools, num_classes: int) -> tuple[Floats, Floats]:
    """Precision and recall of each class at the operating point, (K,) each, drawn to 0.5 where there are few."""
    right = shown & matches.right
    hits = np.bincount(overlaps.result_category[right] - 1, minlength=num_classes)
    made = np.bincount(overlaps.result_category[shown & ~matches.ignored] - 1, minlength=num_classes)
    there = np.bincount(overlaps.object_category[~overlaps.crowd] - 1, minlength=num_classes)
    return (hits + 1) / (made + 2), (hits + 1) / (there + 2)


def _twice(truth: GroundTruth) -> Iterable[DoubtfulLabel]:
    for first, second in near_copies(truth).tolist():
        one, other = truth.annotations[first], truth.annotations[second]
        kind, image = DOUBT_KINDS[0], one["image_id"]
        yield DoubtfulLabel(kind, 1.0, image, second, -1, other["category_id"], one["category_id"], -1, 0.95, first)


def _other_class(
    overlaps: Overlaps, matches: ResultMatches, shown: Bools, precision: Floats
) -> Iterable[DoubtfulLabel]:
    pair_result, item, iou = overlaps.pair_result, overlaps.pair_object, overlaps.pair_iou
    close = (iou >= matches.iou) & ~overlaps.crowd[item]
    same = overlaps.result_category[pair_result] == overlaps.object_category[item]
    own = np.zeros(len(overlaps.object_image))  # highest score of a result of the object's class
    np.maximum.at(own, item[close & same], overlaps.score[pair_result[close & same]])
    other = close & ~same & shown[pair_result]
    lead = overlaps.score[pair_result] - own[item]
    weight = np.where(other, iou * lead * precision[overlaps.result_category[pair_result] - 1], 0.0)
    for place in strongest_pairs(item, pair_result, weight):
        yield _doubt(overlaps, DOUBT_KINDS[1], weight[place], int(item[place]), int(pair_result[place]), iou[place])


def _no_label(overlaps: Overlaps, matches: ResultMatches, shown: Bools, precision: Floats) -> Iterable[DoubtfulLabel]:
    highest = np.zeros(len(overlaps.score))
    np.maximum.at(highest, overlaps.pair_result, overlaps.pair_iou)
    weight = overlaps.score * precision[overlaps.result_category - 1]
    for result in np.flatnonzero(shown & ~matches.right & ~matches.ignored & (highest <= BACKGROUND_IOU)).tolist():
        yield _doubt(overlaps, DOUBT_KINDS[2], weight[result], -1, result, highest[result])


def _never_found(overlaps: Overlaps, recall: Floats) -> Iterable[DoubtfulLabel]:
    best = np.zeros(len(overlaps.object_image))
    np.maximum.at(best, overlaps.pair_object, overlaps.pair_iou * overlaps.score[overlaps.pair_result])
    weight = _ABSENCE * (1 - best) * recall[overlaps.object_category - 1] ** 2
    for item in np.flatnonzero((best < NEVER_FOUND) & ~overlaps.crowd).tolist():
        yield _doubt(overlaps, DOUBT_KINDS[3], weight[item], item, -1, 0.0)


def _other_outline(
    overlaps: Overlaps, matches: ResultMatches, shown: Bools, precision: Floats
) -> Iterable[DoubtfulLabel]:
    pair_result, item, iou = overlaps.pair_result, overlaps.pair_object, overlaps.pair_iou
    same = overlaps.result_category[pair_result] == overlaps.object_category[item]
    usable = same & shown[pair_result] & ~overlaps.crowd[item] & (iou > BACKGROUND_IOU)
    usual = np.ones(len(precision))
    right = matches.right & shown
    for category in np.unique(overlaps.result_category[right]).tolist():
        usual[category - 1] = np.median(matches.iou_of[right & (overlaps.result_category == category)])
    share = iou / usual[overlaps.object_category[item] - 1]
    for place in strongest_pairs(item, pair_result, np.where(usable, iou, 0.0)):
        if share[place] < OUTLINE:
            result = int(pair_result[place])
            weight = overlaps.score[result] * precision[overlaps.result_category[result] - 1] * (1 - share[place])
            yield _doubt(overlaps, DOUBT_KINDS[4], weight, int(item[place]), result, iou[place])


def _doubt(overlaps: Overlaps, kind: str, suspicion: float, item: int, result: int, iou: float) -> DoubtfulLabel:
    labelled = int(overlaps.object_category[item]) if item >= 0 else 0
    image = overlaps.object_image[item] if item >= 0 else overlaps.result_image[result]
    said = int(overlaps.result_category[result]) if result >= 0 else 0
    score = float(overlaps.score[result]) if result >= 0 else -1.0
    row = int(overlaps.result_row[result]) if result >= 0 else -1
    return DoubtfulLabel(kind, float(suspicion), int(image), item, row, labelled, said, score, float(iou))


def count_kinds(doubts: Iterable[DoubtfulLabel]) -> dict[str, int]:
    """Kind -> number of labels in doubt, all kinds."""
    counts = dict.fromkeys(DOUBT_KINDS, 0)
    for one in doubts:
        counts[one.kind] += 1
    return counts


def doubts_per_image(doubts: Iterable[DoubtfulLabel], images: Ints) -> Floats:
    """Sum of the suspicions on each image, (I,). images (I,): their numbers, ascending."""
    found = [(one.image, one.suspicion) for one in doubts]
    rows = np.searchsorted(images, np.array([image for image, _ in found], dtype=np.int64))
    total = np.bincount(rows, np.array([weight for _, weight in found], np.float64), minlength=len(images))
    return total.astype(np.float64)
