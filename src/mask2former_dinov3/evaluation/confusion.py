"""Confusion of classes among instances: which class is found as which, what is missed, what is invented.

K classes.
"""

from __future__ import annotations

import numpy as np

from ..data.array_types import Floats, Ints
from .matches import Overlaps, match_overlaps


def confusion_matrix(overlaps: Overlaps, thresholds: Floats, iou: float = 0.5) -> Ints:
    """Instances by true class and by class found, (K + 1, K + 1).

    Row k, column k: objects of the class found, the true positives of the operating point. Row k, column j: objects of
    class k left over that a left-over result of class j overlaps by `iou` or more; of several the pair with the highest
    IoU first, each object and result once. Last column: objects missed. Last row: results invented. Crowd regions, and
    results in those of their class, do not count.
    thresholds (K,): lowest score that counts, by class.
    """
    size = len(thresholds)
    shown = overlaps.score >= thresholds[overlaps.result_category - 1]
    matches = match_overlaps(overlaps, iou)  # a result takes nothing from a better one, so these are those above it
    right = matches.right & shown
    found = np.zeros(len(overlaps.object_image), dtype=bool)
    found[matches.object_of[right]] = True
    true_class, found_class = overlaps.object_category - 1, overlaps.result_category - 1
    matrix = np.zeros((size + 1, size + 1), dtype=np.int64)
    np.add.at(matrix, (true_class[matches.object_of[right]], found_class[right]), 1)
    free_object, free_result = ~found & ~overlaps.crowd, shown & ~right & ~matches.ignored
    result, item = overlaps.pair_result, overlaps.pair_object
    close = free_result[result] & free_object[item] & (overlaps.pair_iou >= iou)
    close &= found_class[result] != true_class[item]
    order = np.lexsort((item[close], result[close], -overlaps.pair_iou[close]))
    for one, other in zip(result[close][order].tolist(), item[close][order].tolist(), strict=True):
        if free_result[one] and free_object[other]:
            free_result[one] = free_object[other] = False
            matrix[true_class[other], found_class[one]] += 1
    matrix[:size, size] = np.bincount(true_class[free_object], minlength=size)
    matrix[size, :size] = np.bincount(found_class[free_result], minlength=size)
    return matrix
