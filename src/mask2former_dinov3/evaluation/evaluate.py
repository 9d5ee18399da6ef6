"""COCO AP at the images' own size, on the annotation file as it is, and the way from a model to it.

The numbers are those of pycocotools (to 1e-6, tested), computed by faster-coco-eval, which also gives boundary AP
(arXiv:2103.16562). Masks stay RLE between the model and the score, also between processes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..atomic_files import check_writable, write_text
from ..data.coco import CocoData, ImageRecord, read_coco
from ..data.images import read_image
from ..data.layout import Split
from ..errors import DatasetError
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from ..inference.predictor import load_model
from .coco_ap import ceiling_notes, evaluate_coco
from .coco_files import read_ground_truth


def match_categories(config: Any, data: CocoData) -> list[int]:
    """For each label of the model, the category id that the data set has for the class of the same name.

    config: its `id2label` (label -> name) is read. Raises DatasetError listing both sides unless model and data set
    have the same names. (A data set in which two classes share a name is refused when it is read.)
    """
    of_model = [str(config.id2label[label]) for label in range(len(config.id2label))]
    of_data = [category.name for category in data.categories]
    if Counter(of_model) != Counter(of_data):
        missing = sorted((Counter(of_data) - Counter(of_model)).elements())
        extra = sorted((Counter(of_model) - Counter(of_data)).elements())
        raise DatasetError(
            f"{data.annotations}: its classes are not those of the model\n"
            f"  annotations: {_listed(of_data)}\n  model:       {_listed(of_model)}\n"
            f"  not in the model: {_listed(missing)}; not in the annotations: {_listed(extra)}\n"
            "  classes are matched by name: rename the categories, or take the model trained on this data set"
        )
    by_name = {category.name: category.id for category in data.categories}
    return [by_name[name] for name in of_model]


def predict_split(
    model: Any,
    processor: Mask2FormerDinov3ImageProcessor,
    data: CocoData,
    *,
    batch_size: int = 1,
    max_detections: int = 100,
    device: torch.device | str | None = None,
    rank: int = 0,
    world: int = 1,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """COCO results of every image i of `data` with i % world == rank, for `evaluate_coco`.

    The lists of all ranks, joined in any order, give the score that one process gives. Memory: one batch of images and
    what `post_process` may take; of an image only RLE stays. The model runs in evaluation mode and without gradients,
    and is left in the modes it came in. device: None for where the model is.
    Raises DatasetError for an image that cannot be read or is not of the size in the annotations, and for classes that
    are not the model's.
    """
    ids = match_categories(model.config, data)
    categories = tuple((category, str(model.config.id2label[label])) for label, category in enumerate(ids))
    device = torch.device(device) if device is not None else model.device
    records = data.images[rank::world]
    results: list[dict[str, Any]] = []
    with (
        _evaluating(model),
        torch.no_grad(),
        tqdm(total=len(records), desc="evaluate", unit="image", disable=not progress, leave=False) as bar,
    ):
        for batch in _loaded_batches(records, processor, batch_size):
            inputs = processor.collate([prepared for _, prepared in batch]).to(device)
            outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
            sizes = [(record.height, record.width) for record, _ in batch]
            found = processor.post_process(
                outputs, sizes, inputs["pixel_mask"], max_detections=max_detections, categories=categories
            )
            for (record, _), instances in zip(batch, found, strict=True):
                results.extend(instances.to_coco(record.id))
            bar.update(len(batch))
    return results


def evaluate_model(
    model: str | Path | None,
    annotations: Path,
    images: Path | None,
    output: Path,
    *,
    max_detections: int = 100,
    batch_size: int = 1,
    device: str | None = None,
    predictions: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a model (as `load_model` takes it) on a COCO file with its images, or the results file `predictions`.

    Leaves metrics.json and predictions.json in `output`, each written whole or not at all, and returns the metrics.
    """
    if predictions is not None:
        check_writable(output)
        metrics = evaluate_coco(annotations, predictions, max_detections=max_detections)
        if not (output / "predictions.json").exists() or not predictions.samefile(output / "predictions.json"):
            shutil.copyfile(predictions, output / "predictions.json")
    else:
        if model is None or images is None:
            raise DatasetError("evaluate: give a model and the folder of the images, or a file of predictions")
        data = read_coco(Split("evaluate", Path(annotations), Path(images)))
        network, processor = load_model(model, device)
        check_writable(output)
        start = time.perf_counter()
        results = predict_split(
            network, processor, data, batch_size=batch_size, max_detections=max_detections, progress=progress
        )
        write_text(output / "predictions.json", json.dumps(results) + "\n")
        metrics = evaluate_coco(annotations, results, max_detections=max_detections)
        if network.config.num_queries < max_detections:
            truth = read_ground_truth(annotations)
            metrics["notes"] += ceiling_notes(truth, network.config.num_queries, "the model's num_queries")
        metrics["seconds"] = round(time.perf_counter() - start, 3)
    write_text(output / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    return metrics


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, then each module's own mode again: parts kept in evaluation mode (frozen ones) stay so."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _loaded_batches(
    records: list[ImageRecord], processor: Mask2FormerDinov3ImageProcessor, batch_size: int
) -> Iterator[list[tuple[ImageRecord, Prepared]]]:
    """Batches of prepared images, the next one being read while the model works on the last."""

    def load(record: ImageRecord) -> tuple[ImageRecord, Prepared]:
        image = read_image(record.path)
        if image.shape[:2] != (record.height, record.width):
            raise DatasetError(
                f"{record.path}: {image.shape[0]}x{image.shape[1]} pixels (height x width), but the annotations say "
                f"{record.height}x{record.width}; masks would not lie on the objects"
            )
        return record, processor.prepare(image)

    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting: deque[Future[tuple[ImageRecord, Prepared]]] = deque()
        coming = iter(records)
        try:
            while True:
                waiting.extend(
                    pool.submit(load, record)
                    for _, record in zip(range(2 * batch_size - len(waiting)), coming, strict=False)
                )
                if not waiting:
                    return
                yield [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
