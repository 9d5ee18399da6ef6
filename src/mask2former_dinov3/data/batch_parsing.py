"""Parse the plain majority of annotations many at a time; whatever is unusual is left to the one parser of each.

An annotation is plain if its values have the usual types and its polygons lie in the image and surely cover a pixel.
For these, parsing one by one gives the same result (a test compares) and takes several times as long.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Mapping, Sequence, Set
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from .array_types import Floats, Ints
from .segmentation import FARTHEST_VERTEX, SHORT_WAY, boxes_and_areas

_NUMBERS = frozenset({int, float})


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

    start: place of the first entry in the file. rows: image id -> row of `sizes`, (M, 2) height and width in pixels.
    categories: ids that the file defines; None: not known yet. seen: annotation ids of earlier entries.
    """
    try:
        plain, others = _collect(entries, start, rows, categories, seen)
    except OverflowError:  # an id beyond 64 bits, a coordinate beyond any float: all one by one, to report which
        plain, others = _collect([], start, rows, categories, seen)[0], list(range(len(entries)))
    if not len(plain.ids):
        return plain, others
    sound = _surely_cover_a_pixel(plain, sizes[plain.image_rows])
    others += (plain.positions[~sound] - start).tolist()
    return plain.keep(sound), sorted(others)


def _collect(
    entries: Sequence[object],
    start: int,
    rows: Mapping[int, int],
    categories: Container[int | None] | None,
    seen: Set[int],
) -> tuple[PlainAnnotations, list[int]]:
    """The annotations whose values have the usual types, and the places in `entries` of all others."""
    found: dict[int, tuple[int, ...]] = {}  # annotation id -> position, id, image row, category id, number of parts
    boxes, areas, vertices, vertex_counts = array("d"), array("d"), array("d"), array("q")
    others = []
    for place, entry in enumerate(entries):
        values = _plain_values(entry) if type(entry) is dict else None
        row = None if values is None else rows.get(values[1])
        if values is None or row is None or values[0] in seen or values[0] in found:
            others.append(place)
            continue
        if categories is not None and values[2] not in categories:
            others.append(place)
            continue
        annotation_id, _, category_id, area, box, parts = values
        found[annotation_id] = (start + place, annotation_id, row, category_id, len(parts))
        areas.append(area)
        boxes.extend(box)
        for part in parts:
            vertices.fromlist(part)
            vertex_counts.append(len(part) // 2)
    positions, ids, image_rows, category_ids, part_counts = np.array(list(found.values()), np.int64).reshape(-1, 5).T
    plain = PlainAnnotations(
        positions,
        ids,
        image_rows,
        category_ids,
        np.frombuffer(boxes).reshape(-1, 4),
        np.frombuffer(areas),
        part_counts,
        np.frombuffer(vertex_counts, np.int64),
        np.frombuffer(vertices).reshape(-1, 2),
    )
    return plain, others


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


_PlainValues = tuple[int, int, int, float, list[float], list[list[float]]]


def _plain_values(entry: dict[str, object]) -> _PlainValues | None:
    """(id, image_id, category_id, area, bbox, polygons) of an entry with values of the usual types; otherwise None."""
    get = entry.get
    annotation_id, image_id, category_id, crowd = get("id"), get("image_id"), get("category_id"), get("iscrowd", 0)
    if not (type(annotation_id) is type(image_id) is type(category_id) is type(crowd) is int) or crowd != 0:
        return None
    area, box, parts = get("area"), get("bbox"), get("segmentation")
    if type(box) is not list or len(box) != 4 or type(parts) is not list or not parts:
        return None
    types = set(map(type, (*box, area)))
    for part in parts:
        if type(part) is not list or len(part) < 6 or len(part) % 2:
            return None
        types.update(map(type, part))
    if not types <= _NUMBERS:
        return None
    return cast(_PlainValues, (annotation_id, image_id, category_id, area, box, parts))
