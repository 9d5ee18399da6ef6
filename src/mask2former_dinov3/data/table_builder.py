"""Collect images and instances in growing arrays, and make a table of them."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .array_types import Floats, Ints
from .batch_parsing import PlainAnnotations
from .coco_json import AnnotationEntry, Box
from .records import HUNDREDTHS, Category, Columns, ImageTable, indices_of
from .segmentation import Segmentation

_Number = TypeVar("_Number", bound=np.generic)


class TableBuilder:
    """Collects images and instances, in any order of the images, and makes a table of them."""

    def __init__(self) -> None:
        self.image_ids, self.sizes = array("q"), array("i")
        self.names, self.paths = _Texts(), _Texts()
        self.ids, self.category_ids = array("q"), array("q")
        self.image_rows, self.positions = array("q"), array("q")
        self.iscrowd, self.is_rle = array("B"), array("B")
        self.boxes, self.areas = array("d"), array("d")
        self.part_counts, self.part_ranges = array("q"), array("q")
        self.vertices, self.codes = _Vertices(), bytearray()

    def add_image(self, image_id: int, file_name: str, path: str, height: int, width: int) -> None:
        """Add an image; its row is the number of images before it."""
        self.image_ids.append(image_id)
        self.sizes.extend((height, width))
        self.names.append(file_name)
        self.paths.append(path)

    def add_annotation(
        self, entry: AnnotationEntry, shape: Segmentation, box: Box, area: float, image_row: int, position: int
    ) -> None:
        """Add an instance of an image. position: its place in the file, which orders the instances of an image."""
        self.ids.append(entry.id)
        self.category_ids.append(entry.category_id)
        self.image_rows.append(image_row)
        self.positions.append(position)
        self.iscrowd.append(entry.iscrowd)
        self.boxes.extend(box)
        self.areas.append(area)
        self.is_rle.append(not isinstance(shape, list))
        if isinstance(shape, list):
            self.part_counts.append(len(shape))
            for part in shape:
                first = len(self.vertices)
                self.vertices.append(part)
                self.part_ranges.extend((first, first + len(part)))
        else:
            self.part_counts.append(1)
            first = len(self.codes)
            self.codes += shape["counts"]
            self.part_ranges.extend((first, len(self.codes)))

    def add_plain(self, plain: PlainAnnotations) -> None:
        """Add many instances that are parsed together."""
        first = len(self.vertices)
        self.vertices.append(plain.vertices)
        ends = first + np.cumsum(plain.vertex_counts)
        number = len(plain.ids)
        for values, new in (
            (self.ids, plain.ids),
            (self.category_ids, plain.category_ids),
            (self.image_rows, plain.image_rows),
            (self.positions, plain.positions),
            (self.iscrowd, np.zeros(number, np.uint8)),
            (self.is_rle, np.zeros(number, np.uint8)),
            (self.boxes, plain.boxes),
            (self.areas, plain.areas),
            (self.part_counts, plain.part_counts),
            (self.part_ranges, np.stack([ends - plain.vertex_counts, ends], 1)),
        ):
            values.frombytes(new.tobytes())

    def instances_outside(self, categories: Collection[int]) -> Iterator[tuple[int, int, int]]:
        """(category id, image row, annotation id) of the instances of other categories, in the order of the file."""
        ids = _array(self.category_ids)
        rows = np.flatnonzero(~np.isin(ids, np.fromiter(categories, np.int64, len(categories))))
        for row in rows[np.argsort(_array(self.positions)[rows], kind="stable")].tolist():
            yield self.category_ids[row], self.image_rows[row], self.ids[row]

    def build(self, categories: Sequence[Category]) -> ImageTable:
        """The table of everything that was added. The builder cannot be used afterwards.

        categories: in the order of their ids; a label is a place among them. Instances of others are left out.
        """
        known = np.array([category.id for category in categories], np.int64)
        labels = np.searchsorted(known, _array(self.category_ids))
        kept = (labels < len(known)) & (np.append(known, 0)[labels] == _array(self.category_ids))
        image_rows = _array(self.image_rows)
        order = np.lexsort((_array(self.positions), image_rows))
        order = order[kept[order]]
        per_image = np.bincount(image_rows[order], minlength=len(self.image_ids))
        labels = labels[order]
        del image_rows, kept, self.image_rows, self.positions
        counts = _array(self.part_counts)
        part_counts = counts[order]
        part_offsets = _offsets(part_counts)
        first_part = (np.cumsum(counts) - counts)[order]
        parts = indices_of(first_part, part_counts)
        del counts, self.part_counts
        return ImageTable(
            Columns(
                image_ids=_array(self.image_ids),
                sizes=np.frombuffer(self.sizes, np.int32).reshape(-1, 2),
                names=self.names.bytes(),
                name_offsets=self.names.offsets(),
                paths=self.paths.bytes(),
                path_offsets=self.paths.offsets(),
                instance_offsets=_offsets(per_image),
                ids=_move(self.ids, np.int64, order),
                labels=labels,
                category_ids=_move(self.category_ids, np.int64, order),
                iscrowd=_move(self.iscrowd, np.bool_, order),
                is_rle=_move(self.is_rle, np.bool_, order),
                boxes=_move(self.boxes, np.float64, order, 4),
                areas=_move(self.areas, np.float64, order),
                part_offsets=part_offsets,
                part_ranges=_move(self.part_ranges, np.int64, parts, 2),
                vertices=self.vertices.array(),
                codes=np.frombuffer(self.codes, np.uint8),
            )
        )


class _Vertices:
    """Vertices of polygons: hundredths of a pixel (int32, half the memory) until one is no whole hundredth."""

    def __init__(self) -> None:
        self._values: array[int] | array[float] = array("i")

    def __len__(self) -> int:
        return len(self._values) // 2

    def append(self, points: Floats) -> None:
        """Add vertices (V, 2)."""
        if self._values.typecode == "i":
            hundredths = np.rint(points * HUNDREDTHS)
            # A double divided by 100 is the double that is nearest to the decimal number: what the file's text gave.
            if np.abs(hundredths).max(initial=0) < 2**31 and (hundredths / HUNDREDTHS == points).all():
                self._values.frombytes(hundredths.astype(np.int32).tobytes())
                return
            self._values = array("d", (np.frombuffer(self._values, np.int32) / HUNDREDTHS).tobytes())
        self._values.frombytes(np.asarray(points, np.float64).tobytes())

    def array(self) -> Floats | npt.NDArray[np.int32]:
        """All vertices, (V, 2)."""
        if self._values.typecode == "i":
            return np.frombuffer(self._values, np.int32).reshape(-1, 2)
        return np.frombuffer(self._values, np.float64).reshape(-1, 2)


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


def _array(values: array[int]) -> Ints:
    return np.frombuffer(values, np.int64)


def _move(
    values: array[int] | array[float], dtype: type[_Number], order: npt.NDArray[np.intp], width: int = 0
) -> npt.NDArray[_Number]:
    """The values in this order, in rows of `width`; the source is emptied, for no memory to be taken twice."""
    found: npt.NDArray[_Number] = np.frombuffer(values, dtype).reshape((-1, width) if width else -1)[order]
    del values[:]
    return found


def _offsets(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
