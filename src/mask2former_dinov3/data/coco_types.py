"""Types of what COCO files hold: masks, results, metrics. Keys and units are COCO's own."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class CocoRle(TypedDict):
    """A mask as COCO's compressed run-length encoding: runs down the columns; size: [height, width]."""

    size: list[int]
    counts: str


class CocoResult(TypedDict):
    """One entry of a COCO results file. bbox: [left, top, width, height] in pixels."""

    image_id: int
    category_id: int
    segmentation: CocoRle
    score: float
    bbox: NotRequired[list[float]]


class Metrics(TypedDict, total=False):
    """The content of metrics.json: numbers in 0..1, -1 where COCO leaves a metric undefined.

    per_class: name -> AP. notes: sentences that a reader of the metrics should see. step: optimiser steps so far.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    boundary_AP: float
    box_AP: float
    per_class: dict[str, float]
    images: int
    detections: int
    max_detections: int
    notes: list[str]
    seconds: float
    step: int
