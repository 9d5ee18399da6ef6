"""Correct the mask, the box and the area of one annotation, where their right values are certain.

The mask is what training uses. A box that differs from it may be right all the same, where the masks were written
turned, mirrored, moved or scaled: `explain_box` names such a relation, and `outlines_favour_mask` asks the image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import cv2
import faster_coco_eval.core.mask as mask_api
import numpy as np
import numpy.typing as npt

from .coco_json import Box
from .fitting import Matrix, PixelArray, fit_matrix
from .numbers import number
from .segmentation import (
    CompressedRle,
    Segmentation,
    polygons_to_counts,
    polygons_to_runs,
    segmentation_area,
    segmentation_box,
)
from .transforms import rasterise

SAME_BOX = 0.9  # IoU from which two boxes are the same
SAME_EDGE = 2.0  # pixels that the edges of equal boxes may differ by: conventions of tools
SAME_AREA = (0.85, 1 / 0.85)  # ratio of areas within which the file's is kept: polygons against pixels
LOOSE_BOX_IOU = 0.25  # of a box that holds its whole mask, from which it may be that of the whole object
SAME_OBJECT = 0.95  # IoU from which two masks of an image and a class are one object
_SMALLEST_POLYGON = 6  # numbers

RLE_IN_LIST = "RLE taken out of its list"
PAIRS_FLATTENED = "polygon of [x, y] pairs written as a flat list"
BARE_POLYGON = "polygon put into a list"
STRAY_PARTS = "parts of fewer than 3 points removed beside sound ones"


def clean_segmentation(value: object) -> tuple[object, list[str]]:
    """The segmentation in COCO's form, and what was changed: the same object where nothing was."""
    changes: list[str] = []
    if not isinstance(value, list) or not value:
        return value, changes
    if len(value) == 1 and isinstance(value[0], Mapping):
        return value[0], [RLE_IN_LIST]
    if all(map(_is_pair, value)) and len(value) * 2 >= _SMALLEST_POLYGON:
        return [[side for pair in value for side in pair]], [PAIRS_FLATTENED]
    if _is_flat(value) and len(value) >= _SMALLEST_POLYGON:
        return [value], [BARE_POLYGON]
    parts = []
    for part in value:
        if isinstance(part, list) and len(part) * 2 >= _SMALLEST_POLYGON and all(map(_is_pair, part)):
            part = [side for pair in part for side in pair]
            changes.append(PAIRS_FLATTENED)
        parts.append(part)
    sound = [part for part in parts if not (_is_flat(part) and len(part) < _SMALLEST_POLYGON)]
    if sound and len(sound) < len(parts):
        parts = sound
        changes.append(STRAY_PARTS)
    return (parts if changes else value), list(dict.fromkeys(changes))


def _is_flat(value: object) -> bool:
    return isinstance(value, list | tuple) and all(number(side) is not None for side in value)


def _is_pair(value: object) -> bool:
    return _is_flat(value) and isinstance(value, list | tuple) and len(value) == 2


def clipped_box(segmentation: Segmentation, size: tuple[int, int]) -> Box:
    """The box of a mask (left, top, width, height), within an image of `size` (height, width)."""
    left, top, width, height = segmentation_box(segmentation)
    x0, y0 = max(left, 0.0), max(top, 0.0)
    x1, y1 = min(left + width, float(size[1])), min(top + height, float(size[0]))
    return x0, y0, x1 - x0, y1 - y0


def pixel_area(segmentation: Segmentation, size: tuple[int, int]) -> float:
    """The number of pixels of a mask on its image of `size` (height, width)."""
    if isinstance(segmentation, list):
        return float(polygons_to_runs(segmentation, *size)[1::2].sum())
    return segmentation_area(segmentation)


def area_fits(area: float, segmentation: Segmentation, size: tuple[int, int]) -> bool:
    """Whether the file's area is that of the mask, counted as pixels or as polygons."""
    for own in (segmentation_area(segmentation), pixel_area(segmentation, size)):
        if abs(area - own) <= SAME_EDGE or (own > 0 and SAME_AREA[0] <= area / own <= SAME_AREA[1]):
            return True
    return False


def same_box(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (left, top, width, height) are the same, up to the conventions of tools."""
    ax0, ay0, ax1, ay1 = one[0], one[1], one[0] + one[2], one[1] + one[3]
    bx0, by0, bx1, by1 = other[0], other[1], other[0] + other[2], other[1] + other[3]
    if max(abs(ax0 - bx0), abs(ay0 - by0), abs(ax1 - bx1), abs(ay1 - by1)) <= SAME_EDGE:
        return True
    wide, high = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
    shared = max(wide, 0.0) * max(high, 0.0)
    union = one[2] * one[3] + other[2] * other[3] - shared
    return union > 0 and min(one[2], one[3], other[2], other[3]) > 0 and shared / union >= SAME_BOX


class Relation(NamedTuple):
    """How a box differs from its mask. matrix: moves the mask into the box; None: only the box can be wrong.

    loose: the box holds the mask, and may be that of a whole object of which the mask is the visible part.
    """

    name: str
    matrix: Matrix | None
    loose: bool = False


def explain_box(box: Box, own: Box, size: tuple[int, int]) -> Relation:
    """The relation of a box to the box of its mask, `own`; size (height, width) of the image."""
    height, width = size
    left, top, right, bottom = box  # if they are corners
    for name, read in {
        "as corners x0, y0, x1, y1": (left, top, right - left, bottom - top),
        "as fractions of the image": (left * width, top * height, right * width, bottom * height),
        "in percent of the image": tuple(
            side * whole / 100 for side, whole in zip(box, (width, height) * 2, strict=True)
        ),
    }.items():
        if min(read[2:]) > 0 and same_box(read, own) and not _all_small(box, name):
            return Relation(f"box {name}", None)
    for name, rows in {
        "x and y exchanged": ((0, 1, 0), (1, 0, 0)),
        "mirrored left-right": ((-1, 0, width), (0, 1, 0)),
        "mirrored top-bottom": ((1, 0, 0), (0, -1, height)),
        "turned by 180 degrees": ((-1, 0, width), (0, -1, height)),
        "turned by 90 degrees": ((0, -1, width), (1, 0, 0)),
        "turned by 270 degrees": ((0, 1, 0), (-1, 0, height)),
    }.items():
        matrix = np.array(rows, dtype=np.float64)
        if same_box(_moved(own, matrix), box):
            return Relation(name, matrix)
    if min(box[2:]) > 0 and min(own[2:]) > 0:
        scale = np.array([box[2] / own[2], box[3] / own[3]])
        scaled = np.array([[scale[0], 0.0, 0.0], [0.0, scale[1], 0.0]])
        if same_box(_moved(own, scaled), box):
            return Relation("scaled", scaled)
        if np.all(np.abs(scale - 1) < 0.05):
            shift = np.array([[1.0, 0.0, box[0] - own[0]], [0.0, 1.0, box[1] - own[1]]])
            return Relation("moved", shift)
    return Relation("another box", None, _is_loose(box, own))


def _is_loose(box: Box, own: Box) -> bool:
    """Whether a box holds the one of its mask, and is not more than about twice as wide and high."""
    low = own[0] - box[0], own[1] - box[1]
    high = box[0] + box[2] - own[0] - own[2], box[1] + box[3] - own[1] - own[3]
    return min(*low, *high) >= -SAME_EDGE and own[2] * own[3] >= LOOSE_BOX_IOU * box[2] * box[3]


class SeenMasks:
    """The masks of an image and a class so far, to find those that repeat another."""

    def __init__(self) -> None:
        self._masks: dict[tuple[object, ...], list[tuple[Box, Segmentation]]] = defaultdict(list)

    def repeats(self, key: tuple[object, ...], segmentation: Segmentation, own: Box, size: tuple[int, int]) -> bool:
        """Whether the mask is one of `key` that was seen before; otherwise it is added. own: its box."""
        slack = 1 + (1 - SAME_OBJECT) * max(own[2], own[3])
        near = [one for box, one in self._masks[key] if _edges_near(box, own, slack)]
        if near:  # masks are drawn only where boxes nearly agree: the usual data set has no such pair
            codes = [_as_code(one, size) for one in (segmentation, *near)]
            if mask_api.iou(codes[:1], codes[1:], [0] * len(near)).max() >= SAME_OBJECT:
                return True
        self._masks[key].append((own, segmentation))
        return False


def _as_code(segmentation: Segmentation, size: tuple[int, int]) -> CompressedRle:
    if not isinstance(segmentation, list):
        return segmentation
    return CompressedRle(size=list(size), counts=polygons_to_counts(segmentation, *size))


def _edges_near(one: Box, other: Box, slack: float) -> bool:
    if abs(one[0] - other[0]) > slack or abs(one[1] - other[1]) > slack:
        return False
    right, bottom = one[0] + one[2] - other[0] - other[2], one[1] + one[3] - other[1] - other[3]
    return abs(right) <= slack and abs(bottom) <= slack


def _all_small(box: Box, name: str) -> bool:
    """Whether a box that would be read as corners could be an empty one as well."""
    return name.startswith("as corners") and not any(box)


def _moved(box: Box, matrix: Matrix) -> Box:
    """The box (left, top, width, height) around a box moved by `matrix`, which may turn it by right angles."""
    corners = np.array([[box[0], box[1]], [box[0] + box[2], box[1] + box[3]]]) @ matrix[:, :2].T + matrix[:, 2]
    (x0, y0), (x1, y1) = corners.min(0).tolist(), corners.max(0).tolist()
    return x0, y0, x1 - x0, y1 - y0


def outlines_favour_mask(image: PixelArray, pairs: Iterable[tuple[Segmentation, Matrix]]) -> list[bool]:
    """Per mask, whether the image (h, w, C) changes more along its outline than along that of the mask moved."""
    is_rgb = image.shape[2] == 3
    plain = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if is_rgb else image.mean(2).astype(np.uint8)
    grey = cv2.GaussianBlur(plain, (0, 0), 1.0).astype(np.float32)
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    size = image.shape[0], image.shape[1]
    votes = []
    for segmentation, matrix in pairs:
        mask = rasterise(segmentation, size, fit_matrix(*size, *size), *size)
        moved = cv2.warpAffine(mask, matrix, size[::-1], flags=cv2.INTER_NEAREST)
        votes.append(_mean_slope(slope, mask) > _mean_slope(slope, np.asarray(moved, np.uint8)))
    return votes


def _mean_slope(slope: npt.NDArray[np.float32], mask: PixelArray) -> float:
    """The mean of `slope` along the outline of a mask; 0 without one."""
    edge = mask - cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    inside = edge > 0
    return float(slope[inside].mean()) if inside.any() else 0.0
