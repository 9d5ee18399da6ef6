"""The pictures of faults: around the object that a fault names, with its mask, its box, and the other objects.

An annotation with an error is in no record: its entry is read from the file again, and drawn as far as it can be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.coco import CocoData
from ..data.coco_json import Box, parse_box, read_coco_json
from ..data.faults import Fault, Place
from ..data.fitting import PixelArray
from ..data.images import read_image
from ..data.layout import Split
from ..data.numbers import number, whole_number
from ..data.segmentation import FARTHEST_VERTEX, Polygon, Segmentation, parse_segmentation, segmentation_box
from ..errors import DatasetError
from ..read_options import AS_STORED, ReadOptions
from .html_page import Html, figure, join, no_figure
from .pictures import data_uri, draw_all, draw_box, draw_focus, draw_lines, surround, view_of

_Entry = Mapping[str, object]


class _Found(NamedTuple):
    """What a file says of one annotation: its mask if it has one, what of its polygons can be drawn, and its box."""

    name: str  # of its class
    segmentation: Segmentation | None
    lines: list[Polygon]
    box: Box | None


class FaultViews:
    """Draws the places of faults of one split."""

    def __init__(self, split: Split, data: CocoData | None, options: ReadOptions = AS_STORED) -> None:
        """data: the sound records of the split, if its file could be read. options: how images are read."""
        self._options = options
        self._split = split
        self._data = data
        self._records = {} if data is None else {record.id: record for record in data.images}
        self._entries: tuple[dict[int, _Entry], dict[int, list[_Entry]]] | None = None

    def draw(self, place: Place, fault: Fault) -> Html:
        """The figure of one place of a fault."""
        image_id, annotation_id = place
        record = None if image_id is None else self._records.get(image_id)
        from_file = fault.severity == "error"  # the record of this id may be another's
        found = [] if annotation_id is None else self._find(image_id, annotation_id, from_file)
        if image_id is None:
            image_id = self._image_of(annotation_id)
        path = record.path if record is not None else self._path_of(image_id)
        words = [] if path is None else [path.name]
        words += [f"image {image_id}" if image_id is not None else "no image"]
        words += [] if annotation_id is None else [f"annotation {annotation_id}"]
        words += list(dict.fromkeys(one.name for one in found if one.name))
        caption = join(words, " · ")
        if path is None:
            return no_figure("the file names no image for it", caption)
        try:
            image = read_image(path, self._options)
        except DatasetError:
            return no_figure("the image cannot be read", caption)
        others = [one.segmentation for one in record.annotations if one.id != annotation_id] if record else []
        about_box = "box" in f"{fault.kind} {fault.reason}".lower()
        picture, outside = _draw(image, found, others, about_box, whole=annotation_id is None)
        caption = join([caption, "outside the image"], " · ") if outside else caption
        alt = f"{', '.join(words)}: {_describe(found, about_box, len(others))}"
        return figure(data_uri(picture), alt, caption, picture.shape[:2])

    def _find(self, image_id: int | None, annotation_id: int, from_file: bool) -> list[_Found]:
        """The annotations of this id, from the records or from the file; more than one where an id is used twice."""
        record = None if image_id is None else self._records.get(image_id)
        own = [one for one in record.annotations if one.id == annotation_id] if record is not None else []
        entries = self._read()[1].get(annotation_id, []) if from_file or not own else []
        if own and not entries and self._data is not None:
            names = self._data.categories
            return [_Found(names[one.label].name, one.segmentation, [], one.bbox) for one in own]
        size = None if record is None else (record.height, record.width)
        own_image = [one for one in entries if whole_number(one.get("image_id")) == image_id]
        return [_parse_entry(entry, size) for entry in own_image or entries]

    def _image_of(self, annotation_id: int | None) -> int | None:
        if annotation_id is None:
            return None
        entries = self._read()[1].get(annotation_id, [])
        return whole_number(entries[0].get("image_id")) if entries else None

    def _path_of(self, image_id: int | None) -> Path | None:
        """The path of an image whose entry is not sound."""
        name = None if image_id is None else self._read()[0].get(image_id, {}).get("file_name")
        return self._split.images / name.replace("\\", "/") if isinstance(name, str) and name else None

    def _read(self) -> tuple[dict[int, _Entry], dict[int, list[_Entry]]]:
        """The file's images and annotations by id; empty where it is no COCO file."""
        if self._entries is None:
            images: dict[int, _Entry] = {}
            annotations: dict[int, list[_Entry]] = defaultdict(list)
            try:
                content = read_coco_json(self._split.annotations)
            except DatasetError:
                content = {}
            for entry_id, entry in _entries_of(content, "images"):
                images.setdefault(entry_id, entry)
            for entry_id, entry in _entries_of(content, "annotations"):
                annotations[entry_id].append(entry)
            self._entries = images, dict(annotations)
        return self._entries


def _entries_of(content: Mapping[str, object], name: str) -> list[tuple[int, _Entry]]:
    """The entries of a list that are objects with an id."""
    listed = content.get(name)
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    pairs = [(whole_number(entry.get("id")), entry) for entry in entries]
    return [(entry_id, entry) for entry_id, entry in pairs if entry_id is not None]


def _parse_entry(entry: _Entry, size: tuple[int, int] | None) -> _Found:
    """What can be drawn of an annotation's entry. size: (height, width) of its image, if it is known."""
    try:
        box = parse_box(entry)
    except DatasetError:
        box = None
    value = entry.get("segmentation")
    try:
        if size is not None:
            return _Found("", parse_segmentation(value, *size), [], box)
    except DatasetError:
        pass
    parts = value if isinstance(value, list | tuple) else []
    if parts and number(parts[0]) is not None:
        parts = [parts]
    return _Found("", None, [part for part in map(_vertices, parts) if part is not None], box)


def _vertices(part: object) -> Polygon | None:
    """The points of a part that can be drawn, (P, 2), also of one that is no polygon; None if there is none."""
    if not isinstance(part, list | tuple):
        return None
    flat = [number(value) for side in part for value in (side if isinstance(side, list | tuple) else [side])]
    numbers = [value for value in flat if value is not None and abs(value) <= FARTHEST_VERTEX]
    if len(numbers) < 2 or len(numbers) != len(flat):
        return None
    return np.array(numbers[: len(numbers) // 2 * 2], dtype=np.float64).reshape(-1, 2)


def _draw(
    image: PixelArray, found: Sequence[_Found], others: Sequence[Segmentation], about_box: bool, whole: bool
) -> tuple[PixelArray, bool]:
    """The picture, and whether the object lies outside the image. whole: every mask in a colour of its own."""
    focus = [one.segmentation for one in found if one.segmentation is not None]
    lines = [line for one in found for line in one.lines]
    show_boxes = about_box or not (focus or lines)
    boxes = [one.box for one in found if one.box is not None] if show_boxes else []
    around: list[Sequence[float]] = [segmentation_box(one) for one in focus]
    around += [segmentation_box([line]) for line in lines]
    part = surround([*around, *boxes], image.shape[:2])
    view = view_of(image, part)
    picture = draw_all(view, others) if whole else draw_focus(view, focus, others)
    draw_lines(picture, view, lines)
    for box in boxes:
        draw_box(picture, view, box)
    return picture, part is None and bool(around or boxes)


def _describe(found: Sequence[_Found], about_box: bool, others: int) -> str:
    """What a picture shows, in words."""
    shown = []
    if any(one.segmentation is not None for one in found):
        shown.append("its mask in orange")
    if any(one.lines for one in found):
        shown.append("its points in orange")
    if any(one.box is not None for one in found) and (about_box or not shown):
        shown.append("its box in white")
    if others:
        shown.append(f"{others} other objects" if shown else f"{others} objects")
    return ", ".join(shown) or "nothing is annotated here"
