"""COCO masks written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np


def rle_of(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    """Uncompressed COCO RLE: run lengths down the columns, zeros first."""
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}
