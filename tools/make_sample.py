"""Choose the bundled sample from the nuclei data set: `python tools/make_sample.py NUCLEI_FOLDER [OUTPUT]`.

NUCLEI_FOLDER holds `train/` and `valid/`, each with `_annotations.coco.json` and PNG images (BBBC038v1, CC0).
A kind of image is its size and whether it is grey or in colour, which tells the microscopes and stains of this set
apart. Of every kind a fixed number is taken, spread over brightness, contrast and number of nuclei (farthest point
first), so the same source gives the same sample. Images with more nuclei than COCO scores (100) are left out. Pixels
are kept; an opaque alpha channel and equal colour channels are dropped, which halves the files. Annotations are copied
as they are.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# (width, height, in colour) -> how many of train and of valid
QUOTA: dict[tuple[int, int, bool], tuple[int, int]] = {
    (256, 256, False): (20, 5),
    (320, 256, True): (10, 4),
    (360, 360, False): (4, 1),
    (696, 520, False): (3, 0),
    (640, 512, False): (2, 2),
    (1024, 1024, False): (1, 0),
}
MAX_FILE = 500_000  # bytes; larger files do not belong into a repository
MAX_NUCLEI = 100
OUTPUT = Path(__file__).parents[1] / "src" / "mask2former_dinov3" / "sample"


@dataclass(frozen=True)
class Candidate:
    """One image of the source and what it is judged by."""

    record: dict[str, Any]
    kind: tuple[int, int, bool]
    nuclei: int
    features: tuple[float, float, float]  # mean and deviation of the brightness, square root of the number of nuclei


def read_pixels(path: Path) -> Image.Image:
    """The image without its alpha channel, which must be opaque; one channel when all three are equal."""
    pixels = np.asarray(Image.open(path).convert("RGBA"))  # (H, W, 4)
    if pixels[..., 3].min() < 255:
        raise ValueError(f"{path}: not opaque; dropping its alpha channel would change the picture")
    grey = (pixels[..., :1] == pixels[..., :3]).all()
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels[..., :3]))


def candidates(folder: Path, coco: dict[str, Any]) -> list[Candidate]:
    """All images of one split, in the order of their file names."""
    count = Counter(int(annotation["image_id"]) for annotation in coco["annotations"])
    found = []
    for record in sorted(coco["images"], key=lambda record: str(record["file_name"])):
        image = read_pixels(folder / record["file_name"])
        pixels = np.asarray(image, dtype=np.float64)
        kind = (image.width, image.height, image.mode == "RGB")
        nuclei = count[int(record["id"])]
        features = (float(pixels.mean()), float(pixels.std()), nuclei**0.5)
        found.append(Candidate(record, kind, nuclei, features))
    return found


def spread(pool: list[Candidate], number: int) -> list[Candidate]:
    """`number` of the pool: the most ordinary one, then each time the one least like those already taken.

    The tenth at either end of the number of nuclei is left out where the pool allows it: oddities, which would
    otherwise be the first to be taken.
    """
    order = sorted(pool, key=lambda one: one.nuclei)
    margin = min(len(order) // 10, (len(order) - number) // 2)
    pool = order[margin : len(order) - margin]
    features = np.array([one.features for one in pool])
    features = (features - features.mean(0)) / (features.std(0) + 1e-9)
    taken = [int(np.square(features).sum(1).argmin())]
    while len(taken) < number:
        distance = np.square(features[:, None] - features[None, taken]).sum(2).min(1)
        taken.append(int(distance.argmax()))
    return [pool[index] for index in taken]


def make_split(source: Path, output: Path, column: int) -> None:
    """Write one split of the sample; column selects the numbers of QUOTA."""
    coco = json.loads((source / "_annotations.coco.json").read_text())
    everything = candidates(source, coco)
    chosen: list[Candidate] = []
    for kind, numbers in QUOTA.items():
        pool = [one for one in everything if one.kind == kind and one.nuclei <= MAX_NUCLEI]
        if len(pool) < numbers[column]:
            raise ValueError(f"{source}: expected {numbers[column]} images of kind {kind}, found {len(pool)}")
        chosen += spread(pool, numbers[column]) if numbers[column] else []
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("*.png"):
        old.unlink()
    ids = {int(one.record["id"]) for one in chosen}
    for one in chosen:
        read_pixels(source / one.record["file_name"]).save(output / one.record["file_name"], "PNG", optimize=True)
    kept = {
        **coco,
        "images": [record for record in coco["images"] if int(record["id"]) in ids],
        "annotations": [one for one in coco["annotations"] if int(one["image_id"]) in ids],
    }
    (output / "_annotations.coco.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    for path in output.iterdir():
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"{path}: {path.stat().st_size} bytes is above {MAX_FILE}; lower the quota of its kind")
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: {len(ids)} images, {len(kept['annotations'])} annotations, {size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the bundled sample from the nuclei data set.")
    parser.add_argument("source", type=Path, help="folder with train/ and valid/")
    parser.add_argument("output", type=Path, nargs="?", default=OUTPUT)
    arguments = parser.parse_args()
    for column, split in enumerate(("train", "valid")):
        make_split(arguments.source / split, arguments.output / split, column)


if __name__ == "__main__":
    main()
