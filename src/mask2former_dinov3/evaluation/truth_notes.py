"""Sentences on a score whose ground truth or results are not what they seem: objects twice, results of other images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import NDArray

from ..data.duplicates import near_pairs, same_masks
from .coco_files import GroundTruth, ScoredMask

_COMPARED = 20  # images, and results of each, that are compared with other images


def _edges(masks: Sequence[ScoredMask]) -> NDArray[np.float64]:
    """(N, 4) left, top, right, bottom of the masks."""
    codes = [one["segmentation"] for one in masks]
    boxes = np.asarray(rle_codec.toBbox(codes) if codes else [], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def near_copies(truth: GroundTruth) -> NDArray[np.intp]:
    """Pairs of objects whose masks have an IoU of at least 0.95, whatever their classes: (M, 2) indices, the earlier
    first; without crowd regions."""
    masks = truth.annotations
    image_of = np.array([one["image_id"] for one in masks], dtype=np.int64)
    crowd = np.array([one["iscrowd"] for one in masks], dtype=bool)
    pairs = near_pairs(_edges(masks), image_of)
    pairs = pairs[~crowd[pairs].any(axis=1)]
    if not len(pairs):
        return pairs
    areas = np.array(rle_codec.area([one["segmentation"] for one in masks]), dtype=np.float64)
    return same_masks(
        pairs, areas, lambda index: masks[index]["segmentation"], lambda index: truth.sizes[int(image_of[index])]
    )


def duplicate_notes(truth: GroundTruth) -> list[str]:
    """One sentence if objects are annotated twice: of two equal masks, one detection can match only one."""
    classes = np.array([one["category_id"] for one in truth.annotations], dtype=np.int64)
    pairs = near_copies(truth)
    repeated = len(np.unique(pairs[classes[pairs[:, 0]] == classes[pairs[:, 1]], 1]))
    if not repeated:
        return []
    return [
        f"{repeated} of {len(classes)} objects are annotated twice (same class, masks with an IoU of at least 0.95): a "
        "detection matches one of them, and the other counts as missed; remove one of each"
    ]


def overlap_notes(truth: GroundTruth, results: Sequence[ScoredMask]) -> list[str]:
    """One sentence if no result overlaps any object of its image: their ids may be those of other images."""
    objects, found = _by_image(truth.annotations), _by_image(results)
    both = sorted(objects.keys() & found.keys())
    if not both or any(_overlap(objects[image], found[image]) for image in both):
        return []
    return [
        f"no result overlaps an object of its image, in any of {len(both)} images: the image ids of the results may be "
        "those of other images, or the masks those of pictures of another size"
    ]


def misplaced_notes(truth: GroundTruth, results: Sequence[ScoredMask]) -> list[str]:
    """One sentence if the results of most images fit the objects of another image much better than their own.

    For a score near 0. Of some images with results, the best results are compared with the objects of some images of
    the same size.
    """
    objects, found = _by_image(truth.annotations), _by_image(results)
    chosen = sorted(objects.keys() & found.keys())[:_COMPARED]
    ids = {number: image_id for image_id, number in truth.images.items()}
    better: list[tuple[int, int]] = []
    for image in chosen:
        best = sorted(found[image], key=lambda one: -one.get("score", 0.0))[:_COMPARED]
        others = [other for other in chosen if truth.sizes[other] == truth.sizes[image]]
        fits = {other: _mean_overlap(objects[other], best) for other in others}
        other = max(others, key=lambda one: fits[one])
        if fits[other] >= 0.3 and fits[image] < fits[other] / 2:
            better.append((image, other))
    if len(better) < max(0.8 * len(chosen), 2):
        return []
    image, other = better[0]
    return [
        f"the results of {len(better)} of {len(chosen)} images fit the objects of other images better (those of image "
        f"{ids[image]} the objects of image {ids[other]}): the image ids of the results may be those of other images"
    ]


def _mean_overlap(objects: Sequence[ScoredMask], results: Sequence[ScoredMask]) -> float:
    """Mean over the results of the highest IoU with an object."""
    codes = [[one["segmentation"] for one in side] for side in (results, objects)]
    return float(np.asarray(rle_codec.iou(*codes, [0] * len(objects))).max(axis=1).mean())


def _by_image(masks: Iterable[ScoredMask]) -> dict[int, list[ScoredMask]]:
    found: dict[int, list[ScoredMask]] = defaultdict(list)
    for one in masks:
        found[one["image_id"]].append(one)
    return found


def _overlap(objects: Sequence[ScoredMask], results: Sequence[ScoredMask]) -> bool:
    """Whether any mask of one side has a pixel in common with one of the other."""
    codes = [[one["segmentation"] for one in side] for side in (results, objects)]
    return bool((np.asarray(rle_codec.iou(*codes, [0] * len(objects))) > 0).any())
