"""A data set of shapes that are not round: bars, crescents, rings, nested, overlapping, of very different sizes.

Drawn from a seed, in Roboflow's COCO layout. A change that helps only on round objects must not gain here. With
`--imbalance 50` the first kind is 50 times as frequent as the last, the others in between, in both splits. Such images
are easier, so that minutes of training tell something: few objects, none of them small, and each kind has a colour.

    shapes.py runs/imbalanced --imbalance 50 --train 600 --valid 300
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as rle_codec

KINDS = ("bar", "crescent", "ring", "star")
COLOURS = np.array([[200, 90, 90], [90, 200, 90], [90, 90, 200], [200, 200, 90]], np.float64)  # of imbalanced kinds
SIDE = 256
Mask = npt.NDArray[np.bool_]


def shapes_dataset(folder: Path, train: int = 156, valid: int = 24, seed: int = 0, imbalance: float = 1.0) -> Path:
    """`folder/{train,valid}` with images of SIDE x SIDE pixels; returns `folder`.

    imbalance: the first kind is so many times as frequent as the last, and each as many times as the next one, as in
    the long-tailed data sets of arXiv:1901.05555.
    """
    shares = imbalance ** -np.linspace(0, 1, len(KINDS))
    chances = None if imbalance == 1 else shares / shares.sum()
    for split, count, own_seed in (("train", train, seed), ("valid", valid, seed + 1)):
        rng = np.random.default_rng(own_seed)
        (folder / split).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            picture, instances = draw_scene(rng, chances)
            name = f"{number:04}.png"
            Image.fromarray(picture).save(folder / split / name)
            images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
            for kind, mask in instances:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation(kind, mask)})
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(KINDS)]
        whole = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(whole), encoding="utf-8")
    return folder


def draw_scene(
    rng: np.random.Generator, chances: npt.NDArray[np.float64] | None = None
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, Mask]]]:
    """An image (SIDE, SIDE, 3) and its instances (label, visible mask), 6 to 18 of them. chances: of the kinds; then 1
    to 5, not below a size of 32, each kind around a colour of its own.

    What is drawn later hides what is below; a ring's hole shows what lies in it. Sizes are log-uniform, 12 to 160.
    """
    picture = np.full((SIDE, SIDE, 3), rng.uniform(60, 200, 3), np.float32)
    instances: list[tuple[int, Mask]] = []
    for _ in range(rng.integers(6, 19) if chances is None else rng.integers(1, 6)):
        kind = int(rng.integers(len(KINDS)) if chances is None else rng.choice(len(KINDS), p=chances))
        mask = draw_shape(KINDS[kind], rng, 12 if chances is None else 32)
        instances = [(other, below & ~mask) for other, below in instances] + [(kind, mask)]
        picture[mask] = rng.uniform(0, 255, 3) if chances is None else COLOURS[kind] + rng.normal(0, 40, 3)
    picture += rng.normal(0, 12, picture.shape)
    # Fewer than 12 visible pixels are not annotated.
    return picture.clip(0, 255).astype(np.uint8), [(kind, mask) for kind, mask in instances if mask.sum() >= 12]


def draw_shape(kind: str, rng: np.random.Generator, smallest: float = 12) -> Mask:
    """One shape of a random size, place and direction."""
    size, angle = math.exp(rng.uniform(math.log(smallest), math.log(160))), rng.uniform(0, 360)
    x, y = rng.uniform(0, SIDE, 2)
    canvas = np.zeros((SIDE, SIDE), np.uint8)

    def ellipse(center: tuple[float, float], axes: tuple[float, float], value: int) -> None:
        cv2.ellipse(canvas, (center, (2 * axes[0], 2 * axes[1]), angle), value, -1)

    if kind == "bar":
        ellipse((x, y), (size / 2, max(2.0, size / rng.uniform(10, 20))), 1)
    elif kind == "ring":
        ellipse((x, y), (size / 2, size / 2.6), 1)
        ellipse((x, y), (size / 2 * 0.6, size / 2.6 * 0.6), 0)
    elif kind == "crescent":
        ellipse((x, y), (size / 2, size / 2), 1)
        turn, step = math.radians(angle), size * 0.25
        ellipse((x + step * math.cos(turn), y + step * math.sin(turn)), (size / 2.4, size / 2.4), 0)
    else:
        corners = np.arange(10) * math.pi / 5 + math.radians(angle)
        radius = np.where(np.arange(10) % 2, size / 5, size / 2)
        outline = np.stack([x + radius * np.cos(corners), y + radius * np.sin(corners)], 1)
        cv2.fillPoly(canvas, [outline.round().astype(np.int32)], 1)
    return canvas.astype(bool)


def annotation(kind: int, mask: Mask) -> dict[str, Any]:
    """COCO's fields of one instance."""
    rle = rle_codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "category_id": kind + 1,
        "segmentation": {"size": [SIDE, SIDE], "counts": rle["counts"].decode()},
        "bbox": [float(value) for value in rle_codec.toBbox(rle)],
        "area": float(mask.sum()),
        "iscrowd": 0,
    }


def main(argv: Sequence[str]) -> None:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("folder", type=Path)
    found.add_argument("--train", type=int, default=156, help="images")
    found.add_argument("--valid", type=int, default=24, help="images")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--imbalance", type=float, default=1.0, help="objects of the first kind per one of the last")
    args = found.parse_args(argv)
    print(shapes_dataset(args.folder, args.train, args.valid, args.seed, args.imbalance))


if __name__ == "__main__":
    main(sys.argv[1:])
