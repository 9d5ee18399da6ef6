"""COCO annotations: read, checked, and kept as compact records with labels 0..K-1.

Nothing wrong is passed over: what would stop or spoil training is an error, what training leaves out (a mask that
covers no pixel) a warning, each with image id, annotation id and reason. `parse_coco` returns all of them at once,
`read_coco` raises the errors.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DatasetError
from .coco_json import load_json
from .layout import Split
from .numbers import number, whole_number
from .segmentation import EmptyMaskError, Segmentation, parse_segmentation, segmentation_area, segmentation_box

_SHOWN_ERRORS = 20  # of read_coco's message; check-data lists them all

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Category:
    """A class of the data set, by the id that its file uses (ids may have gaps; see `Annotation.label`)."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """One instance of an image, checked: its segmentation covers at least one pixel.

    label: position of its category in `CocoData.categories`, 0..K-1; *not* `category_id`, the file's own number.
    segmentation: polygon parts, each (P, 2) float64, or a compressed RLE. iscrowd: a region of many objects, never a
    training target. bbox: (left, top, width, height) and area: square pixels, as the file gives them.
    """

    id: int
    label: int
    category_id: int
    segmentation: Segmentation
    iscrowd: bool
    bbox: Box
    area: float


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image by its id in the file, its path, its size in pixels as the file states it, and its instances."""

    id: int
    file_name: str
    path: Path
    height: int
    width: int
    annotations: list[Annotation]


@dataclass(frozen=True, slots=True)
class CocoData:
    """A split, read: its annotation file, its K categories in the order of their ids, its images in file order."""

    annotations: Path
    categories: tuple[Category, ...]
    images: list[ImageRecord]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a data set (or, as a note, worth knowing), where it is, and why.

    error: would stop or spoil training. warning: left out of training, or worth a look. note: neither.
    """

    severity: Literal["error", "warning", "note"]
    image_id: int | None
    annotation_id: int | None
    reason: str

    def __str__(self) -> str:
        where = [] if self.image_id is None else [f"image {self.image_id}"]
        where += [] if self.annotation_id is None else [f"annotation {self.annotation_id}"]
        return f"{', '.join(where)}: {self.reason}" if where else self.reason


def read_coco(split: Split) -> CocoData:
    """The records of a split. Raises DatasetError with the first 20 errors of its annotation file and their count."""
    data, faults = parse_coco(split)
    errors = [fault for fault in faults if fault.severity == "error"]
    if errors:
        shown = [f"  {error}" for error in errors[:_SHOWN_ERRORS]]
        if len(errors) > len(shown):
            shown.append(f"  … and {len(errors) - len(shown)} more; check-data lists all of them")
        raise DatasetError("\n".join([f"{len(errors)} error(s) in {split.annotations}", *shown]))
    return data


def parse_coco(split: Split) -> tuple[CocoData, list[Fault]]:
    """The records of a split, and everything that is wrong with its annotation file, in file order.

    The records hold only what is sound: an annotation with an error or with an empty mask is in the faults instead.
    Image files are not opened here. Raises DatasetError when the file itself cannot be read as a JSON object.
    """
    faults: list[Fault] = []
    content = load_json(split.annotations)
    sections = {name: _section(content, name, faults) for name in ("images", "annotations", "categories")}
    categories = _categories(sections["categories"], sections["annotations"], faults)
    images = _images(sections["images"], split, faults)
    _add_annotations(sections["annotations"], images, categories, split, faults)
    chosen = [image for image in images.values() if split.image_ids is None or image.id in split.image_ids]
    return CocoData(split.annotations, categories, chosen), faults


def _error(faults: list[Fault], reason: str, image_id: int | None = None, annotation_id: int | None = None) -> None:
    faults.append(Fault("error", image_id, annotation_id, reason))


def _section(content: dict[str, Any], name: str, faults: list[Fault]) -> list[Any]:
    """A top-level list of the file; missing or of another kind, an error and an empty list."""
    value = content.get(name)
    if not isinstance(value, list):
        found = f"got a {type(value).__name__}" if name in content else "it is missing"
        _error(faults, f"{name}: expected a list, {found}")
        return []
    if not value and name != "annotations":
        _error(faults, f"{name}: the list is empty")
    return value


def _categories(entries: list[Any], annotations: list[Any], faults: list[Fault]) -> tuple[Category, ...]:
    """The categories in the order of their ids."""
    found: dict[int, Category] = {}
    for position, entry in enumerate(entries):
        category_id = whole_number(entry.get("id")) if isinstance(entry, dict) else None
        name = str(entry.get("name") or "").strip() if isinstance(entry, dict) else ""
        if category_id is None or not name:
            _error(faults, f"categories[{position}]: expected an id (whole number) and a name, got {entry!r:.80}")
        elif category_id in found:
            _error(faults, f"category id {category_id} is used twice: {found[category_id].name!r} and {name!r}")
        else:
            found[category_id] = Category(category_id, name)
    names = Counter(category.name for category in found.values())
    if any(count > 1 for count in names.values()):
        # Roboflow writes its project as category 0, sometimes under the name of the one real class.
        used = {whole_number(entry.get("category_id")) for entry in annotations if isinstance(entry, dict)}
        for category in list(found.values()):
            if names[category.name] > 1 and category.id not in used:
                names[category.name] -= 1
                del found[category.id]
                reason = f"category {category.id} {category.name!r} has the name of another and no instances: left out"
                faults.append(Fault("note", None, None, reason))
        for name, count in names.items():
            if count > 1:
                _error(faults, f"{count} categories are called {name!r}; rename or merge them")
    return tuple(found[category_id] for category_id in sorted(found))


def _images(entries: list[Any], split: Split, faults: list[Fault]) -> dict[int, ImageRecord]:
    """All sound images of the file by id, without annotations yet."""
    images: dict[int, ImageRecord] = {}
    first_of_file: dict[str, int] = {}
    for position, entry in enumerate(entries):
        image_id = whole_number(entry.get("id")) if isinstance(entry, dict) else None
        if image_id is None:
            _error(faults, f"images[{position}]: expected an object with an id (whole number), got {entry!r:.80}")
            continue
        name = entry.get("file_name")
        height, width = whole_number(entry.get("height")), whole_number(entry.get("width"))
        if image_id in images:
            _error(faults, f"image id used twice: {images[image_id].file_name} and {name}", image_id)
        elif not isinstance(name, str) or not name:
            _error(faults, f"file_name: expected a name, got {name!r:.80}", image_id)
        elif height is None or width is None or height < 1 or width < 1:
            got = f"{entry.get('height')!r:.40} and {entry.get('width')!r:.40}"
            _error(faults, f"{name}: expected height and width in whole pixels, got {got}", image_id)
        else:
            images[image_id] = ImageRecord(image_id, name, _locate(name, split), height, width, [])
            if name in first_of_file:
                reason = f"{name}: the same file as image {first_of_file[name]}; are its instances divided?"
                faults.append(Fault("warning", image_id, None, reason))
            first_of_file.setdefault(name, image_id)
    return images


def _locate(file_name: str, split: Split) -> Path:
    """Where an image lies: its name under the image folder, as an absolute path, under the folder of the annotations or
    the one above the images, or, when a tool wrote a path of its own machine, the bare name under the image folder."""
    name = file_name.replace("\\", "/")
    expected = split.images / name  # an absolute name stays itself
    bare = name.rsplit("/", 1)[-1]
    if os.path.isfile(expected) or bare == "":
        return expected
    for folder, relative in ((split.annotations.parent, name), (split.images.parent, name), (split.images, bare)):
        if os.path.isfile(folder / relative):
            return folder / relative
    return expected


def _add_annotations(
    entries: list[Any],
    images: dict[int, ImageRecord],
    categories: tuple[Category, ...],
    split: Split,
    faults: list[Fault],
) -> None:
    """Put each sound annotation into the record of its image."""
    labels = {category.id: label for label, category in enumerate(categories)}
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            _error(faults, f"annotations[{position}]: expected an object, got {entry!r:.80}")
            continue
        image_id = whole_number(entry.get("image_id"))
        if split.image_ids is not None and image_id in images and image_id not in split.image_ids:
            continue  # the other part of a divided file reports it
        annotation_id = whole_number(entry.get("id"))
        if annotation_id is None:
            reason = f"annotations[{position}]: expected an id (whole number), got {entry.get('id')!r:.80}"
            _error(faults, reason, image_id)
            continue
        if annotation_id in seen:
            _error(faults, "annotation id used twice", image_id, annotation_id)
            continue
        seen.add(annotation_id)
        image = None if image_id is None else images.get(image_id)
        if image is None:
            _error(faults, f"image_id {entry.get('image_id')!r:.80} is not among the images", None, annotation_id)
            continue
        category_id = whole_number(entry.get("category_id"))
        label = None if category_id is None else labels.get(category_id)
        if category_id is None or label is None:
            reason = f"category_id {entry.get('category_id')!r:.80} is not among the categories"
            _error(faults, reason, image.id, annotation_id)
            continue
        try:
            image.annotations.append(_annotation(entry, annotation_id, label, category_id, image))
        except EmptyMaskError as reason:
            faults.append(Fault("warning", image.id, annotation_id, f"{reason}; left out of training"))
        except ValueError as reason:
            _error(faults, str(reason), image.id, annotation_id)


def _annotation(
    entry: dict[str, Any], annotation_id: int, label: int, category_id: int, image: ImageRecord
) -> Annotation:
    """One annotation, its ids already checked. Raises EmptyMaskError or ValueError with the reason."""
    iscrowd = number(entry.get("iscrowd") or 0)
    if iscrowd not in (0, 1):
        raise ValueError(f"iscrowd: expected 0 or 1, got {entry['iscrowd']!r:.40}")
    area = number(entry["area"]) if entry.get("area") is not None else None
    if entry.get("area") is not None and (area is None or not math.isfinite(area) or area < 0):
        raise ValueError(f"area: expected a number of square pixels, got {entry['area']!r:.40}")
    box = _box(entry.get("bbox"))
    segmentation = parse_segmentation(entry.get("segmentation"), image.height, image.width)
    return Annotation(
        id=annotation_id,
        label=label,
        category_id=category_id,
        segmentation=segmentation,
        iscrowd=bool(iscrowd),
        bbox=segmentation_box(segmentation) if box is None else box,
        area=segmentation_area(segmentation) if area is None else area,
    )


def _box(value: object) -> Box | None:
    """(left, top, width, height) of an annotation; None when it has none and the segmentation's own is to be used."""
    if value is None or value == []:
        return None
    sides = [number(side) for side in value] if isinstance(value, list) else []
    if len(sides) != 4 or not all(side is not None and math.isfinite(side) for side in sides):
        raise ValueError(f"bbox: expected [left, top, width, height], got {value!r:.80}")
    left, top, width, height = (float(side or 0) for side in sides)
    return left, top, width, height
