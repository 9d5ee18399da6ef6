"""Faults of a data set: collected while it is read, and reported together."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..errors import DatasetError

ADVICE = "run check-data to list all of them"  # where a message does not hold all
_LISTED_ERRORS = 20  # in the message of one exception
_LISTED_IDS = 5  # of one fault with many places


Severity = Literal["error", "warning", "note"]
Place = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a data set (or, as a note, worth knowing), where it is, and why.

    error: would stop or spoil training. warning: left out of training, or worth a look. note: neither.
    kind: a short name of the cause in lower case, such as "box differs from mask", by which reports group faults; empty
    where it has none. more: (image id, annotation id) of further places with the same cause, where one line stands for
    many; the reason then states their number.
    """

    severity: Severity
    image_id: int | None
    annotation_id: int | None
    reason: str
    kind: str = ""
    more: tuple[Place, ...] = ()

    @property
    def places(self) -> list[Place]:
        """(image id, annotation id) of all places of the fault; None for what does not apply."""
        return [(self.image_id, self.annotation_id), *self.more]

    def __str__(self) -> str:
        if self.more:
            places = _list_places(self.places)
            return f"{self.reason} ({places})" if places else self.reason
        where = [] if self.image_id is None else [f"image {self.image_id}"]
        where += [] if self.annotation_id is None else [f"annotation {self.annotation_id}"]
        return f"{', '.join(where)}: {self.reason}" if where else self.reason


@dataclass(frozen=True)
class FaultReport:
    """All faults of one file, in the order in which they were found. name: what messages call the file.

    places: annotation id -> its place in the source, such as `labels/1.txt:3`, where ids are numbers of our own.
    """

    name: str
    faults: list[Fault] = field(default_factory=list)
    places: dict[int, str] = field(default_factory=dict)

    def add_error(
        self, reason: str, image_id: int | None = None, annotation_id: int | None = None, kind: str = ""
    ) -> None:
        self.faults.append(Fault("error", image_id, annotation_id, self._place(annotation_id) + reason, kind))

    def add_warning(
        self, reason: str, image_id: int | None = None, annotation_id: int | None = None, kind: str = ""
    ) -> None:
        self.faults.append(Fault("warning", image_id, annotation_id, self._place(annotation_id) + reason, kind))

    def add_note(self, reason: str, kind: str = "") -> None:
        self.faults.append(Fault("note", None, None, reason, kind))

    def add_group(self, severity: Severity, kind: str, places: Sequence[Place], reason: str) -> None:
        """Add one line for all places of one cause; nothing where there is none. reason: begins after their ids."""
        if places:
            (image_id, annotation_id), *more = places
            named = [self.places[one] for _, one in places if one in self.places]
            reason += f"; at {', '.join(named[:_LISTED_IDS])}{', …' * (len(named) > _LISTED_IDS)}" if named else ""
            self.faults.append(Fault(severity, image_id, annotation_id, reason, kind, tuple(more)))

    def group_alike(self) -> None:
        """Make one line of all faults with one cause: the same severity, kind and words, but for values and names."""
        groups: dict[object, list[Fault]] = {}
        for number, fault in enumerate(self.faults):
            template = _template(fault)
            key = number if template is None else (fault.severity, fault.kind, template)
            groups.setdefault(key, []).append(fault)
        self.faults[:] = [_merge(group) for group in groups.values()]

    def _place(self, annotation_id: int | None) -> str:
        """The place of an annotation as a message begins with it; empty where ids are the source's own."""
        place = None if annotation_id is None else self.places.get(annotation_id)
        return "" if place is None else f"{place}: "

    def raise_errors(self, advice: str = "") -> None:
        """Raise DatasetError with the first 20 errors and their number, if there are any.

        advice: how to see all of them, shown where the message does not hold all.
        """
        if text := self.list_errors(advice):
            raise DatasetError(text)

    def list_errors(self, advice: str = "") -> str:
        """The errors as `raise_errors` shows them: one on one line, several below a heading; empty for none."""
        errors = [fault for fault in self.faults if fault.severity == "error"]
        if not errors:
            return ""
        if len(errors) == 1:
            return f"{self.name}: {errors[0]}"
        lines = [f"{self.name}: {count_of(len(errors), 'error')}", *(f"  {one}" for one in errors[:_LISTED_ERRORS])]
        if len(errors) > _LISTED_ERRORS:
            lines.append(f"  … and {len(errors) - _LISTED_ERRORS} more" + (f"; {advice}" if advice else ""))
        return "\n".join(lines)


_FILE_NAME = re.compile(r"^.*?\.\w{1,5}: ")
_NUMBER = re.compile(r"-?\d[\d.,]*")


def _template(fault: Fault) -> str | None:
    """The words of a reason without file name, values, and what was got; None for a fault that stays a line."""
    if fault.more or (fault.image_id is None and fault.annotation_id is None and "[" not in fault.reason[:16]):
        return None
    return _NUMBER.sub("#", _FILE_NAME.sub("", fault.reason).partition(", got ")[0].partition("; ")[0])


def _merge(group: Sequence[Fault]) -> Fault:
    """One fault for all of a group."""
    first = group[0]
    if len(group) == 1:
        return first
    of_annotations = first.annotation_id is not None or first.reason.startswith("annotations[")
    kinds = ("entry", "image") if not of_annotations else ("annotation",) * 2
    noun = kinds[first.image_id is not None]
    count = count_of(len(group), noun, "entries" if noun == "entry" else "")
    alike = all(fault.reason == first.reason for fault in group)
    reason = f"{count}: {first.reason}" if alike else f"{count}, for example: {first.reason}"
    more = tuple((fault.image_id, fault.annotation_id) for fault in group[1:])
    return Fault(first.severity, first.image_id, first.annotation_id, reason, first.kind, more)


def _list_places(places: Sequence[Place]) -> str:
    """The first places of a fault, in words: "annotations 3, 4, 5, … of images 1, 2", or "images 1, 2, 3, …"."""
    images = list(dict.fromkeys(image for image, _ in places if image is not None))
    annotations = list(dict.fromkeys(annotation for _, annotation in places if annotation is not None))
    texts = [
        f"{name}{'' if len(ids) == 1 else 's'} {', '.join(map(str, ids[:_LISTED_IDS]))}"
        + ", …" * (len(ids) > _LISTED_IDS)
        for name, ids in (("annotation", annotations), ("image", images))
        if ids
    ]
    return " of ".join(texts)


def count_of(number: int, noun: str, plural: str = "") -> str:
    """The number with its noun, such as "1 error" or "2,000 errors". plural: where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def quote(value: object) -> str:
    """Write a value as JSON has it, at most 80 characters of it, for messages."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:79]}…"


def plain_cell(cell: object) -> object:
    """A cell that a spreadsheet does not take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
