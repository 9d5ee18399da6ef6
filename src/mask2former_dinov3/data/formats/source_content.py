"""What every reader of a format gives: COCO-shaped content, and the place in the source of each of its entries.

`ContentBuilder` numbers images and annotations in the order in which they are added, from 1, and collects faults by
their cause: one cause is one line, however many files have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import DatasetError, mismatch, suggest
from ..faults import Fault, FaultReport, Severity, count_of, quote
from ..images import check_image_size, read_header

_SHOWN = 3  # places of one cause that get a line of their own
_NAMED = 5  # places that a line for many names


_DETAIL = re.compile(r'"[^"]*"|[-+.\d]+')


class Part(NamedTuple):
    """Where one split of a source lies.

    annotations: the file or folder that states the masks. images: the folder under which file names are looked up.
    subset: the part of the source, where a file holds several (a key of data.yaml, a split of a data set).
    """

    annotations: Path
    images: Path
    subset: str = ""


Reader = Callable[[Part, FaultReport], Mapping[str, object]]
"""Reads one split: a mapping with images, annotations and categories, as a COCO file has them.

Faults go to the report, with the place of every annotation (`FaultReport.places`). Raises DatasetError where nothing
of the source can be read.
"""


class Reading(NamedTuple):
    """What a reader has given for a split: its content, its faults, the place of each annotation by id."""

    content: Mapping[str, object]
    faults: tuple[Fault, ...]
    places: Mapping[int, str]


class Format(NamedTuple):
    """A format: its name, the files by which it is recognised, its finder (folder -> split -> `Part`) and reader.

    other_images: whether the images may lie in another folder than the finder says, which the user names.
    """

    name: str
    files: str
    find: Callable[[Path], dict[str, Part]]
    read: Reader
    other_images: bool = False


@dataclass
class ContentBuilder:
    """Collects the entries of one split. names: class names; ids follow their order, from `first_id`, unless given."""

    report: FaultReport
    first_id: int = 1
    images: list[dict[str, object]] = field(default_factory=list)
    annotations: list[dict[str, object]] = field(default_factory=list)
    categories: dict[str, int] = field(default_factory=dict)
    _causes: dict[tuple[Severity, str], list[tuple[str, str]]] = field(default_factory=dict)

    def category(self, name: str) -> int:
        """The id of a class, which is added where it is new."""
        return self.categories.setdefault(name, self.first_id + len(self.categories))

    def known_category(self, name: str, place: str) -> int | None:
        """The id of a class; a fault at `place`, and None, where the source does not define it."""
        if name not in self.categories:
            advice = suggest(name, self.categories, "")
            reason = mismatch(f"one of the classes {quote(sorted(self.categories))}", quote(name), advice)
            self.add("error", "unknown class", place, f"class: {reason}")
            return None
        return self.categories[name]

    def add_image(self, file_name: str, height: int, width: int) -> int:
        """The id of a new image."""
        entry = {"id": len(self.images) + 1, "file_name": file_name, "height": height, "width": width}
        self.images.append(entry)
        return len(self.images)

    def add_sized_image(self, path: Path, root: Path, stated: tuple[int, int], place: str) -> int | None:
        """The id of a new image that the source states as (height, width); a fault, and None, if its file differs."""
        name = relative_name(path, root)
        try:
            header = read_header(path)
        except DatasetError as error:
            self.add("error", "unreadable image", place, f"{name}: {str(error).removeprefix(f'{path}: ')}")
            return None
        try:
            check_image_size(name, stated, (header.height, header.width), header.orientation)
        except DatasetError as error:
            self.add("error", "image of another size", place, str(error))
            return None
        return self.add_image(name, *stated)

    def add_image_file(self, path: Path, root: Path) -> tuple[int, int, int] | None:
        """(id, height, width) of a new image whose size its file states; a fault, and None, where it is unreadable."""
        try:
            header = read_header(path)
        except DatasetError as error:
            self.add("error", "unreadable image", relative_name(path, root), str(error).removeprefix(f"{path}: "))
            return None
        return self.add_image(relative_name(path, root), header.height, header.width), header.height, header.width

    def add_annotation(self, image_id: int, category_id: int, place: str, **rest: object) -> None:
        """Add an annotation; rest: segmentation, bbox, iscrowd and others. place: where it stands in the source."""
        number = len(self.annotations) + 1
        self.annotations.append({"id": number, "image_id": image_id, "category_id": category_id, **rest})
        self.report.places[number] = place

    def add(self, severity: Severity, kind: str, place: str, reason: str) -> None:
        """Add a fault at a place, such as `labels/1.txt:3`; those of one kind are reported together."""
        self._causes.setdefault((severity, kind), []).append((place, reason))

    @property
    def has_errors(self) -> bool:
        """Whether an error was added since the last `content`."""
        return any(severity == "error" for severity, _ in self._causes)

    def content(self) -> dict[str, object]:
        """The content; all faults are now in the report."""
        for (severity, kind), found in self._causes.items():
            causes: dict[str, list[tuple[str, str]]] = {}  # reason without its numbers and names -> places
            for place, reason in found:
                causes.setdefault(_DETAIL.sub("", reason), []).append((place, reason))
            for same in causes.values():
                self._report(severity, kind, same)
        self._causes.clear()
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": number, "name": name} for name, number in self.categories.items()],
        }

    def _report(self, severity: Severity, kind: str, found: Sequence[tuple[str, str]]) -> None:
        """One line a place for a few, otherwise one line for all."""
        texts = [f"{place}: {reason}" if place else reason for place, reason in found]
        if len(found) > _SHOWN:
            places = ", ".join(place or reason for place, reason in found[1:_NAMED])
            more = ", …" * (len(found) > _NAMED)
            texts = [f"{kind}, {count_of(len(found), 'place')}: {texts[0]} (and {places}{more})"]
        for text in texts:
            if severity == "error":
                self.report.add_error(text, kind=kind)
            elif severity == "warning":
                self.report.add_warning(text, kind=kind)
            else:
                self.report.add_note(text, kind=kind)


def relative_name(path: Path, root: Path) -> str:
    """The name of a file under `root`, with slashes; the whole path where it lies elsewhere."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return str(path)


def polygon_fault(points: npt.NDArray[np.float64], height: int, width: int) -> str:
    """What is wrong with the vertices (P, 2) of a polygon in pixels; empty where nothing is.

    Vertices may lie up to half the image's size outside of it: tools let people draw over the edge.
    """
    if len(points) < 3:
        return mismatch("at least 3 points", len(points))
    if not np.isfinite(points).all():
        return mismatch("finite coordinates", "NaN or infinity")
    size = np.array([width, height])
    if (points < -size / 2).any() or (points > 1.5 * size).any():
        low, high = points.min(0), points.max(0)
        got = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
        return mismatch(f"coordinates in an image of {width} x {height} pixels (width x height)", got)
    return ""


def flat(points: npt.NDArray[np.float64]) -> list[float]:
    """Vertices (P, 2) as COCO writes them, x, y, x, y, …"""
    numbers: list[float] = points.ravel().tolist()
    return numbers
