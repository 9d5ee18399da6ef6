"""Measure the objects of a split on the training canvas, and find those that the smallest random scale erases."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .coco import CocoData
from .faults import Fault, FaultReport, Place
from .segmentation import segmentation_area

SIDE = (
    1.0  # pixels of the canvas: an object whose mask covers less than a square of this side has nothing to learn from
)


class ObjectSizes(NamedTuple):
    """N objects, without crowd regions: their places and their sizes.

    areas: mask area in square pixels of the image, from the mask itself. fits: pixels of the canvas per pixel of the
    image, at scale 1.
    """

    places: list[Place]
    areas: npt.NDArray[np.float64]  # (N,)
    fits: npt.NDArray[np.float64]  # (N,)

    @property
    def sides(self) -> npt.NDArray[np.float64]:
        """(N,) side in pixels of the canvas, at scale 1, of a square with the area of the mask."""
        return np.asarray(np.sqrt(self.areas) * self.fits, dtype=np.float64)


def measure_objects(data: CocoData, canvas: tuple[int, int], most_images: int | None = None) -> ObjectSizes:
    """The objects of a split on a canvas (height, width); of `most_images` evenly spread images (None: of all)."""
    step = 1 if most_images is None else -(-len(data.images) // most_images) or 1
    places: list[Place] = []
    areas: list[float] = []
    fits: list[float] = []
    for record in data.images[::step]:
        fit = min(canvas[0] / record.height, canvas[1] / record.width)
        for annotation in record.annotations:
            if not annotation.iscrowd:
                places.append((record.id, annotation.id))
                areas.append(segmentation_area(annotation.segmentation))
                fits.append(fit)
    return ObjectSizes(places, np.array(areas, np.float64), np.array(fits, np.float64))


def keeping_scale(sides: npt.NDArray[np.float64], share: float = 1.0) -> float:
    """The smallest scale, rounded up to hundredths, at which `share` of the objects cover a pixel of the canvas."""
    side = float(np.sort(sides)[min(int((1 - share) * len(sides)), len(sides) - 1)])
    return math.ceil(100 * SIDE / side - 1e-9) / 100


def check_smallest_scale(data: CocoData, canvas: tuple[int, int], scale_min: float) -> list[Fault]:
    """A warning where the smallest random scale of training leaves less than a pixel of an object; empty if it doesn't.

    The warning names a scale that keeps the objects.
    """
    sizes = measure_objects(data, canvas)
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
        f"{_advise(sides, canvas, scale_min)}"
    )
    report = FaultReport("")
    report.add_group("warning", KIND_VANISHING, [sizes.places[index] for index in lost], reason)
    return report.faults


KIND_VANISHING = "vanishing at the smallest scale"


def _advise(sides: npt.NDArray[np.float64], canvas: tuple[int, int], scale_min: float) -> str:
    """The scale that keeps all objects, and the one that keeps all but one in a hundred; or a larger canvas."""
    all_kept, most_kept = keeping_scale(sides), keeping_scale(sides, 0.99)
    if all_kept <= 1:
        text = f"scale_min {all_kept:g} keeps all of them"
        return text + (f", {most_kept:g} keeps 99 %" if scale_min < most_kept < all_kept else "")
    larger = all_kept / 0.5  # so that a scale_min of 0.5 keeps them
    height, width = (16 * math.ceil(side * larger / 16) for side in canvas)
    text = (
        f"no scale up to 1 keeps all of them on this canvas: use a larger one ({height} x {width} with scale_min 0.5)"
    )
    if most_kept <= 1:
        text += f", or scale_min {max(most_kept, scale_min):g}, which keeps 99 %"
    return text + "; or cut the images into tiles"
