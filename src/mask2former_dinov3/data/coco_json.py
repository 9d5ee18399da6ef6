"""Read a COCO annotation file and parse its entries: the one parser for training, `check-data` and evaluation.

Segmentations are parsed in `segmentation.py`; the forms of numbers that are accepted stand in `numbers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DatasetError, mismatch
from ..json_files import describe, read_json_object
from .faults import FaultReport, quote
from .json_stream import NotStreamableError, is_large, stream_lists
from .numbers import number, whole_number

SECTIONS = ("images", "categories", "annotations")

Box = tuple[float, float, float, float]
"""(left, top, width, height) in pixels, COCO's `bbox`."""


LARGEST_IMAGE_SIDE = 1_000_000  # pixels: the COCO rasteriser allocates memory for every pixel of an edge


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


def read_images(path: Path) -> list[object]:
    """The entries under "images" of a COCO annotation file, none if there is no list of them.

    Raises DatasetError if the file cannot be read as an object.
    """
    if is_large(path):
        with suppress(NotStreamableError):
            groups = groupby(stream_lists(path, SECTIONS), key=itemgetter(0))
            return next(([one for _, piece in group for one in piece] for key, group in groups if key == "images"), [])
    images = read_coco_json(path).get("images")
    return images if isinstance(images, list) else []


def list_entries(content: Mapping[str, object], section: str, faults: FaultReport) -> Sequence[object]:
    """The list under a top-level key; if it is missing or not a list, an error in `faults` and an empty list."""
    value = content.get(section)
    if isinstance(value, list | tuple):
        return value
    faults.add_error(f"{section}: {mismatch('a list', describe(value) if section in content else 'nothing')}")
    return []


def parse_entries(
    entries: Iterable[object], section: str, faults: FaultReport
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(id, entry) of every image or category. An entry without an id, or with the id of another, is an error."""
    names: dict[int, object] = {}
    for position, entry in enumerate(entries):
        entry_id = whole_number(entry.get("id")) if isinstance(entry, Mapping) else None
        if not isinstance(entry, Mapping) or entry_id is None:
            expected = mismatch("an object with an id (a whole number)", quote(entry))
            faults.add_error(f"{section}[{position}]: {expected}")
            continue
        name = entry.get("file_name", entry.get("name"))
        if entry_id in names:
            both = f"id {entry_id} for {quote(names[entry_id])} and {quote(name)}"
            own = entry_id if section == "images" else None
            faults.add_error(f"{section}[{position}]: {mismatch('an id of its own', both)}", own)
            continue
        names[entry_id] = name
        yield entry_id, entry


def parse_annotations(
    entries: Iterable[tuple[int, object]],
    images: Container[int],
    categories: Container[int | None] | None,
    chosen: Container[int] | None,
    seen: set[int],
    faults: FaultReport,
) -> Iterator[tuple[int, AnnotationEntry]]:
    """(place, annotation) of the chosen images (None: of all images), in file order; every fault goes to `faults`.

    entries: places in the file and entries. images, categories: the ids that the file defines; None: not known yet.
    seen: ids of the annotations before these; theirs are added. Faults in annotations of images that are not chosen
    are not reported: whoever reads the other images reports them.
    """
    for position, entry in entries:
        if not isinstance(entry, Mapping):
            faults.add_error(f"annotations[{position}]: {mismatch('an object', quote(entry))}")
            continue
        image_id = whole_number(entry.get("image_id"))
        if chosen is not None and image_id in images and image_id not in chosen:
            continue
        annotation_id = whole_number(entry.get("id"))
        if annotation_id is None:
            expected = mismatch("an id (a whole number)", quote(entry.get("id")))
            faults.add_error(f"annotations[{position}]: {expected}", image_id)
            continue
        if annotation_id in seen:
            reason = mismatch("an id of its own", "that of another annotation")
            faults.add_error(f"annotations[{position}]: {reason}", image_id, annotation_id)
            continue
        seen.add(annotation_id)
        if image_id is None or image_id not in images:
            reason = mismatch("the id of one of the images", quote(entry.get("image_id")))
            faults.add_error(f"image_id: {reason}", None, annotation_id)
            continue
        category_id = whole_number(entry.get("category_id"))
        if category_id is None or (categories is not None and category_id not in categories):
            reason = mismatch("the id of one of the categories", quote(entry.get("category_id")))
            faults.add_error(f"category_id: {reason}", image_id, annotation_id)
            continue
        try:
            flag, area, box = parse_iscrowd(entry), parse_area(entry), parse_box(entry)
        except DatasetError as error:
            faults.add_error(str(error), image_id, annotation_id)
            continue
        mask = entry.get("segmentation")
        yield position, AnnotationEntry(annotation_id, image_id, category_id, flag, area, box, mask)


def parse_size(entry: Mapping[str, object]) -> tuple[int, int]:
    """(height, width) of an image in pixels. Raises DatasetError, also for sizes that no image has."""
    height, width = whole_number(entry.get("height")), whole_number(entry.get("width"))
    if height is None or width is None or min(height, width) < 1:
        got = f"{quote(entry.get('height'))} and {quote(entry.get('width'))}"
        raise DatasetError(f"height and width: {mismatch('whole numbers of pixels above 0', got)}")
    if max(height, width) > LARGEST_IMAGE_SIDE:
        expected = f"at most {LARGEST_IMAGE_SIDE:,} pixels"
        raise DatasetError(f"height and width: {mismatch(expected, f'{height} and {width}')}")
    return height, width


def parse_iscrowd(entry: Mapping[str, object]) -> bool:
    """Whether an annotation is a crowd region; null or missing: it is not. Raises DatasetError."""
    value = entry.get("iscrowd")
    flag = 0.0 if value is None else float(value) if isinstance(value, bool) else number(value)
    if flag not in (0, 1):
        raise DatasetError(f"iscrowd: {mismatch('0 or 1', quote(value))}")
    return bool(flag)


def parse_area(entry: Mapping[str, object]) -> float | None:
    """The `area` of an annotation in square pixels; None where it is null or missing. Raises DatasetError."""
    value = entry.get("area")
    if value is None:
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
    if value is None:
        return None
    if isinstance(value, list | tuple | np.ndarray):
        if all(side is None for side in value):
            return None
        sides = [side for side in map(number, value) if side is not None and math.isfinite(side)]
        if len(value) == len(sides) == 4:
            return sides[0], sides[1], sides[2], sides[3]
    raise DatasetError(f"bbox: {mismatch('[left, top, width, height] in pixels', quote(value))}")
