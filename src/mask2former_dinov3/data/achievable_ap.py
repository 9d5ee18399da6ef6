"""Compute the highest AP that masks of a given stride can reach on a data set, whatever the model.

The ground truth is reduced to the stride and enlarged again, and compared with itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from .fitting import fit_matrix, fitted_size
from .records import CocoData
from .rle import Window
from .transforms import rasterise_windows

THRESHOLDS = np.arange(0.5, 1.0, 0.05)  # of COCO's AP
MAX_INSTANCES = 300  # that are measured, evenly spread over the split


def mask_ceilings(
    data: CocoData,
    canvas: tuple[int, int],
    strides: Sequence[int] = (2, 4, 8),
    most: int = MAX_INSTANCES,
    factor: float | None = None,
) -> dict[int, float]:
    """Stride -> AP of a perfect model with masks of that stride on this canvas (height, width); {} without instances.

    factor: the scale of images that are not fitted into the canvas (`ReadOptions.factor`).

    Each instance, at its own size, is averaged over the coarse pixels, resized back bilinearly and thresholded at 0.5.
    If its IoU with itself is below one of COCO's thresholds, it counts as a false detection and as a missed instance:
    if a fraction r passes, precision is r up to a recall of r, and AP at that threshold is r squared.
    """
    rows, places = data.images.instance_rows()
    every = -(-len(rows) // most) or 1
    passed: dict[int, list[npt.NDArray[np.bool_]]] = {stride: [] for stride in strides}
    for row, place in zip(rows[::every].tolist(), places[::every].tolist(), strict=True):
        record = data.images[place]
        size = record.height, record.width
        (window,) = rasterise_windows([data.images.segmentation(row, size)], size, fit_matrix(*size, *size), *size)
        if window is None or not window.pixels.any():
            continue
        fitted = fitted_size(*size, *canvas, factor)
        for stride, found in passed.items():
            found.append(_coarse_iou(window, size, fitted, stride) >= THRESHOLDS)
    return {stride: float(np.square(np.mean(found, axis=0)).mean()) for stride, found in passed.items() if found}


def _coarse_iou(window: Window, size: tuple[int, int], fitted: tuple[int, int], stride: int) -> float:
    """IoU of an instance with its coarse copy; only the cells around it are computed, two beyond each side."""
    spans, cells = [], []  # rows first, then columns; pixels, and how many cells they become
    for start, length, whole, fit in zip((window.top, window.left), window.pixels.shape, size, fitted, strict=True):
        number = max(1, round(fit / stride))
        side = whole / number  # of a cell, in pixels
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
