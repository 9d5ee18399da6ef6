"""Read a split's COCO annotations into compact records with labels 0..K-1.

Every fault is reported, with image id, annotation id and reason: what would stop or spoil training is an error, what
training leaves out (a mask that covers no pixel) a warning. `parse_coco` returns all faults, `read_coco` raises the
errors.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DatasetError, mismatch
from .coco_json import AnnotationEntry, Box, list_entries, parse_annotations, parse_entries, parse_size
from .faults import ADVICE, Fault, FaultReport, quote
from .formats.format_table import read_content
from .layout import Split
from .numbers import whole_number
from .segmentation import (
    EmptyMaskError,
    NoMaskError,
    Segmentation,
    parse_segmentation,
    segmentation_area,
    segmentation_box,
)


@dataclass(frozen=True, slots=True)
class Category:
    """A class of the data set, by the id that its file uses (ids may have gaps; see `Annotation.label`)."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """One instance of an image; its segmentation is checked and covers at least one pixel.

    label: position of its category in `CocoData.categories`, 0..K-1; *not* `category_id`, the file's own number.
    segmentation: polygon parts, each (P, 2) float64, or a compressed RLE. iscrowd: a region of many objects, never a
    training target. bbox (left, top, width, height) in pixels and area in square pixels: the file's own, else those of
    the mask.
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
    """An image: its id in the file, its path, its size in pixels as the file states it, and its instances."""

    id: int
    file_name: str
    path: Path
    height: int
    width: int
    annotations: list[Annotation]


@dataclass(frozen=True, slots=True)
class CocoData:
    """The records of a split: its annotation file, K categories in the order of their ids, images in file order.

    source: the split that was read, from which evaluation reads what it scores against.
    """

    annotations: Path
    categories: tuple[Category, ...]
    images: list[ImageRecord]
    source: Split | None = None


def read_coco(split: Split) -> CocoData:
    """The records of a split. Raises DatasetError with the first 20 errors of its annotation file and their count."""
    data, report = _parse(split)
    report.raise_errors(ADVICE)
    return data


def parse_coco(split: Split) -> tuple[CocoData, list[Fault]]:
    """The records of a split, and all faults of its annotation file.

    The records hold only what is sound: an annotation with an error or with an empty mask is in the faults instead.
    Image files are not opened here. Raises DatasetError if the file itself cannot be read as a JSON object.
    """
    data, report = _parse(split)
    return data, report.faults


def _parse(split: Split) -> tuple[CocoData, FaultReport]:
    faults = FaultReport(str(split.annotations))
    content = read_content(split, faults)
    sections = {name: list_entries(content, name, faults) for name in ("images", "annotations", "categories")}
    for name in ("images", "categories"):
        if content.get(name) == []:
            faults.add_error(f"{name}: {mismatch('at least one entry', 'an empty list')}")
    categories = _parse_categories(sections["categories"], sections["annotations"], faults)
    images = _parse_images(sections["images"], split, faults)
    labels = {category.id: label for label, category in enumerate(categories)}
    for entry in parse_annotations(sections["annotations"], images, labels, split.image_ids, faults):
        image = images[entry.image_id]
        try:
            image.annotations.append(_complete_annotation(entry, labels[entry.category_id], image))
        except NoMaskError:
            reason = "no segmentation (a box alone trains no mask); left out of training"
            faults.add_warning(reason, image.id, entry.id)
        except EmptyMaskError as error:
            faults.add_warning(f"{error}; left out of training", image.id, entry.id)
        except DatasetError as error:
            faults.add_error(str(error), image.id, entry.id)
    chosen = [image for image in images.values() if split.image_ids is None or image.id in split.image_ids]
    return CocoData(split.annotations, categories, chosen, replace(split, reading=None)), faults


def _parse_categories(
    entries: Sequence[object], annotations: Sequence[object], faults: FaultReport
) -> tuple[Category, ...]:
    """The categories in the order of their ids."""
    found: dict[int, Category] = {}
    for category_id, entry in parse_entries(entries, "categories", faults):
        name = str(entry.get("name") or "").strip()
        if name:
            found[category_id] = Category(category_id, name)
        else:
            faults.add_error(f"category {category_id}: {mismatch('a name', quote(entry.get('name')))}")
    names = Counter(category.name for category in found.values())
    if any(count > 1 for count in names.values()):
        # Roboflow writes its project as category 0, sometimes under the name of the one real class.
        used = {whole_number(entry.get("category_id")) for entry in annotations if isinstance(entry, Mapping)}
        for category in list(found.values()):
            if names[category.name] > 1 and category.id not in used:
                names[category.name] -= 1
                del found[category.id]
                name = quote(category.name)
                faults.add_note(f"category {category.id} {name}: left out, a name of two categories and no instances")
        for name, count in names.items():
            if count > 1:
                got = f"{count} called {quote(name)}"
                faults.add_error(f"categories: {mismatch('a name of its own for each', got, 'rename or merge them')}")
    return tuple(found[category_id] for category_id in sorted(found))


def _parse_images(entries: Sequence[object], split: Split, faults: FaultReport) -> dict[int, ImageRecord]:
    """All sound images of the file by id, without annotations yet."""
    images: dict[int, ImageRecord] = {}
    first_of_file: dict[str, int] = {}
    for image_id, entry in parse_entries(entries, "images", faults):
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            faults.add_error(f"file_name: {mismatch('the name of a file', quote(name))}", image_id)
            continue
        try:
            size = parse_size(entry)
        except DatasetError as error:
            faults.add_error(f"{name}: {error}", image_id)
            continue
        images[image_id] = ImageRecord(image_id, name, _locate(name, split), *size, [])
        if name in first_of_file:
            other = first_of_file[name]
            faults.add_warning(
                f"{name}: the same file as image {other}; check whether its instances are split", image_id
            )
        first_of_file.setdefault(name, image_id)
    return images


def _locate(file_name: str, split: Split) -> Path:
    """The path of an image: its name under the image folder, as an absolute path, under the folder of the annotations
    or the one above the images; or, where a tool wrote a path of its own machine, the bare name in the image folder."""
    name = file_name.replace("\\", "/")
    expected = split.images / name  # an absolute name stays as it is
    bare = name.rsplit("/", 1)[-1]
    if os.path.isfile(expected) or bare == "":
        return expected
    for folder, relative in ((split.annotations.parent, name), (split.images.parent, name), (split.images, bare)):
        if os.path.isfile(folder / relative):
            return folder / relative
    return expected


def _complete_annotation(entry: AnnotationEntry, label: int, image: ImageRecord) -> Annotation:
    """Parse the mask; area and box follow from it where the file has none. Raises EmptyMaskError or DatasetError."""
    segmentation = parse_segmentation(entry.segmentation, image.height, image.width)
    return Annotation(
        id=entry.id,
        label=label,
        category_id=entry.category_id,
        segmentation=segmentation,
        iscrowd=entry.iscrowd,
        bbox=segmentation_box(segmentation) if entry.box is None else entry.box,
        area=segmentation_area(segmentation) if entry.area is None else entry.area,
    )
