"""How much a model contradicts itself on an image and its mirrored copy: a measure of what it has not learned yet.

Predictions should not depend on the side that an object faces. Where they do, the image is worth a label (Yu et al.,
Consistency-based Active Learning for Object Detection, arXiv:2103.10374, which matches the predictions of an image with
those of changed copies of it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from faster_coco_eval.core import mask as rle_codec
from scipy.optimize import linear_sum_assignment

from ..instances import Instances


@dataclass(frozen=True)
class FlipAgreement:
    """Instances found in an image and in its mirrored copy, and how well they agree.

    found, mirrored: number of instances in each. matched: pairs of the same class that overlap. disagreement: 0 (the
    same instances with the same scores) to 1 (no pair overlaps); 0 where nothing is found in either.
    """

    found: int
    mirrored: int
    matched: int
    disagreement: float


def flip_agreement(found: Instances, mirrored: Instances) -> FlipAgreement:
    """Compare instances of an image with those of its mirrored copy, already mirrored back.

    Instances of the same class are paired so that the sum of IoU x lower score is largest. Disagreement is 1 minus the
    overlap of the two sets, Dice's coefficient weighted with scores: 2 * sum over pairs of IoU * min(s, s') divided by
    the sum of all scores. Raises ValueError for images of different sizes.
    """
    if (found.height, found.width) != (mirrored.height, mirrored.width):
        raise ValueError("expected instances of one image")
    scores = found.scores.astype(np.float64), mirrored.scores.astype(np.float64)
    total = float(scores[0].sum() + scores[1].sum())
    if not len(found) or not len(mirrored):
        return FlipAgreement(len(found), len(mirrored), 0, 1.0 if total else 0.0)
    sides = [[dict(rle) for rle in one.rles] for one in (found, mirrored)]
    iou = np.asarray(rle_codec.iou(*sides, np.zeros(len(mirrored), np.uint8)), dtype=np.float64)
    iou = iou.reshape(len(found), len(mirrored)) * (found.labels[:, None] == mirrored.labels[None])
    shared = iou * np.minimum(scores[0][:, None], scores[1][None])
    rows, columns = linear_sum_assignment(shared, maximize=True)
    pairs = shared[rows, columns]
    return FlipAgreement(
        len(found), len(mirrored), int((pairs > 0).sum()), 1 - 2 * float(pairs.sum()) / max(total, 1e-12)
    )
