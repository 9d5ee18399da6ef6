"""Measure all masks of a split as arrays: boxes, areas and picture sizes, beside what the file states of them.

N masks, P parts of polygons, V vertices; a few thousand masks at a time, so that memory does not grow with the split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .array_types import Floats, Ints
from .faults import Place
from .records import CocoData, Columns, indices_of
from .rle import boxes as rle_boxes
from .rle import whole_mask_areas
from .segmentation import Segmentation, boxes_and_areas, polygons_to_runs

Chosen: TypeAlias = npt.NDArray[np.intp]
"""Positions of masks among the N, (n,)."""

MASKS_AT_ONCE = 20_000  # masks that are measured or compared together, for little memory


@dataclass(frozen=True)
class MaskArrays:
    """N masks, in the order of the file's images.

    ids: (N,) of the annotations. image_ids, path_of: of the pictures, by their position; image_of: (N,) the position of
    each mask's picture; sizes: (N, 2) its height and width. stated: (N, 4) the file's `bbox` as it is; stated_areas:
    (N,) its `area`; both NaN where it has none. boxes: (N, 4) left, top, right, bottom of the mask; areas: (N,) in
    square pixels, of polygons the sum over the parts. labels: (N,), -1 where it was left out.
    is_polygon, iscrowd: (N,). segmentation_at: the segmentation of one mask.
    """

    ids: Ints
    image_ids: Sequence[int]
    sizes: Floats
    stated: Floats
    stated_areas: Floats
    boxes: Floats
    areas: Floats
    labels: npt.NDArray[np.int64]
    is_polygon: npt.NDArray[np.bool_]
    iscrowd: npt.NDArray[np.bool_]
    image_of: Chosen
    path_of: Callable[[int], Path]
    segmentation_at: Callable[[int], Segmentation]

    def __len__(self) -> int:
        return len(self.ids)

    def places_of(self, chosen: Chosen) -> list[Place]:
        """(image id, annotation id) of the chosen masks, picture by picture."""
        chosen = chosen[np.argsort(self.image_of[chosen], kind="stable")]
        pictures, ids = self.image_of[chosen].tolist(), self.ids[chosen].tolist()
        return [(self.image_ids[picture], own) for picture, own in zip(pictures, ids, strict=True)]

    def row_major_boxes(self, chosen: Chosen) -> Floats:
        """(n, 4) boxes that the run-length codes have if their runs go along the rows; NaN for polygons.

        Runs along the rows of a picture are runs down the columns of the transposed picture.
        """
        found = np.full((len(chosen), 4), np.nan)
        for place, values in self._rle_boxes(chosen, side=1):
            found[place] = values[:, [1, 0, 3, 2]]
        return found

    def pixel_areas(self, chosen: Chosen) -> Floats:
        """(n,) pixels of the chosen masks as they are rasterised, parts united."""
        found = self.areas[chosen]
        for place, index in enumerate(chosen.tolist()):
            shape = self.segmentation_at(index)
            if isinstance(shape, list):
                height, width = map(int, self.sizes[index])
                found[place] = polygons_to_runs(shape, height, width)[1::2].sum()
        return found

    def _rle_boxes(self, chosen: Chosen, side: int) -> Iterator[tuple[list[int], Floats]]:
        """(positions in `chosen`, boxes), by the length of a column: the height (side 0) or the width (side 1)."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, index in enumerate(chosen.tolist()):
            if not self.is_polygon[index]:
                by_length[int(self.sizes[index, side])].append(place)
        for length, members in by_length.items():
            codes = [self.segmentation_at(int(chosen[place])) for place in members]
            counts = [code["counts"] for code in codes if not isinstance(code, list)]
            yield members, rle_boxes(counts, length).astype(np.float64)


def collect_masks(data: CocoData) -> MaskArrays:
    """Measure the masks of a split's records, and those that were left out because they cover no pixel."""
    images, columns = data.images, data.images.columns
    rows, pictures = images.instance_rows(crowds=True)
    position = {image_id: place for place, image_id in enumerate(images.ids)}
    left = [one for one in data.left_out if one.image_id in position]
    undefined = np.full((len(left), 4), np.nan)
    left_boxes = np.array([one.box or (np.nan,) * 4 for one in left]).reshape(-1, 4)
    image_of = np.concatenate([pictures, np.array([position[one.image_id] for one in left], dtype=np.intp)])
    sizes = columns.sizes[images.rows].astype(np.float64)

    def segmentation_at(index: int) -> Segmentation:
        if index >= len(rows):
            return left[index - len(rows)].parts
        height, width = sizes[image_of[index]]
        return images.segmentation(int(rows[index]), (int(height), int(width)))

    arrays = MaskArrays(
        image_ids=images.ids,
        ids=np.concatenate([columns.ids[rows], np.array([one.id for one in left], np.int64)]),
        sizes=sizes[image_of],
        stated=np.concatenate([columns.boxes[rows], left_boxes]),
        stated_areas=np.concatenate([columns.areas[rows], undefined[:, 0]]),
        boxes=np.zeros((len(image_of), 4)),
        areas=np.zeros(len(image_of)),
        labels=np.concatenate([columns.labels[rows], np.full(len(left), -1)]),
        is_polygon=np.concatenate([~columns.is_rle[rows], np.ones(len(left), bool)]),
        iscrowd=np.concatenate([columns.iscrowd[rows], np.zeros(len(left), bool)]),
        image_of=image_of,
        path_of=lambda place: images[place].path,
        segmentation_at=segmentation_at,
    )
    _measure_polygons(arrays, columns, rows)
    # Of an outline that crosses itself the halves cancel: a mask with a pixel has at least the area of one.
    thin = np.flatnonzero(arrays.is_polygon[: len(rows)] & (arrays.areas[: len(rows)] < 1))
    arrays.areas[thin] = np.maximum(arrays.areas[thin], arrays.pixel_areas(thin))
    if left:
        parts = [part for one in left for part in one.parts]
        lengths, number = np.array([len(part) for part in parts]), np.array([len(one.parts) for one in left])
        measured = boxes_and_areas(np.concatenate(parts), lengths, number)
        arrays.boxes[len(rows) :], arrays.areas[len(rows) :] = measured
    _measure_codes(arrays)
    return arrays


def _measure_polygons(arrays: MaskArrays, columns: Columns, rows: Chosen) -> None:
    """Fill in boxes and areas of the polygons in the rows of a table."""
    polygons = np.flatnonzero(arrays.is_polygon[: len(rows)])
    for start in range(0, len(polygons), MASKS_AT_ONCE):
        some = polygons[start : start + MASKS_AT_ONCE]
        first = columns.part_offsets[rows[some]]
        number = columns.part_offsets[rows[some] + 1] - first
        begin, end = columns.part_ranges[indices_of(first, number)].T
        points = columns.points(indices_of(begin, end - begin))
        arrays.boxes[some], arrays.areas[some] = boxes_and_areas(points, end - begin, number)


def _measure_codes(arrays: MaskArrays) -> None:
    """Fill in boxes and areas of the run-length codes."""
    codes = np.flatnonzero(~arrays.is_polygon)
    for start in range(0, len(codes), MASKS_AT_ONCE):
        some = codes[start : start + MASKS_AT_ONCE]
        for place, values in arrays._rle_boxes(some, side=0):
            arrays.boxes[some[place]] = values
        shapes = map(arrays.segmentation_at, some.tolist())
        counts = [shape["counts"] for shape in shapes if not isinstance(shape, list)]
        arrays.areas[some] = whole_mask_areas(counts, arrays.sizes[some].prod(axis=1).astype(np.int64).tolist())
