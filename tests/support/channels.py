"""Small data sets of images with other channels than RGB, and options of a run on them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.model_folder.folder import save_model_folder
from mask2former_dinov3.weights.input_channels import widen_trained
from mask2former_dinov3.weights.mask2former import TrainedModel, rebuild

from .models import small_model

SIDE = (48, 64)  # height, width in pixels


def write_bands(path: Path, values: np.ndarray, **profile: object) -> Path:
    """(h, w, c) as a TIFF of c samples without a colour."""
    height, width, count = values.shape
    settings = {"photometric": "MINISBLACK", "alpha": "unspecified", **profile}
    size = {"height": height, "width": width, "count": count, "dtype": values.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **size, **settings) as file:
            file.write(np.moveaxis(values, -1, 0))
    return path


def draw_object(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """A rectangle: its mask, (h, w) bool, and its box (left, top, width, height)."""
    height, width = rng.integers(12, 24, 2).tolist()
    top, left = int(rng.integers(0, SIDE[0] - height)), int(rng.integers(0, SIDE[1] - width))
    mask = np.zeros(SIDE, bool)
    mask[top : top + height, left : left + width] = True
    return mask, [left, top, width, height]


def bands_of(mask: np.ndarray, rng: np.random.Generator, signal: int = 4, count: int = 5) -> np.ndarray:
    """(h, w, count) uint16 noise; only channel `signal`, counted from 1, shows the object."""
    values = rng.integers(10_000, 14_000, (*SIDE, count)).astype(np.uint16)
    values[:, :, signal - 1] = np.where(mask, 52_000, 9_000) + rng.integers(0, 500, SIDE)
    return values


def write_split(folder: Path, images: list[str], boxes: list[list[int]]) -> None:
    """The annotation file of a split in Roboflow's layout: one rectangle in each image."""
    entries = []
    for number, (left, top, width, height) in enumerate(boxes, start=1):
        right, bottom = left + width, top + height
        polygon = [left, top, right, top, right, bottom, left, bottom]
        entries.append(
            {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": width * height}
            | {"bbox": [left, top, width, height], "segmentation": [polygon]}
        )
    listed = [
        {"id": number, "file_name": name, "height": SIDE[0], "width": SIDE[1]}
        for number, name in enumerate(images, start=1)
    ]
    content = {"images": listed, "annotations": entries, "categories": [{"id": 1, "name": "patch"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def write_multispectral(root: Path, train: int = 4, valid: int = 2) -> Path:
    """TIFF of five channels of 16 bits, of which only the fourth shows the objects."""
    for seed, (split, count) in enumerate((("train", train), ("valid", valid))):
        rng = np.random.default_rng(seed)
        folder = root / split
        folder.mkdir(parents=True)
        drawn = [draw_object(rng) for _ in range(count)]
        names = [f"{split}{number}.tif" for number in range(count)]
        for name, (mask, _) in zip(names, drawn, strict=True):
            write_bands(folder / name, bands_of(mask, rng))
        write_split(folder, names, [box for _, box in drawn])
    return root


def write_rgb_and_depth(root: Path, train: int = 4, valid: int = 2) -> Path:
    """RGB PNG of noise, and depth of 16 bits beside it in `depth/`, which alone shows the objects."""
    (root / "depth").mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", train), ("valid", valid))):
        rng = np.random.default_rng(seed)
        folder = root / split
        folder.mkdir()
        drawn = [draw_object(rng) for _ in range(count)]
        names = [f"{split}{number}.png" for number in range(count)]
        for name, (mask, _) in zip(names, drawn, strict=True):
            cv2.imwrite(str(folder / name), rng.integers(90, 110, (*SIDE, 3)).astype(np.uint8))
            cv2.imwrite(str(root / "depth" / name), np.where(mask, 60_000, 20_000).astype(np.uint16))
        write_split(folder, names, [box for _, box in drawn])
    return root


def run_options(root: Path, output: Path, **changed: Any) -> dict[str, Any]:
    """Options of a run of seconds."""
    return {
        "dataset_name": str(root),
        "output_dir": str(output),
        "backbone": "tiny",
        "image_height": 64,
        "image_width": 64,
        "scale_min": 1.0,
        "scale_max": 1.0,
        "num_queries": 10,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "mask_feature_size": 32,
        "query_init": "seeds",
        "matching": "pixels",
        "mask_loss": "pixels",
        "max_train_steps": 2,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 0,
        "with_tracking": False,
        "checkpointing_steps": 1,
        **changed,
    }


def wide_model(folder: Path, channels: int) -> Path:
    """A small model of random weights for images of so many channels, as training saves it."""
    model = small_model()
    found = TrainedModel(model.config, dict(model.state_dict()))
    size = {"height": 64, "width": 64}
    processor = Mask2FormerDinov3ImageProcessor(size, [0.3] * channels, [0.2] * channels, channels="all")
    save_model_folder(rebuild(widen_trained(found, channels))[0], processor, folder, {})
    return folder
