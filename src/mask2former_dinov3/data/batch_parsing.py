"""Parse the plain majority of annotations many at a time; whatever is unusual is left to the one parser of each.

An annotation is plain if its values have the usual types and its polygons lie in the image and surely cover a pixel.
For these, parsing one by one gives the same result (a test compares) and takes several times as long.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from itertools import chain, compress, repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .array_types import Floats, Ints
from .numbers import identifier
from .segmentation import FARTHEST_VERTEX, SHORT_WAY, boxes_and_areas


class PlainAnnotations(NamedTuple):
    """N annotations with P polygon parts of V vertices."""

    positions: Ints  # (N,) places in the file
    ids: Ints  # (N,)
    image_rows: Ints  # (N,)
    category_ids: Ints  # (N,)
    boxes: Floats  # (N, 4) left, top, width, height in pixels
    areas: Floats  # (N,) square pixels
    part_counts: Ints  # (N,)
    vertex_counts: Ints  # (P,)
    vertices: Floats  # (V, 2) x, y

    def keep(self, wanted: npt.NDArray[np.bool_]) -> PlainAnnotations:
        """The annotations that a mask (N,) selects."""
        if wanted.all():
            return self
        parts = np.repeat(wanted, self.part_counts)
        vertices = np.repeat(parts, self.vertex_counts)
        return PlainAnnotations(
            self.positions[wanted],
            self.ids[wanted],
            self.image_rows[wanted],
            self.category_ids[wanted],
            self.boxes[wanted],
            self.areas[wanted],
            self.part_counts[wanted],
            self.vertex_counts[parts],
            self.vertices[vertices],
        )


def parse_plain(
    entries: Sequence[object],
    start: int,
    rows: Mapping[int, int],
    sizes: npt.NDArray[np.int32],
    categories: Container[int | None] | None,
    seen: Set[int],
) -> tuple[PlainAnnotations, list[int]]:
    """The plain annotations among the entries, and the places in `entries` of all others.

    entries: values of JSON. start: place of the first entry in the file. rows: image id -> row of `sizes`, (M, 2)
    height and width in pixels. categories: ids that the file defines; None: not known yet. seen: annotation ids of
    earlier entries.
    """
    columns = _usual_columns(entries, rows, categories, seen)
    try:
        try:
            plain = _to_arrays(columns, start)
        except TypeError:
            plain = _to_arrays(_keep(columns, map(_are_numbers, columns[5], columns[6])), start)
    except OverflowError:  # an id beyond 64 bits, a coordinate beyond any float: all one by one, to report which
        plain = _to_arrays([[] for _ in columns], start)
    others = np.ones(len(entries), np.bool_)
    if len(plain.ids):
        plain = plain.keep(_surely_cover_a_pixel(plain, sizes[plain.image_rows]) & _first_of_each(plain.ids))
        others[plain.positions - start] = False
        late = _follow_an_odd_one(plain.ids, plain.positions - start, entries, others)
        if late.any():
            others[plain.positions[late] - start] = True
            plain = plain.keep(~late)
    return plain, np.flatnonzero(others).tolist()


_Columns = list[list[Any]]
"""Places among the entries, then the values under the keys of `_KINDS`, of N annotations."""

_DICT, _LIST, _INT, _NUMBERS = frozenset({dict}), frozenset({list}), frozenset({int}), frozenset({int, float})
_KINDS: dict[str, frozenset[type]] = {
    "id": _INT,
    "image_id": _INT,
    "category_id": _INT,
    "area": _NUMBERS,
    "bbox": _LIST,
    "segmentation": _LIST,
}


def _keep(columns: _Columns, wanted: Iterable[bool]) -> _Columns:
    """The annotations that flags (N,) select."""
    flags = list(wanted)
    return [list(compress(column, flags)) for column in columns]


def _usual_columns(
    entries: Sequence[object], rows: Mapping[int, int], categories: Container[int | None] | None, seen: Set[int]
) -> _Columns:
    """The annotations with known ids and values of the usual types; of numbers in lists the types are not known yet.

    The second of the ids becomes the row of the image. Each test is made of a whole column first, which nearly always
    passes: entry by entry takes three times as long.
    """
    columns: _Columns = [list(range(len(entries))), list(entries)]
    if not _DICT.issuperset(map(type, entries)):
        columns = _keep(columns, [type(entry) is dict for entry in entries])
    places, found = columns
    columns = [places, *(list(map(dict.get, found, repeat(key))) for key in _KINDS)]
    crowds = list(map(dict.get, found, repeat("iscrowd"), repeat(0)))
    if crowds.count(0) < len(crowds) or not _INT.issuperset(map(type, crowds)):
        columns = _keep(columns, [type(crowd) is int and crowd == 0 for crowd in crowds])
    for place, kinds in enumerate(_KINDS.values(), 1):
        if not kinds.issuperset(map(type, columns[place])):
            columns = _keep(columns, [type(value) in kinds for value in columns[place]])
    if not seen.isdisjoint(columns[1]):
        columns = _keep(columns, [one not in seen for one in columns[1]])
    columns[2] = list(map(rows.get, columns[2]))
    if None in columns[2]:
        columns = _keep(columns, [row is not None for row in columns[2]])
    if categories is not None and not all(one in categories for one in set(columns[3])):
        columns = _keep(columns, [one in categories for one in columns[3]])
    if not {4}.issuperset(map(len, columns[5])):
        columns = _keep(columns, [len(box) == 4 for box in columns[5]])
    if not _are_outlines(columns[6]):
        columns = _keep(columns, [_are_outlines([parts]) for parts in columns[6]])
    return columns


def _are_outlines(segmentations: list[list[Any]]) -> bool:
    """Whether segmentations are lists of lists of at least three pairs each."""
    parts = list(chain.from_iterable(segmentations))
    if not all(segmentations) or not _LIST.issuperset(map(type, parts)):
        return False
    lengths = _lengths(parts)
    return bool((lengths > 5).all() and not (lengths % 2).any())


def _lengths(lists: list[list[Any]]) -> Ints:
    return np.fromiter(map(len, lists), np.int64, len(lists))


def _are_numbers(box: list[object], parts: list[list[object]]) -> bool:
    return _NUMBERS.issuperset(map(type, chain(box, *parts)))


def _to_arrays(columns: _Columns, start: int) -> PlainAnnotations:
    """The annotations as arrays. Raises TypeError if a list holds anything else than numbers, and OverflowError."""
    places, ids, image_rows, category_ids, areas, boxes, segmentations = columns
    sides, vertices = list(chain.from_iterable(boxes)), array("d")
    parts = list(chain.from_iterable(segmentations))
    for part in parts:
        vertices.fromlist(part)  # raises TypeError for everything in JSON but numbers, true (1) and false (0)
    lengths = _lengths(parts)
    ends = np.cumsum(lengths)
    numbers = np.frombuffer(vertices)
    doubtful = np.flatnonzero((numbers == 0) | (numbers == 1))
    of_part = np.searchsorted(ends, doubtful, side="right")
    offsets = doubtful - (ends - lengths)[of_part]
    doubtful_values = [parts[part][offset] for part, offset in zip(of_part.tolist(), offsets.tolist(), strict=True)]
    if not _NUMBERS.issuperset(map(type, chain(sides, doubtful_values))):
        raise TypeError
    return PlainAnnotations(
        positions=np.array(places, np.int64) + start,
        ids=np.array(ids, np.int64),
        image_rows=np.array(image_rows, np.int64),
        category_ids=np.array(category_ids, np.int64),
        boxes=np.array(sides, np.float64).reshape(-1, 4),
        areas=np.array(areas, np.float64),
        part_counts=_lengths(segmentations),
        vertex_counts=lengths // 2,
        vertices=numbers.reshape(-1, 2),
    )


def _first_of_each(ids: Ints) -> npt.NDArray[np.bool_]:
    """Which ids, (N,), are not those of an earlier place."""
    found = np.zeros(len(ids), np.bool_)
    found[np.unique(ids, return_index=True)[1]] = True
    return found


def _follow_an_odd_one(
    ids: Ints, places: Ints, entries: Sequence[object], others: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which ids, (N,), at these places are those of an earlier one of the others: the later is the duplicate."""
    first: dict[int | None, int] = {}
    for place in np.flatnonzero(others).tolist():
        if isinstance(entry := entries[place], dict):
            first.setdefault(identifier(entry.get("id")), place)
    if first.keys().isdisjoint(ids.tolist()):
        return np.zeros(len(ids), np.bool_)
    return np.array([first.get(one, place) < place for one, place in zip(ids.tolist(), places.tolist(), strict=True)])


def _surely_cover_a_pixel(plain: PlainAnnotations, sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which annotations, (N,), have finite values, lie in their images, are not thin nor very long; see `parse_shape`.

    sizes: (N, 2) height and width of each one's image.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        boxes, areas = boxes_and_areas(plain.vertices, plain.vertex_counts, plain.part_counts)
        low, high = boxes[:, :2], boxes[:, 2:]  # (N, 2) left, top; right, bottom
        inside = (low >= 0).all(1) & (high <= sizes[:, ::-1]).all(1) & (high.max(1) <= FARTHEST_VERTEX)
        thick = areas >= (high - low).sum(1) + 1
        vertices = np.add.reduceat(plain.vertex_counts, np.cumsum(plain.part_counts) - plain.part_counts)  # (N,)
        short = vertices * (high - low).max(1) <= SHORT_WAY
        stated = np.isfinite(plain.boxes).all(1) & np.isfinite(plain.areas) & (plain.areas >= 0)
    found: npt.NDArray[np.bool_] = inside & thick & short & stated
    return found
