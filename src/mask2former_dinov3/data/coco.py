"""Read a split's COCO annotations into compact records with labels 0..K-1.

Every fault is reported, with image id, annotation id and reason: what would stop or spoil training is an error, what
training leaves out (a mask that covers no pixel) a warning. `parse_coco` returns all faults, `read_coco` raises the
errors.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from ..errors import DatasetError, mismatch
from .batch_parsing import parse_plain
from .coco_json import (
    SECTIONS,
    AnnotationEntry,
    list_entries,
    parse_annotations,
    parse_entries,
    parse_size,
    read_coco_json,
)
from .faults import ADVICE, Fault, FaultReport, quote
from .json_stream import NotStreamableError, is_large, stream_lists
from .layout import Split
from .numbers import whole_number
from .records import Annotation, Category, CocoData, ImageRecord, TableBuilder
from .segmentation import EmptyMaskError, NoMaskError, parse_segmentation, segmentation_area, segmentation_box

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


def _file_of(split: Split) -> tuple[Path, Path]:
    return split.annotations, split.images


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
    return {
        one: (data if ids is None else replace(data, images=data.images.select(ids)), of_split[one])
        for one, ids in ((one, split.image_ids) for one, split in splits.items())
    }


def _parse(split: Split) -> tuple[CocoData, FaultReport]:
    if is_large(split.annotations):
        with suppress(NotStreamableError):
            return _SplitReader(split).read(partial(stream_lists, split.annotations))
    content = read_coco_json(split.annotations)
    reader = _SplitReader(split)
    lists = {key: list_entries(content, key, reader.faults) for key in SECTIONS}
    for key in ("images", "categories"):
        if content.get(key) == []:
            reader.faults.add_error(f"{key}: {mismatch('at least one entry', 'an empty list')}")
    return reader.read(lambda keys: ((key, lists[key]) for key in SECTIONS if key in keys))


class _SplitReader:
    """Builds the records of a split from the entries of its file, which come in pieces."""

    def __init__(self, split: Split) -> None:
        self.faults = FaultReport(str(split.annotations))
        self._split = split
        self._table = TableBuilder()
        self._rows: dict[int, int] = {}  # id -> row in the table, of all sound images of the file
        self._chosen: dict[int, int] = {}  # those of the split
        self._sizes = np.zeros((0, 2), np.int32)
        self._position = 0  # of the next annotation in the file
        self._seen: set[int] = set()  # ids of annotations
        self._used: set[int] = set()  # ids of categories with annotations
        self._known: Collection[int | None] | None = None  # ids of categories; None while they are not read

    def read(self, pieces: Pieces) -> tuple[CocoData, FaultReport]:
        """The records, and the faults of the file. Raises NotStreamableError if a section is missing."""
        seen: set[str] = set()
        categories: list[object] = []
        late = False
        for key, group in groupby(pieces(SECTIONS), key=itemgetter(0)):
            seen.add(key)
            if key == "images":
                self._add_images(entry for _, entries in group for entry in entries)
            elif key == "categories":
                categories = [entry for _, entries in group for entry in entries]
                self._known = {whole_number(entry.get("id")) for entry in categories if isinstance(entry, Mapping)}
            elif "images" in seen:
                for _, entries in group:
                    self._add_annotations(entries)
            else:
                late = True  # the images come behind: the annotations are read in a second pass
        if len(seen) < len(SECTIONS):
            raise NotStreamableError(f"only {seen}")
        if late:
            for _, entries in pieces(("annotations",)):
                self._add_annotations(entries)
        return self._finish(categories), self.faults

    def _add_images(self, entries: Iterable[object]) -> None:
        for record in _parse_images(entries, self._split, self.faults):
            self._rows[record.id] = len(self._rows)
            self._table.add_image(record.id, record.file_name, str(record.path), record.height, record.width)
        wanted = self._split.image_ids
        self._chosen = self._rows if wanted is None else {k: row for k, row in self._rows.items() if k in wanted}
        self._sizes = np.array(self._table.sizes, np.int32).reshape(-1, 2)

    def _add_annotations(self, entries: Sequence[object]) -> None:
        plain, others = parse_plain(entries, self._position, self._chosen, self._sizes, self._known, self._seen)
        self._seen.update(plain.ids.tolist())
        self._used.update(np.unique(plain.category_ids).tolist())
        self._table.add_plain(plain)
        rest = [(self._position + place, entries[place]) for place in others]
        self._position += len(entries)
        for position, entry in parse_annotations(
            rest, self._rows, self._known, self._split.image_ids, self._seen, self.faults
        ):
            self._used.add(entry.category_id)
            row = self._chosen[entry.image_id]
            try:
                annotation = _complete_annotation(entry, *self._sizes[row].tolist())
            except NoMaskError:
                reason = "no segmentation (a box alone trains no mask); left out of training"
                self.faults.add_warning(reason, entry.image_id, entry.id)
            except EmptyMaskError as error:
                self.faults.add_warning(f"{error}; left out of training", entry.image_id, entry.id)
            except DatasetError as error:
                self.faults.add_error(str(error), entry.image_id, entry.id)
            else:
                self._table.add_annotation(annotation, row, position)

    def _finish(self, entries: Sequence[object]) -> CocoData:
        categories = _parse_categories(entries, self._used, self.faults)
        known = {category.id for category in categories}
        for category_id, image_row, annotation_id in self._table.instances_outside(known):
            reason = mismatch("the id of one of the categories", category_id)
            self.faults.add_error(f"category_id: {reason}", self._table.image_ids[image_row], annotation_id)
        images = self._table.build(categories)
        if self._split.image_ids is not None:
            images = images.select(self._split.image_ids)
        return CocoData(self._split.annotations, categories, images)


def _parse_categories(entries: Sequence[object], used: Collection[int], faults: FaultReport) -> tuple[Category, ...]:
    """The categories in the order of their ids. used: ids of the categories that have annotations."""
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


def _parse_images(entries: Iterable[object], split: Split, faults: FaultReport) -> Iterator[ImageRecord]:
    """All sound images of the file, without annotations yet."""
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
        yield ImageRecord(image_id, name, _locate(name, split), *size, [])
        if name in first_of_file:
            other = first_of_file[name]
            faults.add_warning(
                f"{name}: the same file as image {other}; check whether its instances are split", image_id
            )
        first_of_file.setdefault(name, image_id)


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


def _complete_annotation(entry: AnnotationEntry, height: int, width: int) -> Annotation:
    """Parse the mask; area and box follow from it where the file has none. Raises EmptyMaskError or DatasetError.

    The label is not known yet: categories may stand behind the annotations.
    """
    segmentation = parse_segmentation(entry.segmentation, height, width)
    return Annotation(
        id=entry.id,
        label=-1,
        category_id=entry.category_id,
        segmentation=segmentation,
        iscrowd=entry.iscrowd,
        bbox=segmentation_box(segmentation) if entry.box is None else entry.box,
        area=segmentation_area(segmentation) if entry.area is None else entry.area,
    )
