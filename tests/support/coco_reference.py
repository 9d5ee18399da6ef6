"""Scenes with known instances and results, and their score by pycocotools itself: what `evaluate_coco` must equal."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former_dinov3.instances import encode_masks


def blob(rng: np.random.Generator, height: int, width: int, radius: float) -> np.ndarray:
    """An ellipse somewhere, partly outside perhaps, (height, width) bool."""
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    a, b = radius * rng.uniform(0.6, 1.4, 2)
    inside: np.ndarray = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
    return inside


def moved(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    return np.roll(mask, (dy, dx), (0, 1))


def rle(mask: np.ndarray) -> dict[str, Any]:
    return dict(encode_masks(mask[None])[0])


class Scene:
    """Ground truth and results drawn by a seeded generator, in COCO's format."""

    def __init__(self, seed: int = 0, categories: tuple[int, ...] = (1, 7, 90)) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": number, "name": f"class {number}"} for number in categories],
        }
        self.results: list[dict[str, Any]] = []

    def image(self, number: int, height: int = 90, width: int = 120) -> None:
        self.truth["images"].append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})

    def annotate(
        self, image: int, category: int, mask: np.ndarray, iscrowd: int = 0, area: float | None = None
    ) -> None:
        encoded = rle(mask)
        self.truth["annotations"].append(
            {
                "id": len(self.truth["annotations"]) + 1,
                "image_id": image,
                "category_id": category,
                "segmentation": encoded,
                "area": float(mask.sum()) if area is None else area,
                "bbox": coco_mask.toBbox(encoded).tolist(),
                "iscrowd": iscrowd,
            }
        )

    def detect(self, image: int, category: int, mask: np.ndarray, score: float) -> None:
        self.results.append(
            {"image_id": image, "category_id": category, "segmentation": rle(mask), "score": float(score)}
        )

    def crowd_of(self, image: int, count: int, radius: float, levels: int | None = None) -> None:
        """`count` instances with detections that are shifted, missed, doubled or of the wrong class."""
        size = next((one["height"], one["width"]) for one in self.truth["images"] if one["id"] == image)
        categories = [category["id"] for category in self.truth["categories"]]
        for _ in range(count):
            mask = blob(self.rng, *size, radius * self.rng.uniform(0.4, 2.5))
            if not mask.any():
                continue
            category = int(self.rng.choice(categories))
            self.annotate(image, category, mask, iscrowd=int(self.rng.random() < 0.05))
            for _ in range(int(self.rng.choice([0, 1, 1, 1, 2]))):
                guess = category if self.rng.random() < 0.9 else int(self.rng.choice(categories))
                score = self.rng.random() if levels is None else round(self.rng.random() * levels) / levels
                shift = self.rng.integers(-2, 3, 2)
                self.detect(image, guess, moved(mask, int(shift[0]), int(shift[1])), score)


def by_pycocotools(
    truth: dict[str, Any], results: list[dict[str, Any]], kind: str, max_detections: int = 100, boundary: bool = False
) -> dict[str, float]:
    """AP and AR straight from pycocotools' arrays, whose own summary knows no other maxDets than 100."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        found = ground.loadRes(copy.deepcopy(results)) if results else COCO()
        evaluation = (BoundaryEval if boundary else COCOeval)(ground, found, kind)
        limits = sorted({1, min(10, max_detections), max_detections})
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    names = {category["id"]: category["name"] for category in truth["categories"]}
    return {
        "AP": mean(precision[..., 0, -1]),
        "AP50": mean(precision[0, ..., 0, -1]),
        "AP75": mean(precision[5, ..., 0, -1]),
        "APs": mean(precision[..., 1, -1]),
        "APm": mean(precision[..., 2, -1]),
        "APl": mean(precision[..., 3, -1]),
        "AR1": mean(recall[..., 0, 0]),
        "AR10": mean(recall[..., 0, limits.index(min(10, max_detections))]),
        "AR100": mean(recall[..., 0, -1]),
        **{names[category]: mean(precision[:, :, k, 0, -1]) for k, category in enumerate(evaluation.params.catIds)},
    }


class BoundaryEval(COCOeval):
    """Boundary AP written down from its definition (arXiv:2103.16562): min(mask IoU, IoU of the inner borders)."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        truth = self._gts[imgId, catId]
        order = np.argsort([-one["score"] for one in self._dts[imgId, catId]], kind="mergesort")
        found = [self._dts[imgId, catId][index] for index in order][: self.params.maxDets[-1]]
        borders = coco_mask.iou(
            [border(one["segmentation"]) for one in found],
            [border(one["segmentation"]) for one in truth],
            [int(one["iscrowd"]) for one in truth],
        )
        real = [not one["iscrowd"] for one in truth]
        ious[:, real] = np.minimum(ious[:, real], borders[:, real])
        return ious


def border(segmentation: dict[str, Any]) -> Any:
    mask = coco_mask.decode(segmentation)
    steps = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    inner = cv2.erode(np.pad(mask, 1), np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1]
    return coco_mask.encode(np.asfortranarray(mask - inner))


def random_scene(seed: int, levels: int | None = None) -> Scene:
    scene = Scene(seed)
    for number in (3, 1, 200, 15):
        scene.image(number, 80 + 7 * number % 50, 200)
    for number, count in ((3, 25), (1, 0), (200, 40), (15, 12)):
        scene.crowd_of(number, count, 14, levels)
    for _ in range(5):  # found where nothing is
        scene.detect(1, 7, blob(scene.rng, 87, 200, 12), scene.rng.random())
    return scene


def disturbed(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Results made from annotations: grown, shrunk, shifted, doubled or missed, with scores that tie at times."""
    rng = np.random.default_rng(0)
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
    results = []
    for annotation in truth["annotations"]:
        mask = ground.annToMask(annotation)
        for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
            kernel = np.ones((3, 3), np.uint8)
            guess = [cv2.dilate, cv2.erode][int(rng.integers(2))](mask, kernel, iterations=int(rng.integers(0, 3)))
            encoded = rle(moved(guess, *rng.integers(-1, 2, 2)))
            score = round(float(rng.random()), 2)
            results.append({**annotation, "segmentation": encoded, "score": score})
            results[-1] = {key: results[-1][key] for key in ("image_id", "category_id", "segmentation", "score")}
    return results
