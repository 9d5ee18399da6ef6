"""How well masks of a coarse stride can fit a data set, whatever the model: the ground truth made coarse and back."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from .coco import CocoData
from .segmentation import Window
from .transforms import fit_matrix, fitted_size, rasterise_windows

THRESHOLDS = np.arange(0.5, 1.0, 0.05)  # of COCO's AP
MOST = 300  # instances that are looked at, evenly over the split


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
        (window,) = rasterise_windows([annotation.segmentation], size, fit_matrix(*size, *size), *size)
        if window is None or not window.pixels.any():
            continue
        fitted = fitted_size(*size, *canvas)
        for stride, found in passed.items():
            found.append(_coarse_iou(window, size, fitted, stride) >= THRESHOLDS)
    return {stride: float(np.square(np.mean(found, axis=0)).mean()) for stride, found in passed.items() if found}


def _coarse_iou(window: Window, size: tuple[int, int], fitted: tuple[int, int], stride: int) -> float:
    """IoU of an instance with itself made coarse and back; only the cells around it are made, two beyond each side."""
    spans, cells = [], []  # rows first, then columns; pixels, and how many cells they become
    for start, length, whole, shown in zip((window.top, window.left), window.pixels.shape, size, fitted, strict=True):
        number = max(1, round(shown / stride))
        side = whole / number  # of a cell, pixels
        first, last = max(0, int(start / side) - 2), min(number, int((start + length) / side) + 3)
        spans.append((round(first * side), round(last * side)))
        cells.append(last - first)
    (top, bottom), (left, right) = spans
    truth = np.zeros((bottom - top, right - left), np.float32)
    rows, columns = window.pixels.shape
    truth[window.top - top :, window.left - left :][:rows, :columns] = window.pixels
    coarse = cv2.resize(truth, cells[::-1], interpolation=cv2.INTER_AREA)
    found = cv2.resize(coarse, truth.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    inside = truth > 0
    return float((found & inside).sum() / (found | inside).sum())
