"""Read a split's COCO annotations into compact records with labels 0..K-1.

Every fault is reported, with image id, annotation id and reason: what would stop or spoil training is an error, what
training leaves out (a mask that covers no pixel) a warning. `parse_coco` returns all faults, `read_coco` raises the
errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DatasetError
from .coco_json import (
    AnnotationEntry,
    Box,
    BrokenIds,
    list_sections,
    parse_annotations,
    parse_categories,
    parse_images,
    read_content,
)
from .faults import ADVICE, Fault, FaultReport
from .layout import Split
from .locate import locate_images
from .read_rules import IncompleteRule, ReadRules, note_dropped
from .segmentation import (
    MALFORMED_MASK,
    EmptyMaskError,
    NoMaskError,
    Segmentation,
    StrayParts,
    parse_segmentation,
    polygons_to_runs,
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

    elsewhere: files of images of the file that are not in `images`: with a faulty entry, or left out by `rules`. rules:
    how the annotations were read; evaluation reads them in the same way.
    """

    annotations: Path
    categories: tuple[Category, ...]
    images: list[ImageRecord]
    elsewhere: tuple[Path, ...] = ()
    rules: ReadRules = field(default_factory=ReadRules)


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
    content, _ = read_content(split.annotations)
    faults = FaultReport(str(split.annotations))
    broken = BrokenIds()
    sections = list_sections(content, faults)
    names = parse_categories(sections["categories"], sections["annotations"], faults, broken)
    categories = tuple(Category(*pair) for pair in names.items())
    images, elsewhere = _parse_images(sections["images"], split, faults, broken)
    labels = {category.id: label for label, category in enumerate(categories)}
    masks, strays = MaskFaults(faults, split.rules.incomplete_images), StrayParts()
    entries = parse_annotations(
        sections["annotations"], images, labels, split.image_ids, faults, broken, split.rules.crowd
    )
    for entry in entries:
        image = images[entry.image_id]
        try:
            annotation = _complete_annotation(entry, labels[entry.category_id], image)
        except DatasetError as error:
            masks.add(error, entry)
        else:
            image.annotations.append(annotation)
            strays.count(annotation.segmentation, entry.segmentation, (image.id, entry.id))
    strays.report(faults)
    chosen = [image for image in images.values() if split.image_ids is None or image.id in split.image_ids]
    if split.rules.incomplete_images == "drop":
        incomplete = [image for image in chosen if image.id in masks.incomplete]
        note_dropped([image.id for image in incomplete], faults)
        chosen = [image for image in chosen if image.id not in masks.incomplete]
        elsewhere += [image.path for image in incomplete]
    faults.group_alike()
    return CocoData(split.annotations, categories, chosen, tuple(elsewhere), split.rules), faults


def _parse_images(
    entries: Sequence[object], split: Split, faults: FaultReport, broken: BrokenIds
) -> tuple[dict[int, ImageRecord], list[Path]]:
    """All sound images of the file by id, without annotations yet, and the paths of the others that have one."""
    found = parse_images(entries, faults, broken)
    names = {image_id: image.file_name for image_id, image in found.items()}
    paths, refused = locate_images(names, split, faults)
    broken.images.update(refused)
    images: dict[int, ImageRecord] = {}
    others: list[Path] = []
    for image_id, path in paths.items():
        name, height, width = found[image_id]
        if image_id in broken.images:
            others.append(path)
        else:
            images[image_id] = ImageRecord(image_id, name, path, height, width, [])
    return images, others


class MaskFaults:
    """Collects what is wrong with masks while a file is read. incomplete: ids of images with an object left out."""

    def __init__(self, faults: FaultReport, rule: IncompleteRule) -> None:
        self.incomplete: set[int] = set()
        self._faults = faults
        self._left_out = _LEFT_OUT[rule]

    def add(self, error: DatasetError, entry: AnnotationEntry) -> None:
        """Add an error for a malformed mask, a warning for an annotation without one or without a pixel."""
        if isinstance(error, EmptyMaskError):
            self.incomplete.add(entry.image_id)
            missing = isinstance(error, NoMaskError)
            reason = "no segmentation (a box alone trains no mask)" if missing else str(error)
            kind = "no mask" if missing else "empty mask"
            self._faults.add_warning(f"{reason}; {self._left_out}", entry.image_id, entry.id, kind)
        else:
            self._faults.add_error(str(error), entry.image_id, entry.id, MALFORMED_MASK)


_LEFT_OUT: dict[IncompleteRule, str] = {
    "keep": "left out of training, where the object is background; incomplete_images drop leaves its image out",
    "drop": "left out of training with its image",
}


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
        area=_mask_area(segmentation, image) if entry.area is None else entry.area,
    )


def _mask_area(segmentation: Segmentation, image: ImageRecord) -> float:
    """Square pixels of a mask; of an outline whose halves cancel, as in an hourglass, the pixels that it covers."""
    area = segmentation_area(segmentation)
    if area == 0 and isinstance(segmentation, list):
        return float(polygons_to_runs(segmentation, image.height, image.width)[1::2].sum())
    return area
