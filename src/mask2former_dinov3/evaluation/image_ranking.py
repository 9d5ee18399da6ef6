"""Images by what is wrong on them at the operating point: the worst, the best and the most disputed.

D results, I images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.array_types import Bools, Floats, Ints
from .doubtful_labels import DoubtfulLabel, doubts_per_image
from .matches import Overlaps, ResultMatches


@dataclass(frozen=True)
class ImageCount:
    """What is found on one image. image: its number; right, wrong: results that count; missed: objects; f1: 0..1, -1
    for an image with neither results nor objects; disputed: the sum of the suspicions of its labels in doubt."""

    image: int
    right: int
    wrong: int
    missed: int
    f1: float
    disputed: float


def count_images(
    overlaps: Overlaps, matches: ResultMatches, shown: Bools, images: Ints, doubts: Sequence[DoubtfulLabel]
) -> list[ImageCount]:
    """The counts of every image, in the order of their numbers. shown (D,) bool: results that count; images (I,)."""

    def per_image(numbers: Ints) -> Ints:
        return np.bincount(np.searchsorted(images, numbers), minlength=len(images))

    right = per_image(overlaps.result_image[shown & matches.right])
    wrong = per_image(overlaps.result_image[shown & matches.wrong])
    there = per_image(overlaps.object_image[~overlaps.crowd])
    whole = right + wrong + there
    f1: Floats = np.where(whole > 0, 2 * right / np.maximum(whole, 1), -1.0)
    disputed = doubts_per_image(doubts, images)
    columns = (images, right, wrong, there - right, f1, disputed)
    return [ImageCount(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def worst_images(counts: Sequence[ImageCount], number: int) -> list[ImageCount]:
    """Those with the most errors times 1 - F1, so that neither crowded images nor single misses fill the list."""
    wrong = [one for one in counts if one.wrong + one.missed]
    return sorted(wrong, key=lambda one: (-(one.wrong + one.missed) * (1 - one.f1), one.image))[:number]


def best_images(counts: Sequence[ImageCount], number: int) -> list[ImageCount]:
    """Those with the highest F1, of equal ones those with more objects."""
    found = [one for one in counts if one.right]
    return sorted(found, key=lambda one: (-one.f1, -one.right, one.image))[:number]


def disputed_images(counts: Sequence[ImageCount], number: int) -> list[ImageCount]:
    """Those with the most suspicion on their labels."""
    found = [one for one in counts if one.disputed]
    return sorted(found, key=lambda one: (-one.disputed, one.image))[:number]
