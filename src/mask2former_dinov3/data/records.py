"""Records of a split: images and their instances, stored as flat arrays that processes share.

An `ImageTable` behaves like a list of `ImageRecord`; a record and its annotations are made when they are asked for. As
Python objects, the instances of COCO's size would take gigabytes, and every worker process would copy them: counting
references writes to the memory pages of each object. Arrays are shared, between forked workers as they are, and between
the processes of a machine through a folder of files (`ImageTable.save`).
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from .array_types import Floats, Ints
from .batch_parsing import PlainAnnotations
from .coco_json import Box
from .layout import Split
from .read_rules import ReadRules
from .segmentation import CompressedRle, Polygon, Segmentation


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
    annotations: Sequence[Annotation]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An annotation that training leaves out: its polygons cover no pixel. box: the file's own, None if it has none."""

    id: int
    image_id: int
    parts: list[Polygon]
    box: Box | None


class Columns(NamedTuple):
    """The arrays of M images with A instances in P parts. An instance belongs to the image of its row range.

    A polygon part is a range of `vertices`, an RLE (one part) a range of the bytes in `codes`. Texts are UTF-8, one
    after the other, with offsets.
    """

    image_ids: Ints  # (M,)
    sizes: npt.NDArray[np.int32]  # (M, 2) height, width in pixels
    names: npt.NDArray[np.uint8]  # file names
    name_offsets: Ints  # (M + 1,)
    paths: npt.NDArray[np.uint8]
    path_offsets: Ints  # (M + 1,)
    instance_offsets: Ints  # (M + 1,) rows of the instances of each image
    ids: Ints  # (A,)
    labels: Ints  # (A,)
    category_ids: Ints  # (A,)
    iscrowd: npt.NDArray[np.bool_]  # (A,)
    is_rle: npt.NDArray[np.bool_]  # (A,)
    boxes: Floats  # (A, 4) left, top, width, height
    areas: Floats  # (A,)
    part_offsets: Ints  # (A + 1,) parts of each instance
    part_ranges: Ints  # (P, 2) first and last + 1 vertex, or byte
    vertices: Floats  # (V, 2) x, y
    codes: npt.NDArray[np.uint8]  # compressed counts of the RLEs


class ImageTable(Sequence[ImageRecord]):
    """A sequence of image records over flat arrays. A slice or `select` shares the arrays."""

    def __init__(self, columns: Columns, rows: Ints | None = None, folder: Path | None = None) -> None:
        """rows: (I,) places of the table's images in the arrays; None: all. folder: where the arrays are stored."""
        self.columns = columns
        self.rows = np.arange(len(columns.image_ids)) if rows is None else rows
        self._folder = folder

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> ImageTable: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | ImageTable:
        if isinstance(index, slice):
            return ImageTable(self.columns, self.rows[index], self._folder)
        row = int(self.rows[index])
        columns = self.columns
        height, width = columns.sizes[row].tolist()
        return ImageRecord(
            int(columns.image_ids[row]),
            _text(columns.names, columns.name_offsets, row),
            Path(_text(columns.paths, columns.path_offsets, row)),
            height,
            width,
            _Annotations(columns, row),
        )

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle a stored table as its folder: a process that opens it shares the arrays."""
        if self._folder is not None:
            return load_table, (self._folder, self.rows)
        return ImageTable, (self.columns, self.rows)

    @property
    def ids(self) -> list[int]:
        """The ids of the images."""
        found: list[int] = self.columns.image_ids[self.rows].tolist()
        return found

    @property
    def paths(self) -> list[Path]:
        """The paths of the images."""
        return [Path(_text(self.columns.paths, self.columns.path_offsets, row)) for row in self.rows.tolist()]

    def select(self, image_ids: frozenset[int]) -> ImageTable:
        """The images with these ids, in their order here."""
        wanted = np.isin(self.columns.image_ids[self.rows], np.fromiter(image_ids, np.int64, len(image_ids)))
        return ImageTable(self.columns, self.rows[wanted], self._folder)

    def take(self, places: Sequence[int]) -> ImageTable:
        """The images at these places, in this order."""
        return ImageTable(self.columns, self.rows[np.asarray(places, np.int64)], self._folder)

    def instance_rows(self, *, crowds: bool = False) -> tuple[Ints, Ints]:
        """Rows of the instances in the columns, and the place of each one's image in this table, both (N,).

        crowds: with crowd regions.
        """
        first, last = self.columns.instance_offsets[self.rows], self.columns.instance_offsets[self.rows + 1]
        counts = last - first
        places = np.repeat(np.arange(len(self)), counts)
        rows = indices_of(first, counts)
        if not crowds:
            kept = ~self.columns.iscrowd[rows]
            rows, places = rows[kept], places[kept]
        return rows, places

    def segmentation(self, row: int, size: tuple[int, int]) -> Segmentation:
        """The segmentation in a row of the columns, of an image of this (height, width)."""
        return _segmentation(self.columns, row, size)

    def instance_counts(self) -> Ints:
        """Number of instances of each image without crowd regions, (I,)."""
        return np.bincount(self.instance_rows()[1], minlength=len(self))

    def save(self, folder: Path) -> ImageTable:
        """Write the arrays into a new folder; returns the table over the stored arrays. Raises OSError."""
        folder.mkdir(parents=True)
        for name, values in self.columns._asdict().items():
            np.save(folder / f"{name}.npy", values)
        return load_table(folder, self.rows)


def load_table(folder: Path, rows: Ints | None = None) -> ImageTable:
    """Open a stored table; its arrays are mapped, so that all processes of a machine share them. Raises OSError."""
    columns = Columns(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Columns._fields))
    return ImageTable(columns, rows, folder)


class _Annotations(Sequence[Annotation]):
    """The annotations of one image of a table."""

    __slots__ = ("_columns", "_first", "_last", "_size")

    def __init__(self, columns: Columns, image: int) -> None:
        self._columns = columns
        self._size = tuple(columns.sizes[image].tolist())
        self._first: int
        self._last: int
        self._first, self._last = columns.instance_offsets[image : image + 2].tolist()

    def __len__(self) -> int:
        return self._last - self._first

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    @overload
    def __getitem__(self, index: int) -> Annotation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Annotation]: ...
    def __getitem__(self, index: int | slice) -> Annotation | list[Annotation]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        row: int = range(self._first, self._last)[index]
        columns = self._columns
        left, top, width, height = columns.boxes[row].tolist()
        return Annotation(
            id=int(columns.ids[row]),
            label=int(columns.labels[row]),
            category_id=int(columns.category_ids[row]),
            segmentation=_segmentation(columns, row, self._size),
            iscrowd=bool(columns.iscrowd[row]),
            bbox=(left, top, width, height),
            area=float(columns.areas[row]),
        )

    def __repr__(self) -> str:
        return repr(list(self))


@dataclass(frozen=True, slots=True)
class CocoData:
    """The records of a split: its annotation file, K categories in the order of their ids, images in file order.

    elsewhere: files of images of the file that are not in `images`: with a faulty entry, or left out by `rules`.
    left_out: polygons that cover no pixel, for checks that look for the cause. rules: how the annotations were read;
    evaluation reads them in the same way. source: the split that was read, from which evaluation reads what it scores
    against.
    """

    annotations: Path
    categories: tuple[Category, ...]
    images: ImageTable
    elsewhere: tuple[Path, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    rules: ReadRules = field(default_factory=ReadRules)
    source: Split | None = None


class TableBuilder:
    """Collects images and instances, in any order of the images, and makes a table of them."""

    def __init__(self) -> None:
        self.image_ids, self.sizes = array("q"), array("i")
        self.names, self.paths = _Texts(), _Texts()
        self.ids, self.labels, self.category_ids = array("q"), array("q"), array("q")
        self.image_rows, self.positions = array("q"), array("q")
        self.iscrowd, self.is_rle = array("B"), array("B")
        self.boxes, self.areas = array("d"), array("d")
        self.part_counts, self.part_ranges = array("q"), array("q")
        self.vertices, self.codes = array("d"), bytearray()

    def add_image(self, image_id: int, file_name: str, path: str, height: int, width: int) -> None:
        """Add an image; its row is the number of images before it."""
        self.image_ids.append(image_id)
        self.sizes.extend((height, width))
        self.names.append(file_name)
        self.paths.append(path)

    def add_annotation(self, annotation: Annotation, image_row: int, position: int) -> None:
        """Add an instance of an image. position: its place in the file, which orders the instances of an image."""
        self.ids.append(annotation.id)
        self.labels.append(annotation.label)
        self.category_ids.append(annotation.category_id)
        self.image_rows.append(image_row)
        self.positions.append(position)
        self.iscrowd.append(annotation.iscrowd)
        self.boxes.extend(annotation.bbox)
        self.areas.append(annotation.area)
        shape = annotation.segmentation
        self.is_rle.append(not isinstance(shape, list))
        if isinstance(shape, list):
            self.part_counts.append(len(shape))
            for part in shape:
                first = len(self.vertices) // 2
                self.vertices.frombytes(part.tobytes())
                self.part_ranges.extend((first, first + len(part)))
        else:
            self.part_counts.append(1)
            first = len(self.codes)
            self.codes += shape["counts"]
            self.part_ranges.extend((first, len(self.codes)))

    def add_plain(self, plain: PlainAnnotations) -> None:
        """Add many instances that are parsed together; their labels are not known yet."""
        first = len(self.vertices) // 2
        ends = first + np.cumsum(plain.vertex_counts)
        number = len(plain.ids)
        for values, new in (
            (self.ids, plain.ids),
            (self.labels, np.full(number, -1)),
            (self.category_ids, plain.category_ids),
            (self.image_rows, plain.image_rows),
            (self.positions, plain.positions),
            (self.iscrowd, np.zeros(number, np.uint8)),
            (self.is_rle, np.zeros(number, np.uint8)),
            (self.boxes, plain.boxes),
            (self.areas, plain.areas),
            (self.part_counts, plain.part_counts),
            (self.part_ranges, np.stack([ends - plain.vertex_counts, ends], 1)),
            (self.vertices, plain.vertices),
        ):
            values.frombytes(new.tobytes())

    def instances_outside(self, categories: Collection[int]) -> Iterator[tuple[int, int, int]]:
        """(category id, image row, annotation id) of the instances of other categories, in the order of the file."""
        ids = _array(self.category_ids)
        rows = np.flatnonzero(~np.isin(ids, np.fromiter(categories, np.int64, len(categories))))
        for row in rows[np.argsort(_array(self.positions)[rows], kind="stable")].tolist():
            yield self.category_ids[row], self.image_rows[row], self.ids[row]

    def build(self, categories: Sequence[Category] | None = None) -> ImageTable:
        """The table of everything that was added. The builder cannot be used afterwards.

        categories: label -> category, which gives the labels; instances of other categories are left out. None: the
        annotations have their labels.
        """
        labels, kept = _array(self.labels), np.ones(len(self.ids), np.bool_)
        if categories is not None:
            known = np.array([category.id for category in categories], np.int64)
            labels = np.searchsorted(known, _array(self.category_ids))
            kept = np.append(known, 0)[labels] == _array(self.category_ids)
            kept &= labels < len(known)
        image_rows = _array(self.image_rows)
        order = np.lexsort((_array(self.positions), image_rows))
        order = order[kept[order]]
        counts = _array(self.part_counts)
        part_counts = counts[order]
        part_offsets = _offsets(part_counts)
        first_part = (np.cumsum(counts) - counts)[order]
        parts = indices_of(first_part, part_counts)
        per_image = np.bincount(image_rows[order], minlength=len(self.image_ids))
        return ImageTable(
            Columns(
                image_ids=_array(self.image_ids),
                sizes=np.frombuffer(self.sizes, np.int32).reshape(-1, 2),
                names=self.names.bytes(),
                name_offsets=self.names.offsets(),
                paths=self.paths.bytes(),
                path_offsets=self.paths.offsets(),
                instance_offsets=_offsets(per_image),
                ids=_array(self.ids)[order],
                labels=labels[order],
                category_ids=_array(self.category_ids)[order],
                iscrowd=np.frombuffer(self.iscrowd, np.bool_)[order],
                is_rle=np.frombuffer(self.is_rle, np.bool_)[order],
                boxes=np.frombuffer(self.boxes, np.float64).reshape(-1, 4)[order],
                areas=np.frombuffer(self.areas, np.float64)[order],
                part_offsets=part_offsets,
                part_ranges=_array(self.part_ranges).reshape(-1, 2)[parts],
                vertices=np.frombuffer(self.vertices, np.float64).reshape(-1, 2),
                codes=np.frombuffer(self.codes, np.uint8),
            )
        )


def make_table(records: Iterable[ImageRecord]) -> ImageTable:
    """The table of records that are made already."""
    builder = TableBuilder()
    for row, record in enumerate(records):
        builder.add_image(record.id, record.file_name, str(record.path), record.height, record.width)
        for position, annotation in enumerate(record.annotations):
            builder.add_annotation(annotation, row, position)
    return builder.build()


def _segmentation(columns: Columns, row: int, size: tuple[int, int]) -> Segmentation:
    """The segmentation in a row; polygons are views of the shared vertices."""
    ranges = columns.part_ranges[columns.part_offsets[row] : columns.part_offsets[row + 1]].tolist()
    if columns.is_rle[row]:
        ((first, last),) = ranges
        return CompressedRle(size=list(size), counts=columns.codes[first:last].tobytes())
    return [np.asarray(columns.vertices[first:last]) for first, last in ranges]


def indices_of(first: Ints, counts: Ints) -> Ints:
    """The indices of ranges, one after the other: first, first + 1, … of each, `counts` many."""
    before = np.cumsum(counts) - counts
    found: Ints = np.repeat(first - before, counts) + np.arange(counts.sum())
    return found


class _Texts:
    """Texts, one after the other in UTF-8 (surrogates, which stand for other bytes of a path, included)."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def bytes(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._bytes, np.uint8)

    def offsets(self) -> Ints:
        return _array(self._ends)


def _text(values: npt.NDArray[np.uint8], offsets: Ints, row: int) -> str:
    return values[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8", "surrogatepass")


def _array(values: array[int]) -> Ints:
    return np.frombuffer(values, np.int64)


def _offsets(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
