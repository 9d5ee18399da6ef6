"""Compare every mask with what its file states beside it: the box, the area, the size of the picture.

Training and AP use the masks alone. A box or an area that contradicts its mask is therefore no fault by itself, but
often the only sign that the masks lie elsewhere than the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
import numpy as np

from .array_types import Floats
from .coco import CocoData
from .faults import Fault, FaultReport, count_of
from .mask_arrays import MASKS_AT_ONCE, Chosen, MaskArrays, collect_masks
from .mask_causes import (
    EDGE_SLACK,
    EXIF_SENTENCE,
    Flags,
    boxes_agree,
    edges_of,
    find_causes,
    orientations,
    turn_back,
)
from .segmentation import Polygon, segmentation_area

_Values = TypeVar("_Values", Flags, Floats)

BOX_DIFFERS = "box differs from mask"
LOOSE_BOX = "box larger than mask"
AREA_DIFFERS = "area differs from mask"
AREA_OF_BOX = "area of the box"
FILLED_HOLE = "filled hole"
OUTSIDE = "mask outside the picture"
TOP_LEFT = "masks at the top left alone"
OTHER_UNIT = "coordinates in another unit"
ROW_MAJOR = "runs along the rows"

_AREA_SLACK = 0.15  # share: half of a ring's hole, or of a small object's rim, is more
_OUTSIDE_SHARE = 0.1  # of a mask's box; polygons drawn by hand go a pixel or two over the edge
_SMALL_PICTURE = 16  # pixels; in smaller ones, masks within the first pixel are no sign
_UNIT_SHARE = 0.05  # of the file's masks in 0..1: a stray sub-pixel part at the corner is no sign
_CHANCE = 1e-4  # that all masks of all pictures lie within 0..100 although they are in pixels, taken as independent
_TOP_LEFT = 0.75  # of the width and the height
_REACH = 85.0  # percent coordinates of a whole file go as far as this; objects of one corner rarely do
_RASTERISED = 5000  # masks whose area is counted in pixels before it is said to differ


def check_masks(data: CocoData) -> list[Fault]:
    """Warnings where boxes, areas and pictures contradict the masks: one for each cause, with the count and first ids.

    Costs some seconds for a million masks that agree.
    """
    return compare_masks(collect_masks(data))


def compare_masks(masks: MaskArrays) -> list[Fault]:
    """As `check_masks`, of masks that are measured already."""
    report = FaultReport("")
    if not len(masks):
        return []
    with np.errstate(over="ignore", invalid="ignore"):  # boxes as large as 1e308
        explained = _check_boxes(masks, report)
        explained |= _check_units(masks, ~explained, report)
        explained |= _check_codes(masks, ~explained, report)
        explained |= _check_edges(masks, ~explained, report)
        _check_reach(masks, ~explained, report)
        _check_areas(masks, ~explained, report)
    return report.faults


def _check_boxes(masks: MaskArrays, report: FaultReport) -> Flags:
    """Compare the file's boxes with those of the masks; returns which differ, (N,)."""
    known = np.isfinite(masks.stated).all(axis=1)
    differs = known & ~_in_pieces(masks, lambda some: boxes_agree(edges_of(masks.stated[some]), masks.boxes[some]))
    wrong = np.flatnonzero(differs)
    if not len(wrong):
        return differs
    what = f"of {count_of(int(known.sum()), 'box', 'boxes')}"
    causes, unexplained = find_causes(masks, wrong)
    for cause in causes:
        reason = f"bbox: {len(cause.explains)} {what} lie elsewhere than their masks; likeliest cause: {cause.sentence}"
        report.add_group("warning", BOX_DIFFERS, masks.places_of(cause.explains), reason)
    stated = edges_of(masks.stated[unexplained])
    loose = _are_loose(stated, masks.boxes[unexplained])
    if loose.any():
        reason = (
            f"bbox: {int(loose.sum())} {what} are larger than their masks: usual for boxes of whole objects whose mask "
            "is the visible part, and for boxes turned with the picture; training takes the masks"
        )
        report.add_group("note", LOOSE_BOX, masks.places_of(unexplained[loose]), reason)
        unexplained, stated = unexplained[~loose], stated[~loose]
    if len(unexplained):
        overlap = float(np.median(_overlap(stated, masks.boxes[unexplained])))
        reason = (
            f"bbox: {len(unexplained)} {what} lie elsewhere than their masks (median IoU {overlap:.2f}) and no common "
            "cause was found (other units, forms, turned, scaled or shifted masks were tried); look at some of them: "
            "training takes the masks"
        )
        report.add_group("warning", BOX_DIFFERS, masks.places_of(unexplained), reason)
    return differs


def _in_pieces(masks: MaskArrays, function: Callable[[slice], _Values]) -> _Values:
    """What a function gives for all masks, a part of them at a time: its steps would take 0.1 GB for COCO's size."""
    starts = range(0, len(masks), MASKS_AT_ONCE)
    return np.concatenate([function(slice(first, first + MASKS_AT_ONCE)) for first in starts])


def _are_loose(stated: Floats, boxes: Floats) -> Flags:
    """(n,) whether a box holds the whole mask and is at most about twice as wide and high."""
    inside = (stated[:, :2] <= boxes[:, :2] + EDGE_SLACK).all(axis=1) & (
        stated[:, 2:] >= boxes[:, 2:] - EDGE_SLACK
    ).all(axis=1)
    return np.asarray(inside & (_overlap(stated, boxes) >= 0.25))


def _overlap(one: Floats, other: Floats) -> Floats:
    """(n,) IoU of boxes (n, 4)."""
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    union = (one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1) - common
    return np.asarray(np.where(union > 0, common / np.where(union > 0, union, 1), 0.0))


def _check_units(masks: MaskArrays, rest: Flags, report: FaultReport) -> Flags:
    """Polygons that are shares or percent of the picture by themselves, without a box that says otherwise."""
    found = np.zeros(len(masks), dtype=bool)
    polygons = rest & masks.is_polygon
    if not polygons.any():
        return found

    def is_small(some: slice) -> Flags:
        boxes = masks.boxes[some]
        small = (boxes >= -0.01).all(axis=1) & (boxes <= 1.01).all(axis=1) & (boxes != np.round(boxes)).any(axis=1)
        return np.asarray(small & (masks.sizes[some].min(axis=1) >= _SMALL_PICTURE))

    small = polygons & _in_pieces(masks, is_small)
    if small.sum() >= max(_UNIT_SHARE * polygons.sum(), 1):
        reason = (
            f"segmentation: all coordinates of {int(small.sum())} of {int(polygons.sum())} polygons lie within 0..1: "
            "they look like shares of the picture's size; multiply x by its width and y by its height"
        )
        report.add_group("warning", OTHER_UNIT, masks.places_of(np.flatnonzero(small)), reason)
        return np.asarray(small)
    if _look_like_percent(masks, polygons):
        reason = (
            f"segmentation: all coordinates of {int(polygons.sum())} polygons lie within 0..100, in pictures up to "
            f"{int(masks.sizes[polygons].max())} pixels wide or high: they look like percent of the picture's size; "
            "multiply x by width / 100 and y by height / 100"
        )
        report.add_group("warning", OTHER_UNIT, masks.places_of(np.flatnonzero(polygons)), reason)
        return np.asarray(polygons)
    return found


def _look_like_percent(masks: MaskArrays, polygons: Flags) -> bool:
    """Whether all polygons lie within 0..100 and reach far into it, in pictures where that is unlikely."""
    boxes = masks.boxes[polygons]
    if boxes.min() < -1 or boxes.max() > 100.5 or boxes[:, 2:].max(axis=0).min() < _REACH:
        return False
    _, first = np.unique(masks.image_of[polygons], return_index=True)
    shares = np.minimum(100 / masks.sizes[polygons][first], 1).prod(axis=1)  # of each picture
    return bool(np.log(shares).sum() <= np.log(_CHANCE))


def _check_codes(masks: MaskArrays, rest: Flags, report: FaultReport) -> Flags:
    """Run-length codes that make sense only along the rows: read down the columns, an object becomes scattered lines.

    In square pictures both readings look alike; there only a box shows it.
    """
    found = np.zeros(len(masks), dtype=bool)
    codes = np.flatnonzero(rest & ~masks.is_polygon & (masks.sizes[:, 0] != masks.sizes[:, 1]))
    if not len(codes):
        return found
    rows, columns = masks.row_major_boxes(codes), masks.boxes[codes]
    scattered = _box_areas(rows) < 0.5 * _box_areas(columns)
    if scattered.sum() >= max(0.8 * len(codes), 1):
        chosen = codes[scattered]
        reason = (
            f"segmentation: {len(chosen)} of {len(codes)} RLEs are scattered over their pictures, and would not be if "
            "their runs went along the rows; COCO's go down the columns: write them in Fortran order"
        )
        report.add_group("warning", ROW_MAJOR, masks.places_of(chosen), reason)
        found[chosen] = True
    return found


def _box_areas(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def _check_edges(masks: MaskArrays, rest: Flags, report: FaultReport) -> Flags:
    """Masks that go beyond their picture; returns which, (N,)."""

    def measure(some: slice) -> Floats:
        boxes, whole = masks.boxes[some], masks.sizes[some][:, [1, 0]]
        low, high = np.clip(boxes[:, :2], 0, whole), np.clip(boxes[:, 2:], 0, whole)
        size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-9)
        share = 1 - np.clip(high - low, 0, None).prod(axis=1) / size.prod(axis=1)
        return np.stack([share, np.maximum(-boxes[:, :2], boxes[:, 2:] - whole).max(axis=1)], axis=1)

    share, beyond = _in_pieces(masks, measure).T
    outside = rest & (share > _OUTSIDE_SHARE) & (beyond > EDGE_SLACK)
    chosen = np.flatnonzero(outside)
    if len(chosen):
        reason = (
            f"segmentation: {len(chosen)} of {len(masks)} masks lie outside their picture by more than "
            f"{_OUTSIDE_SHARE:.0%} of their box (median {float(np.median(share[chosen])):.0%}); "
            f"{_why_outside(masks, outside, rest)}"
        )
        report.add_group("warning", OUTSIDE, masks.places_of(chosen), reason)
    return np.asarray(outside)


def _check_reach(masks: MaskArrays, rest: Flags, report: FaultReport) -> None:
    """Add a note where all masks keep to the top left of all pictures, as if they were of smaller ones."""
    if not rest.any():
        return
    pictures = len(np.unique(masks.image_of[rest]))
    reach = np.clip((masks.boxes[rest, 2:] / masks.sizes[rest][:, [1, 0]]).max(axis=0), 1e-9, 1)
    if (reach <= _TOP_LEFT).all() and pictures * np.log(reach.prod()) <= np.log(_CHANCE):
        report.add_note(
            f"segmentation: no mask goes beyond {reach[0]:.0%} of the width and {reach[1]:.0%} of the height, in any "
            f"of {pictures} pictures; if objects lie elsewhere too, the masks are of smaller pictures than these",
            TOP_LEFT,
        )


def _why_outside(masks: MaskArrays, outside: Flags, rest: Flags) -> str:
    """The likeliest cause: what brings all masks of the pictures concerned into them."""
    pictures = np.unique(masks.image_of[outside])
    own = np.flatnonzero(np.isin(masks.image_of, pictures) & rest)
    boxes, sizes = masks.boxes[own], masks.sizes[own]
    orientation_of = orientations(masks, own)
    turned = boxes.copy()
    for orientation in range(2, 9):
        turned[orientation_of == orientation] = turn_back(
            boxes[orientation_of == orientation], sizes[orientation_of == orientation], orientation
        )
    if (orientation_of > 1).all() and _all_inside(turned, sizes):
        return f"likeliest cause: {EXIF_SENTENCE}"
    exchanged = boxes[:, [1, 0, 3, 2]]
    if _all_inside(exchanged, sizes):
        return (
            "they lie inside with width and height exchanged; likeliest cause: x and y are exchanged, or the picture "
            "was turned by 90 degrees"
        )
    reach = (boxes[:, 2:] / sizes[:, [1, 0]]).max(axis=0)
    if boxes.min() >= -EDGE_SLACK and (reach > 1.1).all():
        return (
            f"they reach {reach[0]:.2f} times the width and {reach[1]:.2f} times the height; likeliest cause: the "
            "masks are of a larger picture: scale them to the size of this one"
        )
    return "training cuts them at its edge; likeliest cause: the pictures were cut or moved after they were annotated"


def _all_inside(boxes: Floats, sizes: Floats) -> bool:
    return bool((boxes[:, :2] >= -EDGE_SLACK).all() and (boxes[:, 2:] <= sizes[:, [1, 0]] + EDGE_SLACK).all())


def _check_areas(masks: MaskArrays, rest: Flags, report: FaultReport) -> None:
    """Compare the file's areas with those of the masks."""
    known = rest & np.isfinite(masks.stated_areas)
    stated = masks.stated_areas
    rim = (masks.boxes[:, 2:] - masks.boxes[:, :2]).sum(axis=1) + 4  # half of the outline, and more
    slack = np.maximum(_AREA_SLACK * np.maximum(masks.areas, stated), rim)
    wrong = np.flatnonzero(known & (np.abs(masks.areas - stated) > slack))
    if not len(wrong):
        return
    of_box = _near(stated[wrong], _box_areas(masks.boxes[wrong])) | _near(
        stated[wrong], masks.stated[wrong, 2:].prod(axis=1)
    )
    if of_box.sum() >= 0.5 * len(wrong):
        reason = (
            f"area: {int(of_box.sum())} of {int(known.sum())} are those of the box, not of the mask; evaluation sorts "
            "instances into small, medium and large by them"
        )
        report.add_group("note", AREA_OF_BOX, masks.places_of(wrong[of_box]), reason)
        wrong = wrong[~of_box]
    pixels = masks.areas[wrong].copy()
    counted = slice(0, _RASTERISED)
    pixels[counted] = masks.pixel_areas(wrong[counted])  # parts may overlap, outlines cross themselves
    differs = np.abs(pixels - stated[wrong]) > slack[wrong]
    wrong, pixels = wrong[differs], pixels[differs]
    if len(wrong):
        reason = (
            f"area: {len(wrong)} of {int(known.sum())} differ from their masks by more than {_AREA_SLACK:.0%} (median "
            f"{float(np.median(stated[wrong] / np.maximum(pixels, 1))):.3g} times the mask); "
            f"{_why_area(masks, wrong, pixels)}"
        )
        report.add_group("warning", AREA_DIFFERS, masks.places_of(wrong), reason)


def _near(one: Floats, other: Floats) -> Flags:
    return np.asarray(np.abs(one - other) <= 0.02 * np.maximum(np.abs(one), np.abs(other)) + 1)


def _why_area(masks: MaskArrays, wrong: Chosen, pixels: Floats) -> str:
    """The likeliest cause of areas that differ: what fits at least four fifths of them."""
    stated, picture = masks.stated_areas[wrong], masks.sizes[wrong].prod(axis=1)
    ratio = stated / np.maximum(pixels, 1)
    middle = float(np.median(ratio))

    def fits(values: Flags) -> bool:
        return bool(values.sum() >= 0.8 * len(wrong))

    if fits(stated == 0):
        return "they are 0: leave `area` out, and it follows from the mask"
    for full, unit in ((1, "shares"), (100, "percent")):
        if fits(np.abs(stated * picture / full - pixels) <= _AREA_SLACK * pixels + 4):
            return f"likeliest cause: they are {unit} of the picture's area; COCO's are square pixels"
    holes = [_with_holes(masks, index) for index in wrong[:_RASTERISED].tolist()]
    known: Sequence[bool] = [
        hole > 0 and abs(outer - hole - value) <= _AREA_SLACK * value + 4
        for (outer, hole), value in zip(holes, stated.tolist(), strict=False)
    ]
    if sum(known) >= 0.8 * len(known):
        return (
            "likeliest cause: some parts of these polygons are holes, and COCO's polygons have none: they are filled; "
            "write masks with holes as RLE"
        )
    if len(wrong) >= 3 and fits(np.abs(ratio / middle - 1) <= 0.05):
        return f"likeliest cause: another unit, or a picture scaled by {middle**0.5:.3g} along each side"
    if fits((ratio < 1) & (ratio > 0)):
        return "likeliest cause: holes were lost: polygons keep the outline alone; write masks with holes as RLE"
    if fits(ratio > 1):
        return "likeliest cause: parts of the objects are missing in the masks"
    return "no common cause was found; look at some of them"


def _with_holes(masks: MaskArrays, index: int) -> tuple[float, float]:
    """Area of the parts of a polygon that lie in no other part, and of those that do, which may be holes."""
    shape = masks.segmentation_at(index)
    if not isinstance(shape, list) or len(shape) < 2:
        return 0.0, 0.0
    areas, inside = np.array([segmentation_area([part]) for part in shape]), _inner_parts(shape)
    return float(areas[~inside].sum()), float(areas[inside].sum())


def find_filled_holes(masks: MaskArrays) -> list[Fault]:
    """A warning with all polygons of which a part lies inside another: COCO's parts are united, so a hole is filled."""
    report = FaultReport("")
    chosen = [
        index
        for index in np.flatnonzero(masks.is_polygon & (masks.labels >= 0)).tolist()
        if len(shape := masks.segmentation_at(index)) > 1 and isinstance(shape, list) and _inner_parts(shape).any()
    ]
    reason = (
        f"segmentation: {count_of(len(chosen), 'polygon')} with a part inside another part: COCO unites parts, so "
        "a hole is filled; write masks with holes as RLE"
    )
    report.add_group("warning", FILLED_HOLE, masks.places_of(np.array(chosen, dtype=np.intp)), reason)
    return report.faults


def _inner_parts(shape: Sequence[Polygon]) -> Flags:
    """(P,) which parts of a polygon lie inside a larger one: their boxes do, and their first vertices."""
    low, high = np.array([part.min(0) for part in shape]), np.array([part.max(0) for part in shape])
    holds = (low[:, None] <= low).all(axis=2) & (high[:, None] >= high).all(axis=2)  # (P, P) [outer, inner]
    holds &= (high - low).prod(axis=1)[:, None] > (high - low).prod(axis=1)
    inside = np.zeros(len(shape), dtype=bool)
    for outer, inner in np.argwhere(holds).tolist():
        outline = shape[outer].astype(np.float32)[:, None]
        inside[inner] |= cv2.pointPolygonTest(outline, tuple(map(float, shape[inner][0])), False) > 0
    return inside
