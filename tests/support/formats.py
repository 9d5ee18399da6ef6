"""Data sets in other formats, small enough to write in a test, and their masks as pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask2former_dinov3.data.coco import CocoData, read_coco
from mask2former_dinov3.data.layout import Split, find_splits
from mask2former_dinov3.data.rle import run_lengths
from mask2former_dinov3.data.segmentation import polygons_to_runs

Mask = NDArray[np.bool_]


def write_image(path: Path, height: int = 24, width: int = 32, seed: int = 0) -> Path:
    """A picture of noise, PNG or JPEG by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_map(path: Path, labels: NDArray[np.generic]) -> Path:
    """A label map (H, W) with its own type of pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)
    return path


def png_bytes(mask: NDArray[np.generic]) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def masks_of(data: CocoData) -> dict[str, list[tuple[str, Mask]]]:
    """File name -> (class, mask) of every instance that is no crowd region, in file order."""
    names = [category.name for category in data.categories]
    found: dict[str, list[tuple[str, Mask]]] = {}
    for image in data.images:
        found[image.file_name] = []
        for one in image.annotations:
            value = one.segmentation
            runs = (
                polygons_to_runs(value, image.height, image.width)
                if isinstance(value, list)
                else run_lengths(value["counts"])
            )
            flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
            found[image.file_name].append((names[one.label], flat.reshape(image.width, image.height).T))
    return found


def read_split(root: Path, split: str = "train", dataset_format: str = "auto") -> CocoData:
    """The records of a split of a folder, without held-out images. Raises DatasetError with all errors."""
    return read_coco(find_split(root, split, dataset_format))


def find_split(root: Path, split: str = "train", dataset_format: str = "auto") -> Split:
    """A split of a folder, without held-out images."""
    return find_splits(root, valid_split=0, dataset_format=dataset_format)[0][split]
