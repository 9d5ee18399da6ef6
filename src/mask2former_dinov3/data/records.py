"""Records of a split: images and their instances, stored as flat arrays that processes share.

An `ImageTable` behaves like a list of `ImageRecord`; a record and its annotations are made when they are asked for. As
Python objects, the instances of COCO's size would take gigabytes, and every worker process would copy them: counting
references writes to the memory pages of each object. Arrays are shared, between forked workers as they are, and between
the processes of a machine through a folder of files (`ImageTable.save`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from .array_types import Floats, Ints
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


HUNDREDTHS = 100  # of a pixel: COCO's own files have two decimals


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
    vertices: Floats | npt.NDArray[np.int32]  # (V, 2) x, y in pixels, or in hundredths where all are whole ones
    codes: npt.NDArray[np.uint8]  # compressed counts of the RLEs

    def points(self, chosen: slice | Ints) -> Floats:
        """Some of the vertices, (v, 2) x, y in pixels: equal to the numbers of the file."""
        found = self.vertices[chosen]
        return np.asarray(found / HUNDREDTHS if found.dtype == np.int32 else found)


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

    def location(self, place: int) -> tuple[str, int, int]:
        """The path (as text), height and width of an image."""
        row = int(self.rows[place])
        height, width = self.columns.sizes[row].tolist()
        return _text(self.columns.paths, self.columns.path_offsets, row), height, width

    @property
    def paths(self) -> list[Path]:
        """The paths of the images."""
        return [Path(text) for text in self.path_texts]

    @property
    def path_texts(self) -> list[str]:
        """The paths of the images as texts: 100,000 Path objects take seconds."""
        return _texts(self.columns.paths, self.columns.path_offsets, self.rows)

    @property
    def file_names(self) -> list[str]:
        """The names of the images in the file."""
        return _texts(self.columns.names, self.columns.name_offsets, self.rows)

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
    left_out: polygons that cover no pixel, for checks that look for the cause. source: the split that was read, from
    which evaluation reads what it scores against, by the same rules.
    """

    annotations: Path
    categories: tuple[Category, ...]
    images: ImageTable
    elsewhere: tuple[Path, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    source: Split | None = None

    @property
    def rules(self) -> ReadRules:
        """How the annotations were read."""
        return ReadRules() if self.source is None else self.source.rules


def with_class_order(data: CocoData, names: Sequence[str]) -> CocoData:
    """The same data with its categories in the order of `names`, which are theirs."""
    by_name = {category.name: label for label, category in enumerate(data.categories)}
    order = [by_name[name] for name in names]
    labels = np.argsort(np.asarray(order, np.int64))[data.images.columns.labels]
    images = ImageTable(data.images.columns._replace(labels=labels), data.images.rows)
    return replace(data, categories=tuple(data.categories[label] for label in order), images=images)


def _segmentation(columns: Columns, row: int, size: tuple[int, int]) -> Segmentation:
    """The segmentation in a row."""
    ranges = columns.part_ranges[columns.part_offsets[row] : columns.part_offsets[row + 1]].tolist()
    if columns.is_rle[row]:
        ((first, last),) = ranges
        return CompressedRle(size=list(size), counts=columns.codes[first:last].tobytes())
    return [columns.points(slice(first, last)) for first, last in ranges]


def indices_of(first: Ints, counts: Ints) -> Ints:
    """The indices of ranges, one after the other: first, first + 1, … of each, `counts` many."""
    before = np.cumsum(counts) - counts
    found: Ints = np.repeat(first - before, counts) + np.arange(counts.sum())
    return found


def _texts(values: npt.NDArray[np.uint8], offsets: Ints, rows: Ints) -> list[str]:
    """As `_text`, of many rows: without an array for each."""
    whole = values.tobytes()
    ranges = zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
    return [whole[first:last].decode("utf-8", "surrogatepass") for first, last in ranges]


def _text(values: npt.NDArray[np.uint8], offsets: Ints, row: int) -> str:
    return values[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8", "surrogatepass")
