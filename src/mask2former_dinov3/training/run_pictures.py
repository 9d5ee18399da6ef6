"""Pictures of a run: training samples at its start, and the same validation images after each evaluation."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..atomic_files import write_bytes
from ..data.coco import CocoData
from ..data.coco_types import CocoResult
from ..data.dataset import CocoInstanceDataset
from ..data.fitting import PixelArray
from ..data.images import read_image
from ..data.records import ImageRecord
from ..data.sampler import EpochPlan
from ..data.segmentation import CompressedRle, Segmentation
from ..errors import UserError
from ..read_options import ReadOptions
from ..reports.picture_sheets import CELL_SIDE, draw_pair, draw_sample, make_sheet
from ..reports.pictures import encode_jpeg

logger = logging.getLogger(__name__)
PICTURES = "pictures"  # of a run folder
SAMPLES = "training_samples.jpg"
SHOWN = 8  # images on a sheet


def show_samples(output_dir: Path, data: CocoData, dataset: CocoInstanceDataset, plan: EpochPlan) -> PixelArray | None:
    """Write the sheet of the first training samples, as the network gets them, with their targets; returns it.

    None if no sample can be read, which the training itself will tell, or, with a warning, if it cannot be written.
    """
    pictures = []
    for position in range(SHOWN):
        key = plan.key_at(position)
        try:
            sample = dataset[key]
        except (UserError, OSError):  # `read_window` counts and names it
            continue
        words = f"{len(sample['mask_labels'])} targets, {data.images[key[1]].file_name}"
        pictures.append((draw_sample(sample, dataset, CELL_SIDE), words))
    return _write(output_dir / PICTURES / SAMPLES, pictures, 4)


def show_progress(
    output_dir: Path, step: int, data: CocoData, results: Sequence[CocoResult], threshold: float, options: ReadOptions
) -> PixelArray | None:
    """Write the sheet of the same validation images at a step: what is annotated, and what is found; returns it.

    results: of the whole split. threshold: least score of what is drawn. None as for `show_samples`.
    """
    categories = tuple((one.id, one.name) for one in data.categories)
    labels = {category: label for label, (category, _) in enumerate(categories)}
    by_image: defaultdict[int, list[tuple[Segmentation, int]]] = defaultdict(list)
    for result in results:
        if result["score"] >= threshold:
            stored = result["segmentation"]
            mask = CompressedRle(size=stored["size"], counts=stored["counts"].encode())
            by_image[result["image_id"]].append((mask, labels[result["category_id"]]))
    pictures = []
    for record in choose_shown(data):
        try:
            image = read_image(record.path, options)
        except (UserError, OSError):  # the evaluation has named it
            continue
        truth = [(one.segmentation, one.label) for one in record.annotations if not one.iscrowd]
        found = by_image[record.id]
        words = f"{len(truth)} annotated, {len(found)} found, {record.file_name}"
        pictures.append((draw_pair(image, truth, found, categories), words))
    return _write(output_dir / PICTURES / f"valid_step_{step:07d}.jpg", pictures, 2)


def choose_shown(data: CocoData) -> list[ImageRecord]:
    """The images on every sheet of a run: evenly spread over those with objects, the first of them included."""
    counts = data.images.instance_counts()
    rows = np.flatnonzero(counts) if counts.any() else np.arange(len(data.images))
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, SHOWN).round().astype(np.int64))] if len(rows) else rows
    return [data.images[int(row)] for row in chosen]


def _write(path: Path, pictures: Sequence[tuple[PixelArray, str]], columns: int) -> PixelArray | None:
    if not pictures:
        return None
    sheet = make_sheet(pictures, columns)
    try:
        write_bytes(path, encode_jpeg(sheet))
    except UserError as error:
        logger.warning("no picture: %s", error)
        return None
    return sheet
