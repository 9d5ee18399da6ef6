"""Choose the bundled sample from the nuclei data set: `python tools/make_sample.py NUCLEI_FOLDER [OUTPUT]`.

NUCLEI_FOLDER holds `train/` and `valid/`, each with `_annotations.coco.json` and PNG images (BBBC038v1, CC0).
From each split the script takes the images with the largest nuclei relative to the image: a tiny model learns these
from random weights within minutes, objects of ten pixels only within hours. Images with more nuclei than COCO scores
(100) are left out. Pixel values do not change; an opaque alpha channel and equal colour channels are dropped, which
halves the files. Annotations are copied unchanged. The same source gives the same sample.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

NUMBER = {"train": 40, "valid": 12}
MAX_FILE = 1_000_000  # bytes
MAX_NUCLEI = 100
OUTPUT = Path(__file__).parents[1] / "src" / "mask2former_dinov3" / "sample"


def read_pixels(path: Path) -> Image.Image:
    """The image without its alpha channel, which must be opaque; one channel when all three are equal."""
    pixels = np.asarray(Image.open(path).convert("RGBA"))  # (H, W, 4)
    if pixels[..., 3].min() < 255:
        raise ValueError(f"{path}: expected an opaque image, got one with transparency; leave it out")
    grey = (pixels[..., :1] == pixels[..., :3]).all()
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels[..., :3]))


def largest_nuclei(coco: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The `number` image records with the largest median nucleus, as a fraction of the image."""
    areas: dict[int, list[float]] = defaultdict(list)
    for annotation in coco["annotations"]:
        areas[int(annotation["image_id"])].append(float(annotation["area"]))
    pool = [record for record in coco["images"] if 0 < len(areas[int(record["id"])]) <= MAX_NUCLEI]

    def order(record: dict[str, Any]) -> tuple[float, str]:
        share = median(areas[int(record["id"])]) / (record["height"] * record["width"])
        return -share, str(record["file_name"])

    return sorted(pool, key=order)[:number]


def keep_images(coco: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """The content of the annotation file for these images only."""
    return {
        **coco,
        "images": [record for record in coco["images"] if int(record["id"]) in ids],
        "annotations": [one for one in coco["annotations"] if int(one["image_id"]) in ids],
    }


def make_split(source: Path, output: Path, number: int) -> None:
    """Write one split of the sample."""
    coco = json.loads((source / "_annotations.coco.json").read_text())
    ids = {int(record["id"]) for record in largest_nuclei(coco, number)}
    kept = keep_images(coco, ids)
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("*.png"):
        old.unlink()
    for record in kept["images"]:
        read_pixels(source / record["file_name"]).save(output / record["file_name"], "PNG", optimize=True)
    (output / "_annotations.coco.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    for path in output.iterdir():
        if path.stat().st_size > MAX_FILE:
            raise ValueError(
                f"{path}: expected at most {MAX_FILE} bytes, got {path.stat().st_size}; leave this image out"
            )
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: {len(ids)} images, {len(kept['annotations'])} annotations, {size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the bundled sample from the nuclei data set.")
    parser.add_argument("source", type=Path, help="folder with train/ and valid/")
    parser.add_argument("output", type=Path, nargs="?", default=OUTPUT)
    arguments = parser.parse_args()
    for split, number in NUMBER.items():
        make_split(arguments.source / split, arguments.output / split, number)


if __name__ == "__main__":
    main()
