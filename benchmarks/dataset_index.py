"""Reading a data set of COCO's size: CPU time and memory of the first process, of the others, and of eight workers.

The set is made by this script: the numbers of train2017, with 862,903 polygons of 24 points. Its image files are one
small JPEG with different comments, so that all that `train` does before the model can be measured too.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from machine import describe_run, write_result
from mask2former_dinov3.config.train_config import TrainConfig
from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import Split, find_splits
from mask2former_dinov3.data.records import ImageTable, load_table
from mask2former_dinov3.training.batches import start_workers
from mask2former_dinov3.training.train import load_data

IMAGES, INSTANCES, POINTS = 118_287, 862_903, 24  # of train2017; 24 is about its mean number of points
HEIGHT, WIDTH, CLASSES = 480, 640, 80
WORKERS = 8


def make_set(folder: Path, images: int, instances: int) -> Path:
    """Write annotations and images in Roboflow's layout; returns the annotation file."""
    train = folder / "train"
    train.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(buffer, "JPEG", quality=10)
    start, rest = buffer.getvalue()[:2], buffer.getvalue()[2:]
    for number in range(1, images + 1):
        comment = f"{number} ".encode() + b"." * (number % 997)
        marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big")
        (train / f"{number:012d}.jpg").write_bytes(start + marker + comment + rest)
    path = train / "_annotations.coco.json"
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write('{"info": {"description": "made"}, "licenses": [], "images": [')
        entry = '{{"license": 1, "file_name": "{0:012d}.jpg", "height": {1}, "width": {2}, "id": {0}}}'
        file.write(", ".join(entry.format(number, HEIGHT, WIDTH) for number in range(1, images + 1)))
        file.write('], "annotations": [')
        for first in range(0, instances, 20_000):
            count = min(20_000, instances - first)
            file.write((", " if first else "") + ", ".join(_make_annotations(rng, first, count, images)))
        names = [
            {"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)
        ]
        file.write(f'], "categories": {json.dumps(names)}}}')
    return path


def _make_annotations(rng: np.random.Generator, first: int, count: int, images: int) -> list[str]:
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    centres = rng.uniform((80, 80), (WIDTH - 80, HEIGHT - 80), (count, 2))
    radii = rng.uniform(6, 75, (count, 1)) * rng.uniform(0.7, 1, (count, POINTS))
    points = centres[:, None] + np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1)
    points = points.round(2)  # (count, POINTS, 2)
    low, high = points.min(1), points.max(1)
    boxes = np.concatenate([low, high - low], 1).round(2)
    (x, y), (next_x, next_y) = np.moveaxis(points, -1, 0), np.moveaxis(np.roll(points, -1, 1), -1, 0)
    areas = np.abs((x * next_y - next_x * y).sum(1)) / 2
    entry = '{{"segmentation": [{}], "area": {:.4f}, "iscrowd": 0, "image_id": {}, "bbox": {}, "category_id": {}, '
    entry += '"id": {}}}'
    image_ids, classes = rng.integers(1, images + 1, count), rng.integers(1, CLASSES + 1, count)
    return [
        entry.format(
            points[row].ravel().tolist(), areas[row], image_ids[row], boxes[row].tolist(), classes[row], first + row + 1
        )
        for row in range(count)
    ]


def in_own_process(job: Callable[[], object]) -> dict[str, float]:
    """CPU seconds and peak memory (GB) of a job in a new process, beside those of its imports."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (job,))


def _measure(job: Callable[[], object]) -> dict[str, float]:
    before, start = _peak(), time.process_time()
    job()
    return {"cpu_seconds": time.process_time() - start, "imports_gb": before, "peak_gb": _peak()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def read(path: Path, index: Path | None = None) -> None:
    """Read the annotations; with `index`, store the arrays there."""
    data = read_coco(Split("train", path, path.parent))
    if index is not None:
        data.images.save(index)


def open_index(index: Path) -> None:
    """Open stored arrays, and use some."""
    table = load_table(index)
    table.instance_counts()
    for place in range(0, len(table), 1000):
        list(table[place].annotations)


def load_as_train(dataset: Path, valid_split: float = 0.1) -> None:
    """What `train` does before it builds the model."""
    load_data(TrainConfig(dataset_name=str(dataset), output_dir="unused", valid_split=valid_split))


def check_fully(dataset: Path) -> None:
    """What `check-data` does: every image decoded, holes looked for, ceilings measured."""
    splits, notes = find_splits(dataset, valid_split=0.1)
    check_data(splits, notes).text()


class _Records(Dataset[int]):
    """The records of a table with all their polygons, as a training sample takes them, without its image."""

    def __init__(self, table: ImageTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> int:
        return sum(len(part) for one in self.table[index].annotations for part in one.segmentation)


def measure_workers(path: Path) -> dict[str, float]:
    """PSS (GB) of this process and its workers together, after the first batch and at the end of an epoch."""
    data = read_coco(Split("train", path, path.parent))
    loader = DataLoader(_Records(data.images), batch_size=64, num_workers=WORKERS, multiprocessing_context="fork")
    batches = start_workers(loader)
    next(batches)
    first = _pss()
    points, last = 0, first
    for number, batch in enumerate(batches):
        points += int(batch.sum())
        if number % 100 == 0:
            last = max(last, _pss())
    return {"workers": WORKERS, "points": points, "first_pss_gb": first, "largest_pss_gb": last}


def _pss() -> float:
    me = psutil.Process()
    return float(sum(one.memory_full_info().pss for one in [me, *me.children()])) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--instances", type=int, default=INSTANCES)
    parser.add_argument("--folder", type=Path, help="keep the set in this folder, or take the one that is there")
    parser.add_argument("--check-data", action="store_true", help="also measure check-data, which decodes all images")
    parser.add_argument("--output", type=Path, help="folder for the result, such as benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = describe_run()
    with tempfile.TemporaryDirectory() as temporary:
        dataset, index = arguments.folder or Path(temporary) / "set", Path(temporary) / "index"
        path = dataset / "train" / "_annotations.coco.json"
        if not path.is_file():
            make_set(dataset, arguments.images, arguments.instances)
        jobs: dict[str, Callable[[], object]] = {
            "json.loads of the file": partial(_load_plainly, path),
            "first process: annotations to arrays": partial(read, path),
            "the same, arrays written for the others": partial(read, path, index),
            "another process: the arrays opened": partial(open_index, index),
            "train, until the model is built (one file, valid_split 0.1)": partial(load_as_train, dataset),
            "the same, nothing held out (valid_split 0)": partial(load_as_train, dataset, 0.0),
        }
        if arguments.check_data:
            jobs["check-data (two splits, every image decoded)"] = partial(check_fully, dataset)
        rows = {}
        for name, job in jobs.items():
            rows[name] = in_own_process(job)
            print(name, rows[name], file=sys.stderr, flush=True)
        workers = measure_workers(path)
    plain = next(iter(rows.values()))["cpu_seconds"]
    lines = ["| what | CPU seconds | times json.loads | peak memory (GB) | of that imports |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row['cpu_seconds']:.1f} | {row['cpu_seconds'] / plain:.2f} | {row['peak_gb']:.2f} | "
        f"{row['imports_gb']:.2f} |"
        for name, row in rows.items()
    ]
    growth = workers["largest_pss_gb"] / workers["first_pss_gb"] - 1
    lines += [
        "",
        f"{WORKERS} workers and the process that started them, PSS: {workers['first_pss_gb']:.2f} GB after the first "
        f"batch, at most {workers['largest_pss_gb']:.2f} GB over an epoch of all records ({growth:+.1%}).",
    ]
    text = "\n".join(lines)
    print(text)
    if arguments.output is not None:
        facts |= {"images": arguments.images, "instances": arguments.instances, "points of each": POINTS}
        content = {"rows": rows, "workers": workers}
        write_result(arguments.output, ["dataset_index"], "Reading a data set of COCO's size", facts, text, content)
    return 0


def _load_plainly(path: Path) -> None:
    json.loads(path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
