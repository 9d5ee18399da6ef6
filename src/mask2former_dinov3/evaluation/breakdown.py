"""AP over the size of objects, over crowding and over the size of images, in groups that hold about as many.

G objects, I images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.array_types import Floats, Ints
from .average_precision import mean_over_classes, precision_table, rank_all
from .coco_files import GroundTruth
from .matches import Overlaps

GROUPS = 5


@dataclass(frozen=True)
class ApGroup:
    """AP of one group. low, high: its bounds, both included; images, objects: how many it holds."""

    low: float
    high: float
    images: int
    objects: int
    AP: float
    AP50: float


@dataclass(frozen=True)
class Breakdown:
    """AP in groups. by_size: of objects by the side of a square with their area, in pixels (others are set aside, as
    for COCO's small, medium, large). by_crowding: of images by their number of objects. by_image_size: of images by the
    side of a square with their area, in pixels."""

    by_size: list[ApGroup]
    by_crowding: list[ApGroup]
    by_image_size: list[ApGroup]


def breakdown_of(overlaps: Overlaps, truth: GroundTruth) -> Breakdown:
    """AP in groups; a quantity that is the same everywhere gives one group."""
    num_images, num_classes = len(truth.sizes), len(truth.names)
    images = np.array(sorted(truth.sizes), dtype=np.int64)
    whole = ~overlaps.crowd
    crowding = np.bincount(np.searchsorted(images, overlaps.object_image[whole]), minlength=num_images)
    sides = np.sqrt([float(truth.sizes[number][0] * truth.sizes[number][1]) for number in images.tolist()])
    by_size = []
    for low, high in group_bounds(overlaps.area[whole]):  # not of their roots, whose squares are other numbers
        inside = whole & (overlaps.area >= low) & (overlaps.area <= high)
        ranked = rank_all(overlaps, images, num_classes, (low, high))
        ap, ap50 = _ap_of(precision_table(ranked, np.ones((1, num_images), np.int32)))[0]
        with_them = len(np.unique(overlaps.object_image[inside]))
        by_size.append(ApGroup(math.sqrt(low), math.sqrt(high), with_them, int(inside.sum()), ap, ap50))
    ranked = rank_all(overlaps, images, num_classes)

    def of_images(values: Floats) -> list[ApGroup]:
        bounds = group_bounds(values)
        weights = np.array([(values >= low) & (values <= high) for low, high in bounds], np.int32).reshape(
            -1, num_images
        )
        table = _ap_of(precision_table(ranked, weights)) if len(bounds) else []
        return [
            ApGroup(low, high, int(own.sum()), int(own @ crowding), ap, ap50)
            for (low, high), own, (ap, ap50) in zip(bounds, weights, table, strict=True)
        ]

    return Breakdown(by_size, of_images(crowding.astype(np.float64)), of_images(sides))


def group_bounds(values: Floats | Ints) -> list[tuple[float, float]]:
    """Lowest and highest value of at most `GROUPS` groups that hold about as many values; equal values share one."""
    if not len(values):
        return []
    ordered = np.sort(values)
    starts = [0]
    for number in range(1, GROUPS):
        start = int(np.searchsorted(ordered, ordered[len(ordered) * number // GROUPS]))
        if start > starts[-1]:
            starts.append(start)
    ends = [*starts[1:], len(ordered)]
    return [(float(ordered[start]), float(ordered[end - 1])) for start, end in zip(starts, ends, strict=True)]


def _ap_of(table: Floats) -> Sequence[tuple[float, float]]:
    """AP and AP50 of each row of a table (B, T, K)."""
    per_iou = mean_over_classes(table)
    return [(float(row.mean()), float(row[0])) for row in per_iou]
