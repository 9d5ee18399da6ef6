"""The picture of a model card: what the model found in one validation image."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..data.coco import Category, ImageRecord
from ..data.images import read_image
from ..instances import Instances
from ..visualize import Picture, draw_instances, enlargement
from .card import Overlay

FIRST = 50  # images that are looked at
MOST = 50  # instances; among more of them one cannot see whether they are right
MOST_BYTES = 300_000
SIZES = ((1024, 90), (1024, 75), (768, 75), (512, 60))  # longest side in pixels, JPEG quality; the last for pure noise


def image_to_show(images: Sequence[ImageRecord]) -> ImageRecord:
    """Of the first 50 images the one with the most instances up to 50, or else with the fewest above."""

    def rank(record: ImageRecord) -> tuple[bool, int]:
        count = _annotated(record)
        return count <= MOST, count if count <= MOST else -count

    return max(images[:FIRST], key=rank)


def draw_overlay(record: ImageRecord, results: Sequence[dict[str, Any]], categories: Sequence[Category]) -> Overlay:
    """The results (COCO) of an image drawn into it, those with a score of at least 0.5.

    Of a model that is sure of less, as many as are annotated. At most 1024 pixels and 300 kB.
    """
    wanted = _annotated(record)
    best = sorted(results, key=lambda result: -float(result["score"]))
    threshold = min([0.5, *(float(result["score"]) for result in best[:wanted])])
    threshold = math.floor(threshold * 100) / 100  # downwards to what the caption shows
    shown = [result for result in best if float(result["score"]) >= threshold]
    labels = {category.id: label for label, category in enumerate(categories)}
    instances = Instances(
        record.height,
        record.width,
        tuple(result["segmentation"] for result in shown),
        np.array([labels[result["category_id"]] for result in shown], np.int64),
        np.array([result["score"] for result in shown], np.float32),
        tuple((category.id, category.name) for category in categories),
    )
    image, instances = shrunk(read_image(record.path), instances)
    picture = draw_instances(image, instances, scale=enlargement(instances))
    sure = sum(float(result["score"]) >= 0.5 for result in best)
    why = "" if threshold >= 0.5 else f" (as many as are annotated; {sure} reach 0.50)"
    return Overlay(
        _small_jpeg(picture),
        f"What it finds in an image of the validation set, scores of at least {threshold:.2f}: {len(shown)} instances, "
        f"where {wanted} are annotated{why}.",
    )


def _annotated(record: ImageRecord) -> int:
    return sum(not annotation.iscrowd for annotation in record.annotations)


def shrunk(image: Picture, instances: Instances) -> tuple[Picture, Instances]:
    """Both as large as the file will be: drawing at the size of a photograph would take seconds."""
    small = _resized(image, SIZES[0][0])
    if small.shape == image.shape:
        return image, instances
    return small, instances.shrunk(*small.shape[:2])


def _resized(picture: Picture, side: int) -> Picture:
    """A picture whose longest side is `side` pixels at most."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _small_jpeg(picture: Picture) -> bytes:
    """A JPEG file of at most 300 kB, in the best of `SIZES` that keeps to it."""
    for side, quality in SIZES:
        file = io.BytesIO()
        Image.fromarray(_resized(picture, side)).save(file, "JPEG", quality=quality)
        if file.tell() <= MOST_BYTES:
            break
    return file.getvalue()
