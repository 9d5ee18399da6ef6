"""What is left of the instances of an image: calibrated scores, and no copies, which are one object found twice.

Copies are found greedily, best score first, on run-length codes: no bitmap, and in memory only the runs of instances
whose boxes meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..data.array_types import Bools, Floats, Ints
from ..data.coco_types import CocoRle
from ..data.rle import boxes, runs_of_each
from ..instances import Instances
from .score_calibration import UNCHANGED
from .settings import InferenceSettings
from .tiles.runs import Runs


def finish_instances(found: Instances, settings: InferenceSettings) -> Instances:
    """The instances of a whole image as they are reported: with calibrated scores, and without copies.

    found: with scores of the network. settings: their score_calibration, threshold and copy_overlap.
    """
    calibration = settings.score_calibration or UNCHANGED
    if calibration != UNCHANGED:
        scores = calibration.apply(found.scores).astype(np.float32)
        best = float(np.float32(calibration.apply(found.left_out.best_score)))
        found = replace(found, scores=scores, left_out=replace(found.left_out, best_score=best))
        least = np.asarray(settings.threshold_in_order, dtype=np.float32)
        found = found[scores >= (least[found.labels] if least.ndim else least)]
    return suppress_copies(found, settings.copy_overlap)


def suppress_copies(found: Instances, copy_overlap: float | None) -> Instances:
    """The instances without copies, and how many these are in `left_out.copies`.

    copy_overlap: an instance is a copy if more than this fraction of its pixels lies in one instance of its class with
    a higher score that is no copy itself; None or 1: nothing is dropped. As the intersection over the union of two
    masks is at most the fraction of either one in the other, a bound on it would drop no further ones.
    """
    if copy_overlap is None or copy_overlap >= 1 or len(found) < 2:
        return found
    order = np.argsort(-found.scores, kind="stable")
    kept = np.ones(len(found), dtype=bool)
    for label in np.unique(found.labels).tolist():
        mine = order[found.labels[order] == label]
        inside = parts_inside([found.rles[index] for index in mine.tolist()], found.height)
        kept[mine] = without_copies(len(mine), *inside, copy_overlap)
    dropped = len(found) - int(kept.sum())
    return replace(found[kept], left_out=replace(found.left_out, copies=found.left_out.copies + dropped))


def without_copies(count: int, better: Ints, worse: Ints, part: Floats, copy_overlap: float) -> Bools:
    """Which of `count` masks, best first, are no copies; better, worse, part (P,): as `parts_inside` returns them."""
    kept = np.ones(count, dtype=bool)
    near = part > copy_overlap
    pairs = zip(better[near].tolist(), worse[near].tolist(), strict=True)
    for first, second in sorted(pairs, key=lambda pair: pair[::-1]):  # all better ones are decided before
        if kept[first]:
            kept[second] = False
    return kept


def parts_inside(rles: Sequence[CocoRle], height: int) -> tuple[Ints, Ints, Floats]:
    """Which masks of one image lie in which earlier one, and by what fraction of their pixels.

    rles: N masks, best first, of an image `height` pixels high. Returns indices of the earlier and of the later mask
    of each pair that overlaps, and the fraction (P,) each.
    """
    earlier: list[int] = []
    later: list[int] = []
    parts: list[float] = []
    counts = [rle["counts"].encode() for rle in rles]
    for index, others in _meeting(boxes(counts, height)):
        first, *rest = [Runs.of_counts(one) for one in runs_of_each([counts[index], *(counts[i] for i in others)])]
        for other, runs in zip(others, rest, strict=True):
            shared = first.shared(runs)
            if shared:
                worse = runs if other > index else first
                earlier.append(min(index, other))
                later.append(max(index, other))
                parts.append(shared / worse.area)
    return np.array(earlier, dtype=np.int64), np.array(later, dtype=np.int64), np.array(parts, dtype=np.float64)


def _meeting(corners: NDArray[np.int64]) -> Iterator[tuple[int, list[int]]]:
    """Each box with those to its right that it meets; corners (N, 4) x0 y0 x1 y1, the far edges not in it."""
    order = np.argsort(corners[:, 0], kind="stable")
    x0, y0, x1, y1 = corners[order].T
    ends = np.searchsorted(x0, x1)
    for place, index in enumerate(order.tolist()):
        ahead = slice(place + 1, max(int(ends[place]), place + 1))
        meet = (y0[ahead] < y1[place]) & (y1[ahead] > y0[place])
        if meet.any():
            yield index, order[ahead][meet].tolist()
