"""COCO masks written by hand, and records without a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mask2former_dinov3.data.coco_json import AnnotationEntry
from mask2former_dinov3.data.records import Category, ImageRecord, ImageTable
from mask2former_dinov3.data.table_builder import TableBuilder


def rle_of(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    """Uncompressed COCO RLE: run lengths down the columns, zeros first."""
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def make_table(records: Iterable[ImageRecord], categories: Sequence[Category]) -> ImageTable:
    """The table of records; categories: in the order of their ids."""
    builder = TableBuilder()
    for row, record in enumerate(records):
        builder.add_image(record.id, record.file_name, str(record.path), record.height, record.width)
        for position, one in enumerate(record.annotations):
            entry = AnnotationEntry(one.id, record.id, one.category_id, one.iscrowd, one.area, one.bbox, None)
            builder.add_annotation(entry, one.segmentation, one.bbox, one.area, row, position)
    return builder.build(categories)
