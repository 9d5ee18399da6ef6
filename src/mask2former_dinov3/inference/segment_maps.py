"""Instances of one image in the result format of Hugging Face's Mask2Former: a segmentation and its `segments_info`."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch

from ..instances import Instances


class SegmentInfo(TypedDict):
    """One segment. id: its value in the segment map, or the index of its mask. was_fused: always False."""

    id: int
    label_id: int
    was_fused: bool
    score: float


class Segments(TypedDict):
    """segmentation: a map (H, W) int32, masks (N, H, W) bool, or N COCO RLEs. segments_info: best score first."""

    segmentation: Any
    segments_info: list[SegmentInfo]


def to_segment_map(found: Instances, min_visible: float) -> Segments:
    """A map (H, W) int32 of segment ids, -1 on background; the instance with the better score covers the other.

    found: best score first. min_visible: instances of which a smaller fraction remains visible are left out. The ids
    count the instances that remain.
    """
    free = np.ones((found.height, found.width), dtype=bool)
    segment_map = np.full((found.height, found.width), -1, dtype=np.int32)
    kept: list[int] = []
    for index, area in enumerate(found.areas):
        visible = found.mask(index) & free
        if not visible.any() or visible.sum() < min_visible * area:
            continue
        segment_map[visible] = len(kept)
        free &= ~visible
        kept.append(index)
    return Segments(segmentation=torch.from_numpy(segment_map), segments_info=list_segments(found[kept]))


def to_binary_masks(found: Instances) -> Segments:
    """The whole mask of every instance, (N, H, W) bool; masks may overlap."""
    return Segments(segmentation=torch.from_numpy(found.masks), segments_info=list_segments(found))


def to_coco_rles(found: Instances) -> Segments:
    """The whole mask of every instance as a COCO RLE; masks may overlap."""
    return Segments(segmentation=[dict(rle) for rle in found.rles], segments_info=list_segments(found))


def list_segments(found: Instances) -> list[SegmentInfo]:
    """The `segments_info` of N instances, numbered from 0."""
    return [
        SegmentInfo(id=index, label_id=int(label), was_fused=False, score=round(float(score), 6))
        for index, (label, score) in enumerate(zip(found.labels, found.scores, strict=True))
    ]
