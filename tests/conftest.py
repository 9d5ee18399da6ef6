"""What all tests share: memory limits of the test processes, a toy COCO data set, a model folder, an ONNX file.

The data set has what real ones have: several classes with gaps in their ids, a polygon of two parts, RLE with a hole, a
crowd, an image without objects, images that are not square.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may ask a hub; tests of hub errors start their own processes
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from mask2former_dinov3 import allocator
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from support.coco import rle_of
from support.memory import give_back_memory
from support.paths import BENCHMARKS
from support.processes import call_in_fork

# The commands keep freed memory for their next tensors; a test process that runs many of them would never shrink.
# Set here, before the modules that take this name are imported.
vars(allocator)["keep_freed_memory"] = lambda: False

CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "bar"}]


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups that one worker of pytest-xdist runs alone come first, then long tests: none is waited for at the end.

    Tests of the exported sample are a group: it and the network that it is compared with are loaded once, and no worker
    waits for another that makes the file.
    """
    for item in items:
        if "sample_file" not in getattr(item, "fixturenames", ()):
            continue
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("onnx"))
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))  # whichever test asks first makes the file
    items.sort(key=lambda item: (not item.get_closest_marker("xdist_group"), not item.get_closest_marker("long")))


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end: the garbage collector need not go through them each time (0.4 s)."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)  # after the fixtures of the test
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    give_back_memory(nextitem is None or nextitem.path != item.path)


def draw_image(
    index: int, rng: np.random.Generator
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[dict[str, Any]]]:
    """One image (H, W, 3) and its annotations (without ids); every fourth image has no objects."""
    height, width = (64, 80) if index % 2 else (72, 64)
    picture = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    if index % 4 == 3:
        return picture, []
    rows, columns = np.mgrid[:height, :width]
    center, radius = rng.integers(20, 44, 2), int(rng.integers(8, 14))
    distance = np.hypot(rows - center[0], columns - center[1])
    ring = (distance < radius) & (distance > radius / 3)
    picture[ring] = (220, 60, 60)
    x, y = (int(value) for value in rng.integers(2, 20, 2))
    parts = [[x, y, x + 24, y, x + 24, y + 6, x, y + 6], [x, y + 12, x + 24, y + 12, x + 24, y + 18, x, y + 18]]
    for part in parts:
        picture[part[1] : part[5], part[0] : part[2]] = (60, 220, 60)
    annotations: list[dict[str, Any]] = [
        {"category_id": 3, "segmentation": rle_of(ring), "area": int(ring.sum()), "iscrowd": 0},
        {"category_id": 7, "segmentation": parts, "area": 288, "iscrowd": 0},
    ]
    if index % 4 == 2:
        crowd = rows > height - 8
        annotations.append({"category_id": 3, "segmentation": rle_of(crowd), "area": int(crowd.sum()), "iscrowd": 1})
    return picture, annotations


def write_split(folder: Path, count: int, seed: int) -> Path:
    """Write `_annotations.coco.json` and its images to `folder`; returns the annotation file."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        picture, drawn = draw_image(index, rng)
        name = f"{index:03}.png"
        Image.fromarray(picture).save(folder / name)
        images.append({"id": 10 + index, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
        for annotation in drawn:
            mask_box = _box(annotation["segmentation"])
            annotations.append({"id": len(annotations) + 1, "image_id": 10 + index, "bbox": mask_box, **annotation})
    file = folder / "_annotations.coco.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return file


def _box(segmentation: Any) -> list[float]:
    """COCO's bbox (x, y, width, height)."""
    if isinstance(segmentation, list):
        points = np.concatenate([np.reshape(part, (-1, 2)) for part in segmentation])
        low, high = points.min(0), points.max(0)
        return [*map(float, low), *map(float, high - low)]
    runs = np.repeat(np.arange(len(segmentation["counts"])) % 2, segmentation["counts"])
    rows, columns = np.nonzero(runs.reshape(segmentation["size"], order="F"))
    return [float(columns.min()), float(rows.min()), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)]


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train (6 images) and valid (4 images) in Roboflow's layout. Read only; see `make_toy_dataset`."""
    root = tmp_path_factory.mktemp("toy")
    write_split(root / "train", 6, seed=0)
    write_split(root / "valid", 4, seed=1)
    return root


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks folder, which is no package: script("baseline")."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def make_toy_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Makes a toy data set that the test may change: make(train=6, valid=4)."""

    def make(train: int = 6, valid: int = 4) -> Path:
        root = tmp_path / "toy"
        write_split(root / "train", train, seed=0)
        if valid:
            write_split(root / "valid", valid, seed=1)
        return root

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights for the toy data set, as training saves it. Read only."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = Mask2FormerDinov3Config.preset(
        "tiny", id2label={0: "disc", 1: "bar"}, label2id={"disc": 0, "bar": 1}, category_ids=[3, 7], num_queries=8
    )
    Mask2FormerDinov3ForInstanceSegmentation(config).save_pretrained(folder)
    Mask2FormerDinov3ImageProcessor({"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as an .onnx file, with its instances in the graph. Read only."""
    from support.onnx_files import export_sample, limit_onnxruntime  # which need an extra

    limit_onnxruntime()
    # All workers of pytest-xdist share one file; their folders have the same parent.
    shared = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else None
    file = (shared or tmp_path_factory.mktemp("onnx")) / "sample.onnx"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            call_in_fork(export_sample, file)
    return file
