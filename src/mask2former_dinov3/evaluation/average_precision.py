"""AP from matches: COCO's number, for any weights of the images.

With weights, AP of a resample, of a group of images or of one image costs no new matching.

I images, B sets of weights, K classes, D results, G objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..data.array_types import Bools, Floats, Ints
from .matches import Overlaps, ResultMatches, match_overlaps

RECALLS = np.linspace(0, 1, 101)  # COCO's, to the last bit
IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # COCO's thresholds of IoU
SIZES: Mapping[str, tuple[float, float]] = {  # COCO's ranges of area in square pixels, both ends included
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}
_AT_ONCE = 4_000_000  # numbers in an array


@dataclass(frozen=True)
class RankedResults:
    """The results of one class at one IoU in the order of their scores, as AP needs them.

    image (N,) int32: number of the image of each result that counts, from 0. right (R,) int32: places of those that
    find an object. right_image (R,) int32: their images. objects (I,) int32: number of objects in each image.
    """

    image: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    right_image: npt.NDArray[np.int32]
    objects: npt.NDArray[np.int32]


def rank_results(
    overlaps: Overlaps,
    matches: ResultMatches,
    images: Ints,
    num_classes: int,
    counted_objects: Bools | None = None,
    counted_results: Bools | None = None,
) -> list[RankedResults]:
    """The ranked results of every class.

    images (I,): numbers of the images that are scored, ascending. counted_objects (G,) bool: those that count, without
    crowd regions; None: all. counted_results (D,) bool: those that count although they find nothing; None: all.
    """
    whole = ~overlaps.crowd if counted_objects is None else counted_objects & ~overlaps.crowd
    right = matches.right
    counted = ~matches.ignored
    if counted_results is not None:
        counted &= right | counted_results
    best_first = np.argsort(-overlaps.score, kind="stable")  # as COCO: equal scores in the order of the images
    best_first = best_first[counted[best_first]]
    categories = overlaps.result_category[best_first]
    ranked = []
    for category in range(1, num_classes + 1):
        own = best_first[categories == category]
        image = np.searchsorted(images, overlaps.result_image[own]).astype(np.int32)
        places = np.flatnonzero(right[own]).astype(np.int32)
        mine = whole & (overlaps.object_category == category)
        rows = np.searchsorted(images, overlaps.object_image[mine])
        objects = np.bincount(rows, minlength=len(images)).astype(np.int32)
        ranked.append(RankedResults(image, places, image[places], objects))
    return ranked


def average_precisions(ranked: RankedResults, weights: npt.NDArray[np.int32]) -> Floats:
    """AP of each set of weights, (B,), -1 where there is nothing to find.

    weights (B, I): how often each image counts. The AP is that of a data set with so many copies of the images, to the
    last bit where all weights are 0 or 1, and as COCO computes it: precision at 101 recalls, made monotonic.
    """
    total = (weights @ ranked.objects).astype(np.int64)
    result = np.where(total > 0, 0.0, -1.0)
    if not len(ranked.right):
        return result
    step = max(1, _AT_ONCE // len(ranked.image))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        seen = np.cumsum(weights[part][:, ranked.image], axis=1, dtype=np.int32)[:, ranked.right]
        found = np.cumsum(weights[part][:, ranked.right_image], axis=1, dtype=np.int64)
        precision = make_monotonic(found / (seen + np.spacing(1)))
        rows = np.flatnonzero(total[part] > 0)
        for row in rows.tolist():
            result[start + row] = read_precision(precision[row], found[row] / total[start + row])
    return result


def make_monotonic(precision: Floats) -> Floats:
    """The highest precision at this or any higher recall, along the last axis."""
    highest: Floats = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    return highest


def read_precision(precision: Floats, recall: Floats) -> float:
    """Mean of a curve (R,) at COCO's 101 recalls, 0 at those beyond its end. recall: ascending."""
    places = np.searchsorted(recall, RECALLS)
    return float(precision[places[places < len(recall)]].sum() / len(RECALLS))


def mean_over_classes(values: Floats) -> Floats:
    """Mean of AP (..., K) over the classes that have one, -1 where none has, (...)."""
    defined = values > -1
    count = defined.sum(axis=-1)
    total: Floats = np.where(defined, values, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), -1.0)


def rank_all(
    overlaps: Overlaps,
    images: Ints,
    num_classes: int,
    size: tuple[float, float] | None = None,
    ious: Sequence[float] = IOUS,
) -> list[list[RankedResults]]:
    """The ranked results of every class, for each IoU.

    images (I,): numbers of the images that are scored, ascending. size: a range of area in square pixels, both ends
    included, of the objects to be found; None: all.
    """
    objects = results = None
    if size is not None:
        objects = (overlaps.area >= size[0]) & (overlaps.area <= size[1])
        results = (overlaps.result_area >= size[0]) & (overlaps.result_area <= size[1])
    ranked = []
    for iou in ious:
        matches = match_overlaps(overlaps, iou, None if objects is None else ~objects)
        ranked.append(rank_results(overlaps, matches, images, num_classes, objects, results))
    return ranked


def precision_table(ranked: Sequence[Sequence[RankedResults]], weights: npt.NDArray[np.int32]) -> Floats:
    """AP (B, T, K) of each set of weights (B, I), for T thresholds of IoU and K classes."""
    return np.stack([np.stack([average_precisions(one, weights) for one in row], -1) for row in ranked], 1)


def count_objects(overlaps: Overlaps, num_classes: int) -> Ints:
    """Objects of each class without crowd regions, (K,)."""
    return np.bincount(overlaps.object_category[~overlaps.crowd] - 1, minlength=num_classes)
