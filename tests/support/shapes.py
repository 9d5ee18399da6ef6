"""Drawn shapes of three classes as a COCO data set with images, labels changed on purpose, and results with errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from support.coco_reference import moved, rle

CLASSES = ("circle", "square", "triangle")
COLOURS = ((240, 90, 80), (90, 160, 250), (110, 210, 120))


def draw_shape(kind: int, height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    """A shape as a mask (height, width) bool."""
    mask = np.zeros((height, width), np.uint8)
    centre = round(x), round(y)
    if kind == 0:
        cv2.circle(mask, centre, round(radius), 1, -1)
    elif kind == 1:
        side = round(radius * 0.9)
        cv2.rectangle(mask, (centre[0] - side, centre[1] - side), (centre[0] + side, centre[1] + side), 1, -1)
    else:
        corners = [(x, y - radius), (x - radius, y + radius * 0.8), (x + radius, y + radius * 0.8)]
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    return mask.astype(bool)


def make_shapes(
    folder: Path | None,
    images: int,
    *,
    size: tuple[int, int] = (240, 320),
    mislabelled: float = 0.1,
    seed: int = 0,
    most: int = 9,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """COCO annotations, results with scores, and the ids of the annotations whose label was changed.

    folder: where images and _annotations.coco.json are written; None: nowhere. mislabelled: the part of the circles
    that are labelled as squares. Results know the true class of most shapes: some are missed, shifted, doubled,
    invented or of another class.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }
    results: list[dict[str, Any]] = []
    changed: list[int] = []
    for number in range(1, images + 1):
        name = f"shapes_{number:05}.jpg"
        truth["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        picture = np.full((height, width, 3), 235, np.uint8)
        picture -= rng.integers(0, 30, (height, width, 1), dtype=np.uint8)
        for row, column in _places(rng, int(rng.integers(1, most + 1))):
            kind = int(rng.integers(3))
            x, y = (column + 0.5) * width / 4, (row + 0.5) * height / 3
            mask = draw_shape(kind, height, width, x, y, rng.uniform(0.2, 0.45) * height / 3)
            picture[mask] = COLOURS[int(rng.integers(3))]
            label = kind
            if kind == 0 and rng.random() < mislabelled:
                label = 1
                changed.append(len(truth["annotations"]) + 1)
            ys, xs = np.nonzero(mask)
            box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "segmentation": rle(mask),
                    "area": float(mask.sum()),
                    "bbox": box,
                    "iscrowd": 0,
                }
            )
            results += _results_on(rng, number, kind, mask)
        if rng.random() < 0.15:
            mask = draw_shape(2, height, width, rng.uniform(30, width - 30), rng.uniform(30, height - 30), 12)
            results.append(_result(number, int(rng.integers(3)), mask, rng.beta(2, 4)))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name), picture[..., ::-1])
    if folder is not None:
        (folder / "_annotations.coco.json").write_text(json.dumps(truth), encoding="utf-8")
    return truth, results, changed


def _places(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Cells of a grid of 3 x 4, so that shapes do not overlap."""
    return [divmod(int(one), 4) for one in rng.choice(12, min(count, 12), replace=False)]


def _results_on(rng: np.random.Generator, image: int, kind: int, mask: np.ndarray) -> list[dict[str, Any]]:
    """What a fair model finds of one shape."""
    found = []
    chance = rng.random()
    if chance < 0.05:
        return [_result(image, kind, moved(mask, 30, 0), rng.beta(2, 3))]
    guess = kind if rng.random() < 0.97 else int(rng.integers(3))
    dx, dy = rng.integers(-2, 3, 2)
    found.append(_result(image, guess, moved(mask, int(dx), int(dy)), 0.4 + 0.59 * rng.beta(6, 2)))
    if chance > 0.93:
        found.append(_result(image, kind, moved(mask, 3, 3), 0.1 + 0.5 * rng.random()))
    return found


def _result(image: int, kind: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": kind + 1, "segmentation": rle(mask), "score": round(float(score), 6)}
