"""Draw the picture of a model card: what the model finds in one validation image."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from ..data.coco import Category, ImageRecord
from ..data.coco_types import CocoResult
from ..data.images import read_image
from ..instances import Instances
from ..read_options import AS_STORED, ReadOptions
from ..visualize import Picture, draw_instances, enlargement, rgb_view
from .card import Overlay

CANDIDATES = 50  # images that are considered
MAX_DRAWN = 50  # among more instances one cannot see whether they are right
MAX_BYTES = 300_000
# (longest side in pixels, JPEG quality), tried in this order; the last is for pictures of pure noise
JPEG_SETTINGS = ((1024, 90), (1024, 75), (768, 75), (512, 60))


def choose_image(images: Sequence[ImageRecord]) -> ImageRecord:
    """Choose among the first 50 images the one with most instances up to 50, otherwise the one with fewest above."""

    def rank(record: ImageRecord) -> tuple[bool, int]:
        count = _count_annotated(record)
        return count <= MAX_DRAWN, count if count <= MAX_DRAWN else -count

    return max(images[:CANDIDATES], key=rank)


def draw_card_picture(
    record: ImageRecord, results: Sequence[CocoResult], categories: Sequence[Category], options: ReadOptions = AS_STORED
) -> Overlay:
    """Draw the COCO results of an image with a score of at least 0.5 into it, at most 1024 pixels and 300 kB.

    If fewer results reach 0.5 than the image has annotations, draw as many of the best-scored ones as it has.
    """
    wanted = _count_annotated(record)
    best = sorted(results, key=lambda result: -result["score"])
    threshold = min([0.5, *(result["score"] for result in best[:wanted])])
    threshold = math.floor(threshold * 100) / 100  # rounded down to the two decimals of the caption
    drawn = [result for result in best if result["score"] >= threshold]
    labels = {category.id: label for label, category in enumerate(categories)}
    instances = Instances(
        record.height,
        record.width,
        tuple(result["segmentation"] for result in drawn),
        np.array([labels[result["category_id"]] for result in drawn], np.int64),
        np.array([result["score"] for result in drawn], np.float32),
        tuple((category.id, category.name) for category in categories),
    )
    image, instances = shrink_to_card(rgb_view(read_image(record.path, options)), instances)
    picture = draw_instances(image, instances, scale=enlargement(instances))
    sure = sum(result["score"] >= 0.5 for result in best)
    why = "" if threshold >= 0.5 else f"; only {sure} reach 0.50, so the best-scored ones are drawn"
    return Overlay(
        _encode_jpeg(picture),
        f"Found in an image of the validation set with scores of at least {threshold:.2f}: {len(drawn)} instances, "
        f"where {wanted} are annotated{why}.",
    )


def shrink_to_card(image: Picture, instances: Instances) -> tuple[Picture, Instances]:
    """Shrink both to the size of the card's picture: drawing at the size of a photograph would take seconds."""
    small = _shrink(image, JPEG_SETTINGS[0][0])
    if small.shape == image.shape:
        return image, instances
    return small, instances.shrink(*small.shape[:2])


def _count_annotated(record: ImageRecord) -> int:
    return sum(not annotation.iscrowd for annotation in record.annotations)


def _shrink(picture: Picture, side: int) -> Picture:
    """Shrink a picture until its longest side is at most `side` pixels."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _encode_jpeg(picture: Picture) -> bytes:
    """Encode by the first of `JPEG_SETTINGS` that gives at most 300 kB."""
    for side, quality in JPEG_SETTINGS:
        file = io.BytesIO()
        Image.fromarray(_shrink(picture, side)).save(file, "JPEG", quality=quality)
        if file.tell() <= MAX_BYTES:
            break
    return file.getvalue()
