"""Rules for what can be meant in two ways: crowd regions, and images whose annotations are incomplete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from .faults import FaultReport, Place, count_of

CrowdRule = Literal["ignore", "instances"]
IncompleteRule = Literal["keep", "drop"]
CROWD_RULES: tuple[CrowdRule, ...] = get_args(CrowdRule)
INCOMPLETE_RULES: tuple[IncompleteRule, ...] = get_args(IncompleteRule)


@dataclass(frozen=True, slots=True)
class ReadRules:
    """How annotations are read, the same in training and evaluation.

    crowd: "ignore": `iscrowd` 1 is a region of many objects, no target, and ignored in AP; "instances": a single object
    like others. incomplete_images: "drop" leaves out images that have an object without a usable mask, which otherwise
    counts as background ("keep").
    """

    crowd: CrowdRule = "ignore"
    incomplete_images: IncompleteRule = "keep"


class CrowdCount:
    """Counts the crowd regions of a file, and reports those that a labelling tool has probably marked so.

    In COCO about one annotation in 80 is a crowd region, and an image has at most one of a class. Suspicious are two or
    more that are a tenth of all annotations, two of a class in one image, and a file of nothing else.
    """

    def __init__(self, rule: CrowdRule) -> None:
        self._rule = rule
        self._places: list[Place] = []
        self._number = 0
        self._groups: Counter[tuple[int, int]] = Counter()  # crowd regions by image and category

    def count(self, flag: bool, image_id: int, category_id: int, annotation_id: int) -> bool:
        """Count an annotation; returns whether it is to be read as a crowd region."""
        self._number += 1
        if flag:
            self._places.append((image_id, annotation_id))
            self._groups[image_id, category_id] += 1
        return flag and self._rule == "ignore"

    def count_plain(self, number: int) -> None:
        """Count annotations that are no crowd regions."""
        self._number += number

    def report(self, faults: FaultReport) -> None:
        """Add a warning for suspicious crowd regions, or a note on those that are read as instances."""
        share = f"{len(self._places)} of {count_of(self._number, 'annotation')} have iscrowd 1"
        if self._rule == "instances":
            faults.add_group("note", "crowd regions", self._places, f"{share}, read as instances (crowd: instances)")
        elif self._is_suspicious():
            reason = (
                f"{share} and are crowd regions: background in training, ignored in AP; labelling tools such as CVAT "
                "mark every mask so; if they are single objects, set crowd to instances"
            )
            faults.add_group("warning", "crowd regions", self._places, reason)

    def _is_suspicious(self) -> bool:
        crowds = len(self._places)
        many = crowds > 1 and 10 * crowds >= self._number
        return crowds > 0 and (many or crowds == self._number or max(self._groups.values()) > 1)


def note_dropped(image_ids: Sequence[int], faults: FaultReport) -> None:
    """Add the note for images that `incomplete_images` "drop" leaves out."""
    reason = f"{count_of(len(image_ids), 'image')} left out, with an object without a mask (incomplete_images: drop)"
    faults.add_group("note", "incomplete images", [(image_id, None) for image_id in image_ids], reason)
