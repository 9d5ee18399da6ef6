"""Read a split's COCO annotations into compact records with labels 0..K-1.

Every fault is reported, with image id, annotation id and reason: what would stop or spoil training is an error, what
training leaves out (a mask that covers no pixel) a warning. `parse_coco` returns all faults, `read_coco` raises the
errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from .batch_parsing import parse_plain
from .coco_json import (
    SECTIONS,
    AnnotationEntry,
    AnnotationParser,
    BrokenIds,
    list_sections,
    parse_categories,
    parse_images,
    unknown_category,
)
from .faults import ADVICE, Fault, FaultReport
from .formats.format_table import read_content
from .json_stream import NotStreamableError, is_large, stream_lists, without_collector
from .layout import Split
from .locate import locate_images
from .placeholders import drop_placeholders, project_category
from .read_rules import IncompleteRule, note_dropped
from .records import Annotation, Category, CocoData, ImageRecord, LeftOut
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
from .table_builder import TableBuilder

__all__ = ["Annotation", "Category", "CocoData", "ImageRecord", "parse_coco", "parse_splits", "read_coco"]

Pieces = Callable[[Collection[str]], Iterator[tuple[str, Sequence[object]]]]
"""Top-level keys -> (key, some of the entries under it), in the order of the file; may be called again."""


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


def parse_splits(splits: Mapping[str, Split]) -> dict[str, tuple[CocoData | None, list[Fault]]]:
    """The records of several splits and the faults of their files; a file that splits share is read once.

    A fault of an image stands with the split of the image, any other fault of a shared file with the first of its
    splits. The data are None where the file cannot be read; its one fault says why.
    """
    found: dict[str, tuple[CocoData | None, list[Fault]]] = {}
    for name, split in splits.items():
        sharing = [one for one in splits if _file_of(splits[one]) == _file_of(split)]
        if name == sharing[0]:
            found |= _parse_shared({one: splits[one] for one in sharing})
    return {name: found[name] for name in splits}


def _file_of(split: Split) -> tuple[object, ...]:
    return split.annotations, split.images, split.format, split.subset


def _parse_shared(splits: Mapping[str, Split]) -> dict[str, tuple[CocoData | None, list[Fault]]]:
    """As `parse_splits`, for the splits of one file."""
    first, *others = splits
    chosen = [split.image_ids for split in splits.values() if split.image_ids is not None]
    union = frozenset[int]().union(*chosen) if len(chosen) == len(splits) else None
    try:
        data, faults = parse_coco(replace(splits[first], image_ids=union))
    except DatasetError as error:
        return {first: (None, [Fault("error", None, None, str(error))]), **{one: (None, []) for one in others}}
    of_split: dict[str, list[Fault]] = {one: [] for one in splits}
    for fault in faults:
        owners = (one for one in others if fault.image_id in (splits[one].image_ids or ()))
        of_split[next(owners, first)].append(fault)
    found: dict[str, tuple[CocoData | None, list[Fault]]] = {}
    for name, split in splits.items():
        images = data.images if split.image_ids is None else data.images.select(split.image_ids)
        found[name] = replace(data, images=images, source=replace(split, reading=None)), of_split[name]
    return found


def _parse(split: Split) -> tuple[CocoData, FaultReport]:
    if split.format == "coco" and split.classes is None and is_large(split.annotations):
        with suppress(NotStreamableError), without_collector():
            return _SplitReader(split).read(partial(_stream_sections, split.annotations))
    reader = _SplitReader(split)
    sections = list_sections(read_content(split, reader.faults), reader.faults)
    return reader.read(lambda keys: ((key, sections[key]) for key in SECTIONS if key in keys))


def _stream_sections(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Sequence[object]]]:
    """The sections of a large file in pieces. Raises NotStreamableError for one that is wrongly empty."""
    for key, entries in stream_lists(path, keys):
        if not entries and key != "annotations":
            raise NotStreamableError(f"{key} is empty")
        yield key, entries


class _SplitReader:
    """Builds the records of a split from the entries of its file, which come in pieces."""

    def __init__(self, split: Split) -> None:
        self.faults = FaultReport(str(split.annotations))
        self._split = split
        self._table = TableBuilder()
        self._rows: dict[int, int] = {}  # id -> row in the table, of all sound images of the file
        self._chosen: dict[int, int] = {}  # those of the split
        self._sizes = np.zeros((0, 2), np.int32)
        self._elsewhere: list[Path] = []
        self._left_out: list[LeftOut] = []
        self._broken = BrokenIds()
        self._position = 0  # of the next annotation in the file
        self._used: set[int] = set()  # ids of categories with annotations
        self._project: int | None = None
        self._names: dict[int, str] | None = None  # of the categories, by id; None while they are not read
        self._masks, self._strays = MaskFaults(self.faults, split.rules.incomplete_images), StrayParts()

    def read(self, pieces: Pieces) -> tuple[CocoData, FaultReport]:
        """The records, and the faults of the file. Raises NotStreamableError if a section is missing."""
        seen: set[str] = set()
        late = False
        for key, group in groupby(pieces(SECTIONS), key=itemgetter(0)):
            seen.add(key)
            if key == "images":
                self._add_images(entry for _, entries in group for entry in entries)
            elif key == "categories":
                entries = [entry for _, entries in group for entry in entries]
                self._project = project_category(entries)
                self._names = parse_categories(entries, self.faults, self._broken)
                if self._broken.categories and "annotations" in seen:
                    raise NotStreamableError("faulty categories behind the annotations that refer to them")
            elif "images" in seen:
                self._add_annotations(group)
            else:
                late = True  # the images come behind: the annotations are read in a second pass
        if len(seen) < len(SECTIONS):
            raise NotStreamableError(f"only {seen}")
        if late:
            self._add_annotations(pieces(("annotations",)))
        return self._finish(), self.faults

    def _add_images(self, entries: Iterable[object]) -> None:
        found = parse_images(entries, self.faults, self._broken)
        names = {image_id: image.file_name for image_id, image in found.items()}
        paths, refused = locate_images(names, self._split, self.faults)
        self._broken.images.update(refused)
        for image_id, path in paths.items():
            name, height, width = found[image_id]
            if image_id in self._broken.images:
                self._elsewhere.append(Path(path))
            else:
                self._rows[image_id] = len(self._rows)
                self._table.add_image(image_id, name, path, height, width)
        wanted = self._split.image_ids
        self._chosen = self._rows if wanted is None else {k: row for k, row in self._rows.items() if k in wanted}
        self._sizes = np.array(self._table.sizes, np.int32).reshape(-1, 2)

    def _add_annotations(self, pieces: Iterable[tuple[str, Sequence[object]]]) -> None:
        rules = self._split.rules
        parser = AnnotationParser(
            self._rows, self._names, self._split.image_ids, self.faults, self._broken, rules.crowd
        )
        if not self._rows or (self._names is not None and not self._names):
            return  # the reason is reported, and would be repeated for every annotation
        for _, entries in pieces:
            plain, others = parse_plain(entries, self._position, self._chosen, self._sizes, self._names, parser.seen)
            parser.seen.update(plain.ids.tolist())
            parser.crowds.count_plain(len(plain.ids))
            self._used.update(np.unique(plain.category_ids).tolist())
            self._table.add_plain(plain)
            for position, entry in parser.parse((self._position + place, entries[place]) for place in others):
                self._add_annotation(entry, position)
            self._position += len(entries)
        parser.crowds.report(self.faults)
        self._strays.report(self.faults)

    def _add_annotation(self, entry: AnnotationEntry, position: int) -> None:
        self._used.add(entry.category_id)
        row = self._chosen[entry.image_id]
        height, width = self._sizes[row].tolist()
        try:
            shape = parse_segmentation(entry.segmentation, height, width)
        except DatasetError as error:
            self._masks.add(error, entry)
            if isinstance(error, EmptyMaskError) and error.parts:
                self._left_out.append(LeftOut(entry.id, entry.image_id, error.parts, entry.box))
            return
        box = segmentation_box(shape) if entry.box is None else entry.box
        area = _mask_area(shape, height, width) if entry.area is None else entry.area
        self._table.add_annotation(entry, shape, box, area, row, position)
        self._strays.count(shape, entry.segmentation, (entry.image_id, entry.id))

    def _finish(self) -> CocoData:
        names = self._names or {}
        drop_placeholders(names, self._used, self.faults, self._project)
        categories = tuple(Category(*pair) for pair in names.items())
        for category_id, image_row, annotation_id in self._table.instances_outside(names):
            if names and category_id not in self._broken.categories:
                image_id = self._table.image_ids[image_row]
                self.faults.add_error(*unknown_category(category_id, image_id, annotation_id))
        images = self._table.build(categories)
        if self._split.image_ids is not None:
            images = images.select(self._split.image_ids)
        if self._split.rules.incomplete_images == "drop":
            incomplete = [place for place, image_id in enumerate(images.ids) if image_id in self._masks.incomplete]
            note_dropped([images.ids[place] for place in incomplete], self.faults)
            self._elsewhere += [images[place].path for place in incomplete]
            images = images.take(sorted(set(range(len(images))) - set(incomplete)))
        self.faults.group_alike()
        return CocoData(
            self._split.annotations,
            categories,
            images,
            elsewhere=tuple(self._elsewhere),
            left_out=tuple(self._left_out),
            source=replace(self._split, reading=None),
        )


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


def _mask_area(segmentation: Segmentation, height: int, width: int) -> float:
    """Square pixels of a mask; of an outline whose halves cancel, as in an hourglass, the pixels that it covers."""
    area = segmentation_area(segmentation)
    if area == 0 and isinstance(segmentation, list):
        return float(polygons_to_runs(segmentation, height, width)[1::2].sum())
    return area
