"""Crops of images that keep their own scale: which part the canvas shows, and what becomes of objects at its border.

An object that the border cuts is a target with its visible part, as in large-scale jitter (arXiv:2012.07177, section
3.1; Detectron2's FixedSizeCrop): tiles cut objects in use, too, and their pieces are joined there. Only a sliver is no
target: less than a tenth of its object that is also smaller than a patch of the network. MMDetection's CopyPaste leaves
out what is below 300 pixels in the same way. A large object of which the canvas shows less than a tenth stays, because
what is visible of it is large.
"""

from __future__ import annotations

import numpy as np

from ..canvas import PATCH_SIZE
from .array_types import Ints
from .fitting import Matrix, fit_matrix
from .records import Annotation, ImageRecord, ImageTable
from .rle import Window
from .segmentation import Segmentation, segmentation_area, segmentation_box

OBJECT_CROPS = 0.8
"""Fraction of the crops that are placed around a random object of the image; the others are placed anywhere, so that
background is seen as well. nnU-Net guarantees an object in a third of its crops (doi:10.1038/s41592-020-01008-z)."""

LEAST_VISIBLE = 0.1  # fraction of an object
SLIVER = PATCH_SIZE**2  # pixels of the canvas


def choose_focus(rng: np.random.Generator, record: ImageRecord) -> tuple[float, float, float, float] | None:
    """The box (left, top, width, height) of a random object, at the rate `OBJECT_CROPS`; None without one."""
    targets = [one for one in record.annotations if not one.iscrowd]
    if rng.random() >= OBJECT_CROPS or not targets:
        return None
    chosen: Annotation = targets[int(rng.integers(len(targets)))]
    return segmentation_box(chosen.segmentation)


def middle_matrix(height: int, width: int, canvas_height: int, canvas_width: int, factor: float | None) -> Matrix:
    """`fit_matrix`, or at a factor the matrix (2, 3) that shows the middle of an image larger than the canvas."""
    matrix = fit_matrix(height, width, canvas_height, canvas_width, factor)
    for axis, (length, canvas) in enumerate(((width, canvas_width), (height, canvas_height))):
        matrix[axis, 2] -= max(round(matrix[axis, axis] * length) - canvas, 0) // 2
    return matrix


def is_sliver(window: Window, segmentation: Segmentation, matrix: Matrix, shown: tuple[int, int]) -> bool:
    """Whether an object is cut to a rest that is no target. shown: (rows, columns) of the canvas that are image."""
    rows, columns = window.pixels.shape
    inside = window.top > 0 and window.left > 0 and window.top + rows < shown[0] and window.left + columns < shown[1]
    visible = 0 if inside else int(window.pixels.sum())
    if inside or visible >= SLIVER:
        return False
    return visible < LEAST_VISIBLE * segmentation_area(segmentation) * abs(float(np.linalg.det(matrix[:, :2])))


def crop_counts(images: ImageTable, canvas: tuple[int, int], factor: float | None, scale: float = 1.0) -> Ints:
    """The largest number of instances that a canvas (height, width) shows of each image, (I,), without crowd regions.

    factor: of `ReadOptions`; None: the whole image. scale: a further scale, such as the smallest random one of
    training. Crops are compared at steps of a quarter canvas, by the boxes that they cut.
    """
    counts = images.instance_counts()
    if factor is None:
        return counts
    sides = [max(side / (factor * scale), 1.0) for side in canvas]
    sizes = images.columns.sizes[images.rows]
    rows, places = images.instance_rows()
    order = np.argsort(places, kind="stable")
    ends = np.cumsum(counts)
    for place in np.flatnonzero((sizes > sides).any(1) & (counts > 0)).tolist():
        boxes = images.columns.boxes[rows[order[ends[place] - counts[place] : ends[place]]]]  # (n, 4)
        hits = []  # for each axis: crops along it x boxes, whether they meet; rows first
        for side, length, first, extent in zip(sides, sizes[place].tolist(), (1, 0), (3, 2), strict=True):
            steps = max(int(np.ceil((length - side) / (side / 4))), 0) if length > side else 0
            starts = np.linspace(0, max(length - side, 0), steps + 1)[:, None]
            low, high = boxes[:, first], boxes[:, first] + boxes[:, extent]
            hits.append(((low < starts + side) & (high > starts)).astype(np.float32))
        counts[place] = int((hits[0] @ hits[1].T).max())
    return counts
