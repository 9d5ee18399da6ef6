"""What changed on each image between two sets of results: objects found and lost, wrong results new and gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval.core import mask as rle_codec

from ..data.array_types import Ints
from .coco_files import GroundTruth, ScoredMask
from .matches import Overlaps, match_overlaps

SAME_RESULT = 0.5  # IoU from which two wrong results of one class are the same mistake


@dataclass(frozen=True)
class SideOfImage:
    """What one set of results does on an image, beside what the other does.

    Results, as indices into their list: found: those that find an object; wrong: those that find none. Objects, as
    indices into `GroundTruth.annotations`: missed. `_only`: only here; the others are so in both sets.
    """

    found: tuple[int, ...]
    found_only: tuple[int, ...]
    wrong: tuple[int, ...]
    wrong_only: tuple[int, ...]
    missed: tuple[int, ...]
    missed_only: tuple[int, ...]


@dataclass(frozen=True)
class ImageChange:
    """The changes on one image from A (before) to B (after). image: its number in the ground truth."""

    image: int
    before: SideOfImage
    after: SideOfImage

    @property
    def gained(self) -> int:
        """Number of objects that only B finds."""
        return len(self.after.found_only)

    @property
    def lost(self) -> int:
        """Number of objects that only A finds."""
        return len(self.before.found_only)

    @property
    def new_wrong(self) -> int:
        """Number of wrong results that only B has."""
        return len(self.after.wrong_only)

    @property
    def gone_wrong(self) -> int:
        """Number of wrong results that only A has."""
        return len(self.before.wrong_only)

    @property
    def size(self) -> int:
        """Number of objects and results whose state changed."""
        return self.gained + self.lost + self.new_wrong + self.gone_wrong

    @property
    def balance(self) -> int:
        """Changes for the better minus changes for the worse."""
        return self.gained + self.gone_wrong - self.lost - self.new_wrong


@dataclass(frozen=True)
class StatedMatches:
    """What the results at or above a threshold find.

    results: the whole list. finder (G,): index in it of the result that finds each object, -1: none. wrong: indices of
    the results that find none, in the order of the images, best first.
    """

    results: Sequence[ScoredMask]
    finder: Ints
    wrong: Ints


def match_above(overlaps: Overlaps, results: Sequence[ScoredMask], threshold: float, iou: float) -> StatedMatches:
    """Match the results with a score of at least `threshold`. results: those that the overlaps are of.

    Results are matched best first, so those below the threshold change nothing for those above it.
    """
    matches = match_overlaps(overlaps, iou)
    stated = overlaps.score >= threshold
    finder = np.full(len(matches.result_of), -1, dtype=np.int64)
    found = matches.result_of >= 0
    found[found] = stated[matches.result_of[found]]
    finder[found] = overlaps.result_row[matches.result_of[found]]
    return StatedMatches(results, finder, overlaps.result_row[matches.wrong & stated])


def changes_by_image(truth: GroundTruth, before: StatedMatches, after: StatedMatches) -> list[ImageChange]:
    """The images on which something changed, the largest change first, equal ones in the order of the images."""
    objects: dict[int, list[int]] = {}
    for index, one in enumerate(truth.annotations):
        if not one["iscrowd"]:
            objects.setdefault(one["image_id"], []).append(index)
    both = before, after
    wrong = [_wrong_by_image(one) for one in both]
    changes = []
    for image in sorted(truth.sizes):
        own = objects.get(image, [])
        rows = [wrong[0].get(image, []), wrong[1].get(image, [])]
        same = _pair_wrong(before.results, rows[0], after.results, rows[1])
        sides = []
        for this, other in ((0, 1), (1, 0)):
            found = {index: int(both[this].finder[index]) for index in own if both[this].finder[index] >= 0}
            of_other = {index for index in own if both[other].finder[index] >= 0}
            sides.append(
                SideOfImage(
                    found=tuple(row for index, row in found.items() if index in of_other),
                    found_only=tuple(row for index, row in found.items() if index not in of_other),
                    wrong=tuple(row for row in rows[this] if row in same[this]),
                    wrong_only=tuple(row for row in rows[this] if row not in same[this]),
                    missed=tuple(index for index in own if index not in found and index not in of_other),
                    missed_only=tuple(index for index in own if index not in found and index in of_other),
                )
            )
        change = ImageChange(image, *sides)
        if change.size:
            changes.append(change)
    return sorted(changes, key=lambda one: (-one.size, one.image))


def _wrong_by_image(stated: StatedMatches) -> dict[int, list[int]]:
    """Image -> rows of the results that find nothing, best first."""
    found: dict[int, list[int]] = {}
    for row in stated.wrong.tolist():
        found.setdefault(stated.results[row]["image_id"], []).append(row)
    return found


def _pair_wrong(
    before: Sequence[ScoredMask], first: list[int], after: Sequence[ScoredMask], second: list[int]
) -> tuple[set[int], set[int]]:
    """The wrong results of one image that both have: rows of A, rows of B; each of B takes the best one left of A."""
    if not first or not second:
        return set(), set()
    masks = [
        [one["segmentation"] for one in (part[row] for row in rows)]
        for part, rows in ((after, second), (before, first))
    ]
    table = np.asarray(rle_codec.iou(*masks, np.zeros(len(first), np.uint8))).reshape(len(second), len(first)).copy()
    classes = [
        np.array([part[row]["category_id"] for row in rows]) for part, rows in ((after, second), (before, first))
    ]
    table[classes[0][:, None] != classes[1][None]] = 0
    taken: tuple[set[int], set[int]] = set(), set()
    for place, row in enumerate(second):
        best = int(table[place].argmax())
        if table[place, best] >= SAME_RESULT:
            taken[0].add(first[best])
            taken[1].add(row)
            table[:, best] = 0
    return taken
