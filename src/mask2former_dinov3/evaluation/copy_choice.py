"""Whether dropping copies, instances that lie in a better one of their class, raises F1, and above which overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.array_types import Bools
from ..data.coco_types import CocoRle
from ..inference.copies import parts_inside, without_copies
from .coco_files import ScoredMask
from .matches import Overlaps, match_overlaps
from .operating_point import FEWEST_IMAGES, BestF1, Range, active_images, best_f1, best_point, gain_in_f1
from .score_curves import CURVE_IOUS, score_curve

COPY_OVERLAPS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class CopyChoice:
    """The best of `COPY_OVERLAPS`. overlap: None where dropping copies does not raise the best F1 beyond noise, and on
    fewer than `FEWEST_IMAGES` images.

    dropped: results that it drops, of those at the threshold without it. gain: in F1, of the best overlap, kept or not;
    gains: where 95 % of the resamples of the images lie. overlaps: without the copies where there is an overlap.
    """

    overlap: float | None
    dropped: int
    gain: float
    gains: Range
    overlaps: Overlaps


def choose_copy_overlap(overlaps: Overlaps, results: Sequence[ScoredMask]) -> CopyChoice:
    """Try each overlap on the results above half the best threshold; the others do not come near it.

    overlaps: of `results`.
    """
    matches = match_overlaps(overlaps, CURVE_IOUS[0])
    point = best_point(score_curve(overlaps, matches))
    nothing = CopyChoice(None, 0, 0.0, (0.0, 0.0), overlaps)
    if point is None:
        return nothing
    pairs = _pairs(overlaps, results, point.threshold / 2)
    images = active_images(overlaps, matches)
    before: BestF1 | None = None
    best = nothing
    for overlap in COPY_OVERLAPS:
        kept = _kept(len(overlaps.score), pairs, overlap)
        dropped = int((~kept & (overlaps.score >= point.threshold)).sum())
        if not dropped:
            continue
        without = part_of_overlaps(overlaps, kept)
        before = best_f1(overlaps, matches, images) if before is None else before
        gain, gains = gain_in_f1(before, best_f1(without, match_overlaps(without, CURVE_IOUS[0]), images))
        if best.dropped == 0 or gains[0] > best.gains[0]:
            best = CopyChoice(overlap, dropped, gain, gains, without)
    is_kept = best.gains[0] > 0 and len(images) >= FEWEST_IMAGES
    return best if is_kept else replace(best, overlap=None, overlaps=overlaps)


_Pairs = list[tuple[int, int, float]]


def _pairs(overlaps: Overlaps, results: Sequence[ScoredMask], least: float) -> _Pairs:
    """Pairs of results of an image and class that overlap: the better, the other, the part of the other in the better.

    Of the results with a score of at least `least`, as indices into `overlaps`.
    """
    found: _Pairs = []
    chosen = np.flatnonzero(overlaps.score >= least)
    order = chosen[np.lexsort((chosen, overlaps.result_category[chosen], overlaps.result_image[chosen]))]
    keys = np.stack([overlaps.result_image[order], overlaps.result_category[order]])
    for group in np.split(order, np.flatnonzero(np.diff(keys, axis=1).any(axis=0)) + 1):
        codes = [results[row]["segmentation"] for row in overlaps.result_row[group].tolist()]
        rles = [CocoRle(size=list(code["size"]), counts=str(code["counts"], "ascii")) for code in codes]
        better, worse, part = parts_inside(rles, rles[0]["size"][0]) if len(rles) > 1 else ((), (), ())
        found += zip(group[list(better)].tolist(), group[list(worse)].tolist(), list(part), strict=True)
    return found


def _kept(count: int, pairs: _Pairs, overlap: float) -> Bools:
    """Which of `count` results are no copies; results of an image are in the order of their scores."""
    better, worse, part = (np.array(side) for side in zip(*pairs, strict=True)) if pairs else (np.zeros(0, int),) * 3
    return without_copies(count, better, worse, part, overlap)


def drop_copies(overlaps: Overlaps, results: Sequence[ScoredMask], overlap: float | None, least: float) -> Overlaps:
    """The overlaps without copies; all of them where `overlap` is None. least: lowest score that is looked at."""
    if overlap is None:
        return overlaps
    return part_of_overlaps(overlaps, _kept(len(overlaps.score), _pairs(overlaps, results, least), overlap))


def part_of_overlaps(overlaps: Overlaps, kept: Bools) -> Overlaps:
    """The overlaps of some of the results. kept (D,) bool."""
    place = np.cumsum(kept) - 1
    pairs = kept[overlaps.pair_result]
    return replace(
        overlaps,
        result_row=overlaps.result_row[kept],
        result_image=overlaps.result_image[kept],
        result_category=overlaps.result_category[kept],
        score=overlaps.score[kept],
        result_area=overlaps.result_area[kept],
        pair_result=place[overlaps.pair_result[pairs]],
        pair_object=overlaps.pair_object[pairs],
        pair_iou=overlaps.pair_iou[pairs],
    )
