"""Read a COCO annotation file and parse its entries: the one parser for training, `check-data` and evaluation.

Segmentations are parsed in `segmentation.py`; the forms of numbers that are accepted stand in `numbers.py`.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from ..canvas import LARGEST_IMAGE_SIDE
from ..errors import DatasetError, mismatch
from ..json_files import describe, is_number, read_json_object
from .faults import FaultReport, quote
from .json_stream import NotStreamableError, is_large, stream_lists, without_collector
from .numbers import identifier, number, whole_number
from .read_rules import CrowdCount, CrowdRule

Box = tuple[float, float, float, float]
"""(left, top, width, height) in pixels, COCO's `bbox`."""

ENTRY_FAULTS = frozenset({"section", "no id", "repeated id", "file name"})  # after which an image is not known
SECTIONS = ("categories", "images", "annotations")
_SHOWN = 4  # changed names in a note


class ImageEntry(NamedTuple):
    """An image of the file: its name, and its size in pixels."""

    file_name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class BrokenIds:
    """Ids of images and categories whose entries are faulty; of an id that is no number, its text in JSON."""

    images: set[object] = field(default_factory=set)
    categories: set[object] = field(default_factory=set)


class AnnotationEntry(NamedTuple):
    """An annotation whose ids, crowd flag, area and box are parsed. segmentation: as the file has it, not parsed.

    area, box: None if the file has none; they then follow from the mask.
    """

    id: int
    image_id: int
    category_id: int
    iscrowd: bool
    area: float | None
    box: Box | None
    segmentation: object


def read_coco_json(path: Path) -> Mapping[str, object]:
    """The object in a COCO annotation file. Raises DatasetError if the file cannot be read as one."""
    return read_json_object(
        path, "COCO annotations (a JSON object with images, annotations and categories)", raises=DatasetError
    )


def list_image_entries(path: Path) -> list[object]:
    """The entries under "images" of a COCO annotation file; none without a list of them. Raises DatasetError."""
    if is_large(path):
        with suppress(NotStreamableError), without_collector():
            groups = groupby(stream_lists(path, SECTIONS), key=itemgetter(0))
            return next(([one for _, piece in group for one in piece] for key, group in groups if key == "images"), [])
    images = read_coco_json(path).get("images")
    return images if isinstance(images, list) else []


def list_sections(content: Mapping[str, object], faults: FaultReport) -> dict[str, Sequence[object]]:
    """The lists under COCO's three keys; one that is missing, no list, or wrongly empty is an error in `faults`."""
    sections: dict[str, Sequence[object]] = {name: [] for name in SECTIONS}
    if not sections.keys() & content.keys():
        got = quote(list(content)) if content else "an object without keys"
        expected = mismatch("the keys images, annotations and categories", got)
        faults.add_error(expected, kind="section")
        return sections
    for name in SECTIONS:
        value = content.get(name)
        is_list = isinstance(value, list | tuple)
        if not is_list:
            got = describe(value) if name in content else "nothing"
            faults.add_error(f"{name}: {mismatch('a list', got)}", kind="section")
        elif not value and name != "annotations":
            faults.add_error(f"{name}: {mismatch('at least one entry', 'an empty list')}", kind="section")
        sections[name] = value if isinstance(value, list | tuple) else []
    return sections


def parse_entries(
    entries: Iterable[object], section: str, faults: FaultReport, broken: set[object]
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(id, entry) of every image or category. An entry without an id, or with the id of another, is an error.

    broken: takes the values under `id` that are no ids, so that what refers to them is not a further fault.
    """
    names: dict[int, object] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or (entry_id := identifier(entry.get("id"))) is None:
            got = quote(entry)
            if isinstance(entry, Mapping) and entry.get("id") is not None:
                broken.add(quote(entry["id"]))
                got = f"the id {_quote_ascii(entry['id'])}"
            expected = mismatch(f"an object with {_an_id(entry)}", got)
            faults.add_error(f"{section}[{position}]: {expected}", kind="no id")
            continue
        name = entry.get("file_name", entry.get("name"))
        if entry_id in names:
            both = f"id {entry_id} for {quote(names[entry_id])} and {quote(name)}"
            own = entry_id if section == "images" else None
            reason = mismatch("an id of its own", both)
            faults.add_error(f"{section}[{position}]: {reason}", own, kind="repeated id")
            continue
        names[entry_id] = name
        yield entry_id, entry


def parse_images(
    entries: Iterable[object], faults: FaultReport, broken: BrokenIds, *, named: bool = True
) -> dict[int, ImageEntry]:
    """All images of the file by id; one without a usable size has the size (0, 0), and is among the broken ids.

    named: every image needs a file name; of content in memory, whose images nobody opens, none does.
    """
    images: dict[int, ImageEntry] = {}
    for image_id, entry in parse_entries(entries, "images", faults, broken.images):
        name = entry.get("file_name", None if named else "")
        if not isinstance(name, str) or (named and not name):
            reason = f"file_name: {mismatch('the name of a file', quote(name))}"
            faults.add_error(reason, image_id, kind="file name")
            broken.images.add(image_id)
            continue
        try:
            images[image_id] = ImageEntry(name, *parse_size(entry))
        except DatasetError as error:
            faults.add_error(f"{name}: {error}", image_id, kind="image size")
            broken.images.add(image_id)
            images[image_id] = ImageEntry(name, 0, 0)
    return images


def parse_categories(entries: Iterable[object], faults: FaultReport, broken: BrokenIds) -> dict[int, str]:
    """Names of the categories in the order of their ids; id -> name. Broken ids are added to `broken`.

    A name that is a number is its text, such as "0"; spaces around it go, and Unicode is composed (form NFC).
    """
    found: dict[int, str] = {}
    changed: list[str] = []
    for category_id, entry in parse_entries(entries, "categories", faults, broken.categories):
        name = class_name(entry.get("name"))
        if name is None:
            reason = f"category {category_id}: {mismatch('a name', _quote_ascii(entry.get('name')))}"
            faults.add_error(reason, kind="category name")
            broken.categories.add(category_id)
            continue
        found[category_id] = name
        if name != entry["name"]:
            changed.append(f"{_quote_ascii(entry['name'])} as {_quote_ascii(name)}")
    if changed:
        shown = ", ".join(changed[:_SHOWN]) + ", …" * (len(changed) > _SHOWN)
        count = f"{len(changed)} of {len(found)} category names"
        faults.add_note(f"{count} read as text, without spaces around it, in one Unicode form: {shown}", "class name")
    return {category_id: found[category_id] for category_id in sorted(found)}


def class_name(value: object) -> str | None:
    """The name of a class as text in Unicode's form NFC, without spaces around it; None if it is no name."""
    if isinstance(value, str):
        is_text = not any("\ud800" <= letter <= "\udfff" for letter in value)  # halves of pairs cannot be saved
        return (unicodedata.normalize("NFC", value.strip()) or None) if is_text else None
    return quote(value) if is_number(value) and math.isfinite(value) else None


def _an_id(entry: object) -> str:
    """What is expected under `id`; the limit is named where it is the reason."""
    too_large = isinstance(entry, Mapping) and whole_number(entry.get("id")) is not None
    return f"an id (a whole number{' below 2^63' * too_large})"


def _quote_ascii(value: object) -> str:
    """A value as JSON in ASCII, shortened: two Unicode forms of a name look the same, and wide digits like others."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else f"{text[:79]}…"


class _EntryFault(Exception):
    """An annotation is faulty. Its arguments are those of `FaultReport.add_error`."""


class AnnotationParser:
    """Parses the annotations of one file, which may come in pieces; every fault goes to a report.

    seen: ids of the annotations so far. crowds: counts their crowd regions.
    """

    def __init__(
        self,
        images: Container[int],
        categories: Container[int | None] | None,
        chosen: Container[int] | None,
        faults: FaultReport,
        broken: BrokenIds | None = None,
        crowd: CrowdRule = "ignore",
    ) -> None:
        """images, categories: the ids that the file defines; categories None: they are not known yet.

        chosen: images whose annotations are wanted (None: of all); faults in annotations of others are not reported:
        whoever reads the other images reports them. broken: ids whose own fault is reported; annotations that refer to
        them are passed over. crowd: what crowd flags mean, see `ReadRules`.
        """
        self.seen: set[int] = set()
        self.crowds = CrowdCount(crowd)
        self._images, self._categories, self._chosen = images, categories, chosen
        self._faults = faults
        self._broken = BrokenIds() if broken is None else broken

    def parse(self, entries: Iterable[tuple[int, object]]) -> Iterator[tuple[int, AnnotationEntry]]:
        """(place, annotation) of the wanted images. entries: places in the file and entries, in the file's order."""
        for position, entry in entries:
            try:
                parsed = self._parse_one(position, entry)
            except _EntryFault as fault:
                self._faults.add_error(*fault.args)
            else:
                if parsed is not None:
                    yield position, parsed

    def _parse_one(self, position: int, entry: object) -> AnnotationEntry | None:
        """An annotation; None where it is not wanted. Raises _EntryFault."""
        broken, where = self._broken, f"annotations[{position}]"
        if not isinstance(entry, Mapping):
            raise _EntryFault(f"{where}: {mismatch('an object', quote(entry))}", None, None, "no object")
        image_id = identifier(entry.get("image_id"))
        if self._chosen is not None and image_id in self._images and image_id not in self._chosen:
            return None
        annotation_id = identifier(entry.get("id"))
        if annotation_id is None:
            expected = mismatch(_an_id(entry), _quote_ascii(entry.get("id")))
            raise _EntryFault(f"{where}: {expected}", image_id, None, "no id")
        if annotation_id in self.seen:
            reason = mismatch("an id of its own", "that of another annotation")
            raise _EntryFault(f"{where}: {reason}", image_id, annotation_id, "repeated id")
        self.seen.add(annotation_id)
        if broken.images and _is_broken(image_id, entry.get("image_id"), broken.images):
            return None
        if image_id is None or image_id not in self._images:
            reason = mismatch("the id of one of the images", _quote_ascii(entry.get("image_id")))
            raise _EntryFault(f"image_id: {reason}", None, annotation_id, "unknown image")
        category_id = identifier(entry.get("category_id"))
        if broken.categories and _is_broken(category_id, entry.get("category_id"), broken.categories):
            return None
        if category_id is None or (self._categories is not None and category_id not in self._categories):
            raise _EntryFault(*unknown_category(entry.get("category_id"), image_id, annotation_id))
        try:
            flag = parse_iscrowd(entry)
        except DatasetError as error:
            raise _EntryFault(str(error), image_id, annotation_id, "crowd flag") from None
        flag = self.crowds.count(flag, image_id, category_id, annotation_id)
        area, box = _measures(entry, image_id, annotation_id, self._faults)
        return AnnotationEntry(annotation_id, image_id, category_id, flag, area, box, entry.get("segmentation"))


def parse_annotations(
    entries: Iterable[object],
    images: Mapping[int, object],
    categories: Mapping[int, object],
    chosen: Container[int] | None,
    faults: FaultReport,
    broken: BrokenIds | None = None,
    crowd: CrowdRule = "ignore",
) -> Iterator[AnnotationEntry]:
    """The annotations of the chosen images (None: of all), in file order; see `AnnotationParser`."""
    if images and categories:  # otherwise the reason is reported, and would be repeated for every annotation
        parser = AnnotationParser(images, categories, chosen, faults, broken, crowd)
        for _, entry in parser.parse(enumerate(entries)):
            yield entry
        parser.crowds.report(faults)


def unknown_category(category_id: object, image_id: int | None, annotation_id: int) -> tuple[str, int | None, int, str]:
    """The arguments of `add_error` for an annotation whose category the file does not define."""
    reason = mismatch("the id of one of the categories", _quote_ascii(category_id))
    return f"category_id: {reason}", image_id, annotation_id, "unknown category"


def _is_broken(parsed: int | None, value: object, broken: Container[object]) -> bool:
    return (quote(value) if parsed is None else parsed) in broken


def _measures(
    entry: Mapping[str, object], image_id: int, annotation_id: int, faults: FaultReport
) -> tuple[float | None, Box | None]:
    """Area and box of an annotation; where one is malformed, that of the mask counts, with a warning."""
    area = box = None
    try:
        area = parse_area(entry)
    except DatasetError as error:
        faults.add_warning(f"{error}; that of the mask is used", image_id, annotation_id, kind="malformed area")
    try:
        box = parse_box(entry)
    except DatasetError as error:
        faults.add_warning(f"{error}; that of the mask is used", image_id, annotation_id, kind="malformed box")
    return area, box


def parse_size(entry: Mapping[str, object]) -> tuple[int, int]:
    """(height, width) of an image in pixels. Raises DatasetError, also for sizes that no image has."""
    stated = entry.get("height"), entry.get("width")
    if all(type(side) is int and 0 < side <= LARGEST_IMAGE_SIDE for side in stated):  # the usual case, fast
        return cast(tuple[int, int], stated)
    sides = number(stated[0]), number(stated[1])
    if None not in sides and max(side or 0 for side in sides) > LARGEST_IMAGE_SIDE:
        expected, got = f"at most {LARGEST_IMAGE_SIDE:,} pixels", " and ".join(f"{side:.15g}" for side in sides)
        raise DatasetError(f"height and width: {mismatch(expected, got)}")
    height, width = identifier(stated[0]), identifier(stated[1])
    if height is None or width is None or min(height, width) < 1:
        got = f"{quote(stated[0])} and {quote(stated[1])}"
        raise DatasetError(f"height and width: {mismatch('whole numbers of pixels above 0', got)}")
    return height, width


def parse_iscrowd(entry: Mapping[str, object]) -> bool:
    """Whether an annotation is a crowd region; null or missing: it is not. Raises DatasetError."""
    value = entry.get("iscrowd")
    if isinstance(value, str):
        value = {"": None, "true": True, "false": False}.get(value.lower(), value)
    flag = 0.0 if value is None else float(value) if isinstance(value, bool) else number(value)
    if flag not in (0, 1):
        raise DatasetError(f"iscrowd: {mismatch('0 or 1', quote(value))}")
    return bool(flag)


def parse_area(entry: Mapping[str, object]) -> float | None:
    """The `area` of an annotation in square pixels; None where it is null or missing. Raises DatasetError."""
    value = entry.get("area")
    if value is None or value == "":
        return None
    area = number(value)
    if area is None or not 0 <= area < math.inf:
        raise DatasetError(f"area: {mismatch('a number of square pixels, 0 or more', quote(value))}")
    return area


def parse_box(entry: Mapping[str, object]) -> Box | None:
    """The `bbox` of an annotation or result; None where it is missing, null, empty, or holds nulls only.

    Raises DatasetError for anything else that is not four finite numbers.
    """
    value = entry.get("bbox")
    if value is None or (isinstance(value, str) and not value):
        return None
    if isinstance(value, list | tuple | np.ndarray):
        if all(side is None for side in value):
            return None
        sides = [side for side in map(number, value) if side is not None and math.isfinite(side)]
        if len(value) == len(sides) == 4:
            return sides[0], sides[1], sides[2], sides[3]
    raise DatasetError(f"bbox: {mismatch('[left, top, width, height] in pixels', quote(value))}")
