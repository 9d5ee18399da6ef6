"""Errors by kind as tidecv 1.0.1 counts them. Run as a script it writes the numbers that the test pins.

tidecv is not installed with the tests: `pip install tidecv==1.0.1`, then
`PYTHONPATH=src:tests python -m support.tide_reference`.
"""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

from support.coco_reference import Scene, blob, moved

PINNED = Path(__file__).parents[1] / "assets" / "tide.json"
SEEDS = (0, 1, 2, 3)


def scene_with_errors(seed: int) -> Scene:
    """Every kind of error, crowd regions, images without objects and without results; no two scores are equal."""
    scene = Scene(seed)
    rng = scene.rng
    categories = [category["id"] for category in scene.truth["categories"]]
    for image in range(1, 13):
        scene.image(image)
        if image == 12:
            continue
        for _ in range(int(rng.integers(0, 8)) if image > 1 else 0):
            mask = blob(rng, 90, 120, 14 * rng.uniform(0.5, 2))
            if mask.any():
                category = int(rng.choice(categories))
                scene.annotate(image, category, mask)
                for _ in range(int(rng.choice([0, 1, 1, 2, 3]))):
                    guess = category if rng.random() < 0.7 else int(rng.choice(categories))
                    dx, dy = rng.integers(-9, 10, 2)
                    scene.detect(image, guess, moved(mask, int(dx), int(dy)), rng.random())
        for _ in range(int(rng.integers(0, 4))):
            mask = blob(rng, 90, 120, 10)
            if mask.any():
                scene.detect(image, int(rng.choice(categories)), mask, rng.random())
        if image % 3 == 0:
            region = blob(rng, 90, 120, 40)
            if region.any():
                scene.annotate(image, categories[0], region, iscrowd=1)
    return scene


def by_tidecv(scene: Scene, iou: float) -> dict[str, Any]:
    """AP in 0..1 at the IoU, with the AP that each kind of error costs and the number of errors of each kind."""
    tidecv = importlib.import_module("tidecv")

    truth, found = tidecv.Data("truth"), tidecv.Data("results")
    for category in scene.truth["categories"]:
        truth.add_class(category["id"], category["name"])
    for image in scene.truth["images"]:
        truth.add_image(image["id"], image["file_name"])
    for one in copy.deepcopy(scene.truth["annotations"]):
        add = truth.add_ignore_region if one["iscrowd"] else truth.add_ground_truth
        add(one["image_id"], one["category_id"], box=one["bbox"], mask=one["segmentation"])
    for one in copy.deepcopy(scene.results):
        found.add_detection(one["image_id"], one["category_id"], one["score"], mask=one["segmentation"])
    tide = tidecv.TIDE(pos_threshold=iou, mode=tidecv.TIDE.MASK)
    run = tide.evaluate(truth, found, name="scene")
    costs = {**tide.get_main_errors()["scene"], **tide.get_special_errors()["scene"]}
    return {
        "AP": run.ap / 100,
        "costs": {name: float(value) / 100 for name, value in costs.items()},
        "counts": {kind.short_name: count for kind, count in run.count_errors().items()},
    }


def main() -> None:
    """Write the pinned numbers."""
    pinned = {f"{seed} {iou}": by_tidecv(scene_with_errors(seed), iou) for seed in SEEDS for iou in (0.5, 0.75)}
    PINNED.write_text(json.dumps(pinned, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
