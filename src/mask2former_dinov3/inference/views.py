"""Test-time augmentation: an image is predicted as it is and mirrored or turned, and the results are merged.

Instances of all views are grouped by the IoU of their masks within a class, best score first, at most one of each view
in a group. A group keeps its best mask; its score is the sum of its scores divided by the number of views, so what only
one view shows counts little (weighted boxes fusion, arXiv:1910.13302, equation 6, without averaging the shapes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import NDArray

from ..data.array_types import Ints
from ..instances import Instances, Unreported, encode_masks
from .copies import finish_instances
from .image_processing import Prepared
from .settings import InferenceSettings, Tta

VIEWS_IOU = 0.7  # of two masks of one object in different views


class Turn(NamedTuple):
    """What is done to an image, in this order; the image itself is `Turn()`."""

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False


MIRRORED = Turn(mirrored=True)
_FLIPS = (Turn(), MIRRORED, Turn(upside_down=True), Turn(upside_down=True, mirrored=True))
VIEWS: dict[Tta, tuple[Turn, ...]] = {
    "none": (Turn(),),
    "horizontal": (Turn(), MIRRORED),
    "both": _FLIPS,
    "all": (*_FLIPS, *(one._replace(transposed=True) for one in _FLIPS)),
}


def turn(prepared: Prepared, view: Turn) -> Prepared:
    """An image on its canvas, turned; what is real stays at the top left, what is padding at the right and bottom."""
    values, mask, (height, width) = prepared
    if view.transposed:
        values, mask, (height, width) = values.transpose(0, 2, 1), mask.T, (width, height)
    rows, columns = int(mask.any(1).sum()), int(mask.any(0).sum())
    real = values[:, :rows, :columns]
    turned = values.copy()
    turned[:, :rows, :columns] = real[:, :: -1 if view.upside_down else 1, :: -1 if view.mirrored else 1]
    return Prepared(turned, np.ascontiguousarray(mask), (height, width))


def undo_turn(found: Instances, view: Turn) -> Instances:
    """The instances of a turned image on the image itself. Memory: one mask at a time."""
    if view == Turn():
        return found

    def turned(mask: NDArray[np.generic]) -> NDArray[np.generic]:
        mask = mask[:: -1 if view.upside_down else 1, :: -1 if view.mirrored else 1]
        return mask.T if view.transposed else mask

    rles = [encode_masks(turned(found.mask(index))[None])[0] for index in range(len(found))]
    height, width = (found.width, found.height) if view.transposed else (found.height, found.width)
    return replace(found, height=height, width=width, rles=tuple(rles))


def settings_of_views(settings: InferenceSettings) -> InferenceSettings:
    """The settings of each view: every candidate counts, and the limits are those of what is merged."""
    return replace(settings.for_parts(), threshold=0.0, tta="none")


def merge_views(views: Sequence[Instances], settings: InferenceSettings, num_queries: int) -> Instances:
    """One set of instances, best score first, of V views that were turned back.

    settings: with the model's own values for what is None; its threshold, max_detections and copy_overlap are those of
    the result. num_queries: of the model, to say where all of them may be in use.
    """
    found = Instances.concatenate(views)
    order = np.argsort(-found.scores, kind="stable")
    found = found[order]
    view = np.repeat(np.arange(len(views)), [len(one) for one in views])[order]
    leaders, scores = np.zeros(len(found), dtype=bool), np.zeros(len(found), dtype=np.float32)
    for label in np.unique(found.labels).tolist():
        mine = np.flatnonzero(found.labels == label)
        for leader, members in _groups(found, mine, view[mine]):
            leaders[leader] = True
            scores[leader] = found.scores[members].sum() / len(views)
    merged = replace(found, scores=scores)[leaders]
    merged = merged[np.argsort(-merged.scores, kind="stable")]
    least = np.asarray(settings.network_threshold, dtype=np.float32)
    above = merged[merged.scores >= (least[merged.labels] if least.ndim else least)]
    kept = above[: settings.max_detections]
    best = float(merged.scores[0]) if len(merged) and not len(above) else 0.0
    left_out = Unreported(len(above) - len(kept), int(len(above) >= num_queries), best_score=best)
    return finish_instances(replace(kept, left_out=left_out), settings)


def _groups(found: Instances, mine: Ints, view: Ints) -> Iterator[tuple[int, Ints]]:
    """Groups of the same object among the instances `mine` of one class, best first: its leader, and all members."""
    rles = [dict(found.rles[index]) for index in mine.tolist()]
    near = np.asarray(rle_codec.iou(rles, rles, np.zeros(len(rles), np.uint8))).reshape(len(rles), -1) >= VIEWS_IOU
    free = np.ones(len(mine), dtype=bool)
    for index in range(len(mine)):
        if not free[index]:
            continue
        near[index, index] = True  # also where the mask is empty
        candidates = np.flatnonzero(near[index] & free & ((view != view[index]) | (np.arange(len(mine)) == index)))
        _, first = np.unique(view[candidates], return_index=True)  # candidates come best first
        members = candidates[first]
        free[members] = False
        yield int(mine[index]), mine[members]
