"""How well masks of a coarse stride can fit a data set, whatever the model: the ground truth made coarse and back."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from .coco import CocoData
from .transforms import fitted_size, rasterise

THRESHOLDS = np.arange(0.5, 1.0, 0.05)  # of COCO's AP
MOST = 300  # instances that are looked at, evenly over the split
IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def mask_ceilings(
    data: CocoData, canvas: tuple[int, int], strides: Sequence[int] = (2, 4, 8), most: int = MOST
) -> dict[int, float]:
    """Stride -> AP of a perfect model with masks of that stride on this canvas (height, width); {} without instances.

    An instance at its own size becomes the share of each coarse pixel that it covers, which is resized back bilinearly
    and cut at a half. Where its IoU with itself misses one of COCO's thresholds it is a false detection as well as a
    missed instance: if a share r passes, precision is r up to a recall of r, and AP at that threshold r squared.
    """
    pairs = [(record, one) for record in data.images for one in record.annotations if not one.iscrowd]
    chosen = pairs[:: -(-len(pairs) // most) or 1]
    passed: dict[int, list[npt.NDArray[np.bool_]]] = {stride: [] for stride in strides}
    for record, annotation in chosen:
        size = record.height, record.width
        truth = rasterise(annotation.segmentation, size, IDENTITY, *size)
        if not truth.any():
            continue
        rows, columns = fitted_size(*size, *canvas)
        for stride, shares in passed.items():
            coarse_size = max(1, round(columns / stride)), max(1, round(rows / stride))
            coarse = cv2.resize(truth.astype(np.float32), coarse_size, interpolation=cv2.INTER_AREA)
            found = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
            iou = (found & (truth > 0)).sum() / (found | (truth > 0)).sum()
            shares.append(iou >= THRESHOLDS)
    return {stride: float(np.square(np.mean(shares, axis=0)).mean()) for stride, shares in passed.items() if shares}
