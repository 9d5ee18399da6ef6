"""Measure the objects of a split on the training canvas, find small ones and those that the smallest scale erases."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .array_types import Floats
from .faults import Fault, FaultReport, Place
from .mask_arrays import Chosen, MaskArrays, collect_masks
from .records import CocoData

SIDE = 1.0
"""Pixels of the canvas: an object whose mask covers less than a square of this side has nothing to learn from."""
SMALL_SIDE = 15.0
"""Pixels of the network: a mask of stride 2 has seven pixels along such an object."""


class ObjectSizes(NamedTuple):
    """N objects, without crowd regions, in the order of the images.

    areas: mask area in square pixels of the image, from the mask itself. fits: pixels of the canvas per pixel of the
    image, at scale 1. chosen: (N,) their positions among the masks.
    """

    areas: Floats  # (N,)
    fits: Floats  # (N,)
    chosen: Chosen
    masks: MaskArrays

    @property
    def sides(self) -> Floats:
        """(N,) side in pixels of the canvas, at scale 1, of a square with the area of the mask."""
        return np.asarray(np.sqrt(self.areas) * self.fits, dtype=np.float64)

    def places_of(self, objects: Chosen) -> list[Place]:
        """(image id, annotation id) of these of the N objects, image by image."""
        return self.masks.places_of(self.chosen[objects])


def measure_objects(
    data: CocoData, canvas: tuple[int, int], most_images: int | None = None, factor: float | None = None
) -> ObjectSizes:
    """The objects of a split on a canvas (height, width); of `most_images` evenly spread images (None: of all).

    factor: the scale of images that are not fitted into it (`ReadOptions.factor`).
    """
    step = 1 if most_images is None else -(-len(data.images) // most_images) or 1
    return measure_masks(collect_masks(replace(data, images=data.images[::step], left_out=())), canvas, factor)


def measure_masks(masks: MaskArrays, canvas: tuple[int, int], factor: float | None = None) -> ObjectSizes:
    """As `measure_objects`, of masks that are measured already."""
    chosen = np.flatnonzero(~masks.iscrowd & (masks.labels >= 0))
    fits = np.minimum(canvas[0] / masks.sizes[chosen, 0], canvas[1] / masks.sizes[chosen, 1])
    if factor is not None:
        fits = np.full(len(chosen), factor)
    return ObjectSizes(masks.areas[chosen], fits, chosen, masks)


def keeping_scale(sides: Floats, share: float = 1.0) -> float:
    """The smallest scale, rounded up to hundredths, at which `share` of the objects cover a pixel of the canvas."""
    side = float(np.sort(sides)[min(int((1 - share) * len(sides)), len(sides) - 1)])
    return math.ceil(100 * SIDE / side - 1e-9) / 100


def check_smallest_scale(
    masks: MaskArrays, canvas: tuple[int, int], scale_min: float, factor: float | None = None
) -> list[Fault]:
    """A warning where the smallest random scale of training leaves less than a pixel of an object; empty if it doesn't.

    The warning names a scale that keeps the objects.
    """
    sizes = measure_masks(masks, canvas, factor)
    sides = sizes.sides
    lost = np.flatnonzero(sides * scale_min < SIDE)
    if not lost.size:
        return []
    lost = lost[np.argsort(sides[lost], kind="stable")]
    smallest = float(sides[lost[0]])
    reason = (
        f"{lost.size:,} of {len(sides):,} objects cover less than one pixel of the canvas of {canvas[0]} x {canvas[1]} "
        f"at the smallest random scale, scale_min {scale_min:g}: training then has the image without them. The "
        f"smallest has a side of {smallest:.1f} pixels at scale 1, {smallest * scale_min:.2f} at scale_min; "
        f"{_advise(sides, canvas, scale_min, factor)}"
    )
    report = FaultReport("")
    report.add_group("warning", KIND_VANISHING, sizes.places_of(lost), reason)
    return report.faults


def advise_scale(masks: MaskArrays, canvas: tuple[int, int], factor: float | None) -> list[Fault]:
    """A note where half of the objects are small for the network, with the `image_scale` to try; else empty.

    factor: of the `image_scale` in use.
    """
    sizes = measure_masks(masks, canvas, factor)
    if not len(sizes.areas) or (side := float(np.median(sizes.sides))) >= SMALL_SIDE:
        return []
    own, fit = float(np.median(np.sqrt(sizes.areas))), float(np.median(sizes.fits))
    if factor is None and fit <= 0.5 and own >= 1.5 * side:
        scale, why = "native", f", because the images are reduced to {fit:.2g} of their size to fit into it"
        shown = own
    else:
        scale, why = f"{2 * (factor or 1.0):.1f}", ""
        shown = own * float(scale)
    reason = (
        f"half of the objects have a side of at most {side:.1f} pixels on the canvas{why}: image_scale {scale} shows "
        f"them with {shown:.1f} pixels (crops in training, tiles in use)"
    )
    return [Fault("note", None, None, reason, "small on the canvas")]


KIND_VANISHING = "vanishing at the smallest scale"


def _advise(sides: Floats, canvas: tuple[int, int], scale_min: float, factor: float | None) -> str:
    """The scale that keeps all objects, and the one that keeps all but one in a hundred; or a larger canvas."""
    all_kept, most_kept = keeping_scale(sides), keeping_scale(sides, 0.99)
    if all_kept <= 1:
        text = f"scale_min {all_kept:g} keeps all of them"
        return text + (f", {most_kept:g} keeps 99 %" if scale_min < most_kept < all_kept else "")
    if factor is not None:
        return f"no scale up to 1 keeps all of them: raise image_scale from {factor:g} to {factor * all_kept:.2g}"
    larger = all_kept / 0.5  # so that a scale_min of 0.5 keeps them
    height, width = (16 * math.ceil(side * larger / 16) for side in canvas)
    text = (
        f"no scale up to 1 keeps all of them on this canvas: use a larger one ({height} x {width} with scale_min 0.5)"
    )
    if most_kept <= 1:
        text += f", or scale_min {max(most_kept, scale_min):g}, which keeps 99 %"
    return text + "; or cut the images into tiles"
