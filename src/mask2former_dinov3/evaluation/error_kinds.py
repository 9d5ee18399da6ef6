"""Errors by kind, and the AP that each kind costs: TIDE (arXiv:2008.08115), equal to tidecv 1.0.1.

What differs from tidecv is what differs between it and COCO: of results with equal scores, and of objects that a result
overlaps equally, COCO's order counts; max_detections counts per class; a class without objects has no AP.

D results, G objects, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.array_types import Bools, Floats, Ints
from .average_precision import count_objects, make_monotonic, mean_over_classes, read_precision
from .matches import Overlaps, ResultMatches

ERROR_KINDS = ("class", "localisation", "both", "duplicate", "background", "missed")
BACKGROUND_IOU = 0.1  # a result that overlaps no object more lies on background, as in the paper
_CLASS, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(6)


@dataclass(frozen=True)
class ErrorKinds:
    """What is wrong with each result and object, at one IoU.

    kind (D,): index in `ERROR_KINDS`, -1 for a result that finds an object. subject (D,): the object that the result
    would have found without its error of class or localisation, -1: none. repaired (D,) bool: with its error corrected
    the result finds its subject, that is free and that no better result claims. missed (G,) bool: not found, and
    subject of no result.
    """

    kind: Ints
    subject: Ints
    repaired: Bools
    missed: Bools


@dataclass(frozen=True)
class ErrorCost:
    """One kind of error. count: results, or objects for "missed", without those in crowd regions. cost: AP at the
    IoU gained if all of them were corrected, 0..1. per_class: class number from 0 -> the same for its AP, where it has
    one."""

    kind: str
    count: int
    cost: float
    per_class: dict[int, float]


def classify_errors(overlaps: Overlaps, matches: ResultMatches) -> ErrorKinds:
    """The kind of every error (TIDE, section 2.2).

    class: enough IoU with an object of another class. localisation: IoU of `BACKGROUND_IOU` or more with an object of
    its class, too little to find it. duplicate: enough IoU with an object that a better result has found. background:
    IoU of `BACKGROUND_IOU` or less with every object. both: the rest. missed: an object not found that no result of the
    kinds class and localisation is about.
    """
    same = overlaps.result_category[overlaps.pair_result] == overlaps.object_category[overlaps.pair_object]
    whole = ~overlaps.crowd[overlaps.pair_object]
    taken = matches.result_of[overlaps.pair_object] >= 0
    own, own_iou = _most_overlapped(overlaps, same & whole)
    other, other_iou = _most_overlapped(overlaps, ~same & whole)
    _, taken_iou = _most_overlapped(overlaps, same & whole & taken)
    wrong = ~matches.right
    kind = np.select(
        [
            ~wrong,
            (own_iou >= BACKGROUND_IOU) & (own_iou <= matches.iou),
            other_iou >= matches.iou,
            taken_iou >= matches.iou,
            np.maximum(own_iou, other_iou) <= BACKGROUND_IOU,
        ],
        [-1, _LOCALISATION, _CLASS, _DUPLICATE, _BACKGROUND],
        _BOTH,
    ).astype(np.int64)
    subject = np.select([kind == _LOCALISATION, kind == _CLASS], [own, other], -1).astype(np.int64)
    claims = np.flatnonzero(subject >= 0)
    claims = claims[matches.result_of[subject[claims]] < 0]
    # Of one image results are in the order of their scores, so the first claim on an object is the best.
    claimed, first = np.unique(subject[claims], return_index=True)
    repaired = np.zeros(len(kind), dtype=bool)
    repaired[claims[first]] = True
    missed = (matches.result_of < 0) & ~overlaps.crowd
    missed[claimed] = False
    return ErrorKinds(kind, subject, repaired, missed)


def error_costs(
    overlaps: Overlaps, matches: ResultMatches, errors: ErrorKinds, num_classes: int
) -> tuple[Floats, list[ErrorCost]]:
    """AP of each class at the IoU of the matches, (K,), -1 without an object; and what each kind of error costs.

    After the six kinds come "false positives" (all results that find nothing rank behind those that do) and "false
    negatives" (objects that nothing finds do not count), as in tidecv. A cost below 0, from the 101 recalls at which AP
    is read, is 0.
    """
    counts = count_objects(overlaps, num_classes)
    right, counted, score, category = matches.right, ~matches.ignored, overlaps.score, overlaps.result_category
    start = _ap_per_class(score, category, right, counted, counts, counts)
    gains: list[tuple[str, int, Floats]] = []
    for number, name in enumerate(ERROR_KINDS[:_MISSED]):
        own = errors.kind == number
        fixed = errors.repaired & own
        target = np.where(fixed & (number == _CLASS), overlaps.object_category[errors.subject], category)
        after = _ap_per_class(score, target, right | fixed, (counted & ~own) | fixed, counts, counts)
        gains.append((name, int((own & counted).sum()), after))
    left = counts - np.bincount(overlaps.object_category[errors.missed] - 1, minlength=num_classes)
    gains.append(("missed", int(errors.missed.sum()), _ap_per_class(score, category, right, counted, left, counts)))
    perfect = np.where(right, 1.0, 0.0)
    gains.append(
        (
            "false positives",
            int(matches.wrong.sum()),
            _ap_per_class(perfect, category, right, counted, counts, counts),
        )
    )
    unfound = (matches.result_of < 0) & ~overlaps.crowd
    left = counts - np.bincount(overlaps.object_category[unfound] - 1, minlength=num_classes)
    after = _ap_per_class(score, category, right, counted, left, counts)
    gains.append(("false negatives", int(unfound.sum()), after))
    before = float(mean_over_classes(start))
    return start, [
        ErrorCost(
            name,
            number,
            max(float(mean_over_classes(values)) - before, 0.0),
            {
                place: max(float(values[place] - start[place]), 0.0)
                for place in np.flatnonzero((start > -1) & (values > -1)).tolist()
            },
        )
        for name, number, values in gains
    ]


def _most_overlapped(overlaps: Overlaps, chosen: Bools) -> tuple[Ints, Floats]:
    """Of every result the object that it overlaps most among the chosen pairs (P,), the first of equal ones; and the
    IoU. (D,) each, -1 and 0 without one."""
    places = strongest_pairs(overlaps.pair_result, overlaps.pair_object, np.where(chosen, overlaps.pair_iou, 0.0))
    subject, highest = np.full(len(overlaps.score), -1, dtype=np.int64), np.zeros(len(overlaps.score))
    which = overlaps.pair_result[places]
    subject[which], highest[which] = overlaps.pair_object[places], overlaps.pair_iou[places]
    return subject, highest


def strongest_pairs(one: Ints, other: Ints, weight: Floats) -> Ints:
    """For each value of `one` the place of its pair with the highest weight above 0, of equal ones that with the lowest
    `other`. All (P,)."""
    places = np.flatnonzero(weight > 0)
    order = places[np.lexsort((other[places], -weight[places], one[places]))]
    return order[np.unique(one[order], return_index=True)[1]].astype(np.int64)


def _ap_per_class(score: Floats, category: Ints, right: Bools, counted: Bools, objects: Ints, before: Ints) -> Floats:
    """AP of every class, (K,); -1 for one without objects before, or with neither objects nor results after."""
    order = np.argsort(-score, kind="stable")
    order = order[counted[order]]
    category, right = category[order], right[order]
    values = np.full(len(objects), -1.0)
    for number in np.flatnonzero(before).tolist():
        own = right[category == number + 1]
        if not objects[number]:
            values[number] = 0.0 if len(own) else -1.0
            continue
        places = np.flatnonzero(own)
        found = np.arange(1, len(places) + 1)
        precision = make_monotonic(found / (places + 1 + np.spacing(1)))
        values[number] = read_precision(precision, found / objects[number])
    return values
