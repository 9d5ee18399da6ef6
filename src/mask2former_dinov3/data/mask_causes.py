"""Why a file's boxes lie elsewhere than its masks: every candidate is tried, and the one that fits most is named.

n masks. A candidate fits a mask if the two boxes agree after its conversion. Boxes are left, top, right, bottom in
pixels here, unless it says `bbox`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError
from .array_types import Floats
from .images import read_header
from .mask_arrays import Chosen, MaskArrays

Flags: TypeAlias = npt.NDArray[np.bool_]

EDGE_SLACK = 2.0
"""Pixels by which boxes may differ at an edge: a polygon and its pixels differ by 1, other conventions by 2."""
OVERLAP = 0.8
"""IoU from which two boxes agree: drawn by hand twice, they reach more; moved by a tenth of their size, less."""

_UNITS = {"percent of the picture's size": 100.0, "shares of the picture's size (0 to 1)": 1.0, "thousandths": 1000.0}
_FEWEST = 3  # masks that a fitted number (a factor, an offset) has to explain
_LEAST_SHARE = 0.2  # of the masks that are not explained yet


class Cause(NamedTuple):
    """What may be wrong, as a sentence, and the masks that it explains."""

    sentence: str
    explains: Chosen


def boxes_agree(one: Floats, other: Floats) -> Flags:
    """(n,) whether boxes (n, 4) agree: within EDGE_SLACK pixels at every edge, or an IoU of at least OVERLAP."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        close = (np.abs(one - other) <= EDGE_SLACK).all(axis=1)
        low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
        common = np.clip(high - low, 0, None).prod(axis=1)
        union = (one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1) - common
        return np.asarray(close | (common >= OVERLAP * union) & (union > 0))


def edges_of(bbox: Floats) -> Floats:
    """(n, 4) left, top, right, bottom of COCO's left, top, width, height."""
    return np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)


def find_causes(masks: MaskArrays, wrong: Chosen) -> tuple[list[Cause], Chosen]:
    """The causes that explain the masks at `wrong` (n,), and those that none explains."""
    fits = list(_try_all(masks, wrong))
    causes: list[Cause] = []
    remaining = np.ones(len(wrong), dtype=bool)
    while remaining.any():
        counts = [int((flags & remaining).sum()) for _, flags, _ in fits]
        best = next(index for index, count in enumerate(counts) if count >= 0.98 * max(counts))
        sentence, flags, fewest = fits[best]
        if counts[best] < max(fewest, _LEAST_SHARE * remaining.sum(), 1):
            break
        causes.append(Cause(sentence, wrong[flags & remaining]))
        remaining &= ~flags
    return causes, wrong[remaining]


_Tried: TypeAlias = tuple[str, Flags, int]  # sentence, what it fits (n,), fewest that it must fit


def _try_all(masks: MaskArrays, wrong: Chosen) -> Iterator[_Tried]:
    """Every candidate, the likelier of two that fit equally first."""
    size = masks.sizes[wrong]
    box, stated = masks.boxes[wrong], edges_of(masks.stated[wrong])
    whole = size[:, [1, 0, 1, 0]]  # width, height, width, height
    sized = (stated[:, 2:] != stated[:, :2]).any(axis=1)
    yield "the boxes have no size: leave `bbox` out, and it follows from the mask", ~sized, 1
    rows = masks.row_major_boxes(wrong)
    yield "the runs of the RLE go along the rows; COCO's go down the columns", boxes_agree(rows, stated), 1
    with np.errstate(invalid="ignore"):
        area = masks.stated_areas[wrong]
        inverted = np.abs(size.prod(axis=1) - masks.areas[wrong] - area) <= 0.1 * area
    yield "the runs of the RLE begin with the object; COCO's begin with the background", inverted, 1
    for unit, full in _UNITS.items():
        part = f" / {full:g}" * (full > 1)
        advice = f"multiply x by width{part} and y by height{part}"
        yield f"the polygons hold {unit}: {advice}", boxes_agree(box * whole / full, stated), 1
    yield from _try_turns(masks, wrong, stated)
    yield from _try_forms_of_box(masks.stated[wrong], box, whole)
    yield from _try_fitted(box, stated, masks.image_of[wrong])
    yield "the boxes are those of other annotations of the same picture", _fits_another(masks, wrong), 1


def _try_forms_of_box(bbox: Floats, box: Floats, whole: Floats) -> Iterator[_Tried]:
    """Other forms of `bbox`, in other units; COCO's is left, top, width, height in pixels."""
    a, b, c, d = bbox.T
    forms = {
        "left, top, right, bottom": (a, b, c, d),
        "centre x, centre y, width, height": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
        "left, top, width, height": (a, b, a + c, b + d),
        "top, left, bottom, right": (b, a, d, c),
        "top, left, height, width": (b, a, b + d, a + c),
        "left, right, top, bottom": (a, c, b, d),
    }
    for unit, scale in {"pixels": np.ones_like(whole), **{u: whole / full for u, full in _UNITS.items()}}.items():
        for form, edges in forms.items():
            if (unit, form) != ("pixels", "left, top, width, height"):
                fits = boxes_agree(np.stack(edges, axis=1) * scale, box)
                yield f"`bbox` holds {form} in {unit}; COCO's is left, top, width, height in pixels", fits, 1


def turn_back(boxes: Floats, sizes: Floats, orientation: int) -> Floats:
    """Boxes (n, 4) of the picture as EXIF `orientation` turns it, in the picture as stored. sizes: (n, 2) as stored."""
    height, width = sizes[:, 0], sizes[:, 1]
    left, top, right, bottom = boxes.T
    if orientation > 4:  # the turned picture is transposed
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return np.stack([left, top, right, bottom], axis=1)


_TURNS = {
    5: "x and y are exchanged in masks or boxes",
    4: "y is counted from the bottom edge in the masks or in the boxes (COCO counts from the top)",
    3: "masks or boxes are those of the picture turned by 180 degrees",
    2: "masks or boxes are those of the mirrored picture",
    6: "masks or boxes are those of the picture turned by 90 degrees",
    8: "masks or boxes are those of the picture turned by 90 degrees",
    7: "masks or boxes are those of the picture turned by 90 degrees and mirrored",
}
EXIF_SENTENCE = (
    "the masks are those of the picture as EXIF turns it, but pixels are taken as stored: save the pictures turned and "
    "without EXIF orientation, and correct the sizes in the file"
)


def _try_turns(masks: MaskArrays, wrong: Chosen, stated: Floats) -> Iterator[_Tried]:
    """Turned pictures: as the headers of the image files say, and as none says."""
    box, size = masks.boxes[wrong], masks.sizes[wrong]
    turned = {orientation: boxes_agree(turn_back(box, size, orientation), stated) for orientation in _TURNS}
    if any(fits.any() for fits in turned.values()):
        orientation_of = orientations(masks, wrong)
        by_header = [fits & (orientation_of == orientation) for orientation, fits in turned.items()]
        yield EXIF_SENTENCE, np.any(by_header, axis=0), 1
    beyond = [int((edges[:, 2:] > size[:, [1, 0]] + EDGE_SLACK).any(axis=1).sum()) for edges in (box, stated)]
    wrong_side = "" if beyond[0] == beyond[1] else "; of both, the masks go beyond the pictures"
    if beyond[1] > beyond[0]:
        wrong_side = "; of both, the boxes go beyond the pictures"
    for orientation, sentence in _TURNS.items():
        yield sentence + wrong_side, turned[orientation], 1


def orientations(masks: MaskArrays, chosen: Chosen) -> npt.NDArray[np.int64]:
    """(n,) EXIF orientation of the pictures of the chosen masks; 1 where a file cannot be read."""
    pictures, inverse = np.unique(masks.image_of[chosen], return_inverse=True)
    found = np.ones(len(pictures), dtype=np.int64)
    for place, picture in enumerate(pictures.tolist()):
        try:
            found[place] = read_header(masks.path_of(picture)).orientation
        except (DatasetError, OSError):  # reported by the check of the image
            continue
    return np.asarray(found[inverse.reshape(-1)])


def _try_fitted(box: Floats, stated: Floats, image_of: Chosen) -> Iterator[_Tried]:
    """Masks scaled or shifted: by the same in the whole file, or in each picture by its own.

    Of numbers fitted for each picture, only what explains two masks of it counts.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        size, stated_size = box[:, 2:] - box[:, :2], stated[:, 2:] - stated[:, :2]
        factor = np.where(size > 0, stated_size / size, np.nan)  # (n, 2)
        shift = (stated[:, :2] + stated[:, 2:] - box[:, :2] - box[:, 2:]) / 2  # (n, 2)
    scale, offset = _median(factor), _median(shift)
    text = f"the boxes are {_both(scale)} times as large and as far from the top left corner as the masks"
    advice = "one of them was not scaled with the picture"
    yield f"{text}: {advice}", boxes_agree(box * np.tile(scale, 2), stated), _FEWEST
    x, y = offset.tolist()
    moved = f"one of them is shifted: the boxes are {x:.3g} pixels to the right of the masks and {y:.3g} below them"
    yield moved, boxes_agree(box + np.tile(offset, 2), stated), _FEWEST
    scales, offsets = _median_of_each(factor, image_of), _median_of_each(shift, image_of)
    fits = _at_least_two(boxes_agree(box * np.tile(scales, 2), stated), image_of)
    yield f"boxes and masks differ by a factor of each picture's own: {advice}", fits, _FEWEST
    fits = _at_least_two(boxes_agree(box + np.tile(offsets, 2), stated), image_of)
    text = "boxes and masks differ by a shift of each picture's own: one of them is of the picture before it was cut"
    yield text, fits, _FEWEST


def _median(values: Floats) -> Floats:
    """(2,) the median of the defined values (n, 2) of either column; 0 where there is none."""
    return np.array([np.median(column[np.isfinite(column)]) if np.isfinite(column).any() else 0 for column in values.T])


def _both(values: Floats) -> str:
    x, y = values.tolist()
    return f"{x:.3g}" if abs(x - y) <= 0.01 * abs(x) else f"{x:.3g} and {y:.3g}"


def _median_of_each(values: Floats, image_of: Chosen) -> Floats:
    """(n, 2) the median over the masks of the same picture."""
    found = np.zeros_like(values)
    for column in range(2):
        order = np.lexsort((values[:, column], image_of))  # by picture, then by value; NaN comes last
        _, first, count = np.unique(image_of[order], return_index=True, return_counts=True)
        middle = values[order[first + (count - 1) // 2], column]
        found[order, column] = np.repeat(middle, count)
    return found


def _at_least_two(fits: Flags, image_of: Chosen) -> Flags:
    """(n,) what fits, in the pictures of which at least two masks fit."""
    return np.asarray(fits & (np.bincount(image_of, fits, minlength=int(image_of.max()) + 1)[image_of] >= 2))


def _fits_another(masks: MaskArrays, wrong: Chosen) -> Flags:
    """(n,) whether the file's box is that of another mask of the same picture."""
    order = np.argsort(masks.image_of, kind="stable")
    starts = np.searchsorted(masks.image_of[order], masks.image_of[wrong])
    ends = np.searchsorted(masks.image_of[order], masks.image_of[wrong], side="right")
    stated = edges_of(masks.stated[wrong])
    fits = np.zeros(len(wrong), dtype=bool)
    for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        others = masks.boxes[order[start:end]]
        fits[place] = boxes_agree(np.broadcast_to(stated[place], others.shape), others).any()
    return fits
