"""COCO AP at the images' own size, on the annotation file as it is, and the way from a model to it.

The numbers are those of pycocotools (to 1e-6, tested), computed by faster-coco-eval, which also gives boundary AP
(arXiv:2103.16562). Masks stay RLE between the model and the score, also between processes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.coco import CocoData, ImageRecord, read_coco
from ..data.images import read_image
from ..data.layout import Split
from ..errors import DatasetError
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from ..inference.predictor import load_model
from .coco_files import GroundTruth, Id, Source, read_ground_truth, read_results
from ..atomic_files import check_writable, write_text

AREAS = ("all", "small", "medium", "large")  # COCO's bounds: 32 x 32 and 96 x 96 pixels


def evaluate_coco(
    annotations: Source | Mapping[str, Any],
    predictions: Source | Iterable[Mapping[str, Any]],
    *,
    max_detections: int = 100,
    image_ids: Collection[Id] | None = None,
) -> dict[str, Any]:
    """COCO's scores of a results file (or list) on an annotation file (or what it holds).

    max_detections: the best so many results of an image and category count. 100 is COCO's own; AP, AP50 ... and AR100
    are all at this number (AR100 keeps its name, `max_detections` in the result says what it was).
    image_ids: score only these images.
    Returns AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100 of masks, boundary_AP, box_AP, per_class (name -> AP), each
    in 0..1 or -1 where there is nothing to find; images, detections, max_detections, seconds; notes (sentences a reader
    of the score should see). Raises DatasetError listing everything in either file that cannot be scored.
    """
    if max_detections < 1:
        raise ValueError(f"max_detections: expected at least 1, got {max_detections}")
    start = time.perf_counter()
    truth = read_ground_truth(annotations, image_ids)
    results = read_results(predictions, truth)
    # The number of detections at which each of AR1, AR10, AR100 is read; COCO's code wants them rising and different.
    at = {"AR1": 1, "AR10": min(10, max_detections), "AR100": max_detections}
    limits = sorted(set(at.values()))
    precision, recall = _match(truth, results, "segm", limits)
    metrics: dict[str, Any] = {
        "AP": _mean(precision[:, :, :, 0]),
        "AP50": _mean(precision[0, :, :, 0]),
        "AP75": _mean(precision[5, :, :, 0]),
        "APs": _mean(precision[:, :, :, 1]),
        "APm": _mean(precision[:, :, :, 2]),
        "APl": _mean(precision[:, :, :, 3]),
        **{name: _mean(recall[:, :, 0, limits.index(limit)]) for name, limit in at.items()},
        "boundary_AP": _mean(_match(truth, results, "boundary", limits)[0][:, :, :, 0]),
        "box_AP": _mean(_match(truth, results, "bbox", limits)[0][:, :, :, 0]),
        "per_class": {name: _mean(precision[:, :, index, 0]) for index, name in enumerate(truth.names)},
        "images": len(truth.images),
        "detections": len(results),
        "max_detections": max_detections,
        "notes": [*truth.notes, *coverage_notes(truth, results), *ceiling_notes(truth, max_detections)],
    }
    metrics["seconds"] = round(time.perf_counter() - start, 3)
    return metrics


def coverage_notes(truth: GroundTruth, results: list[dict[str, Any]]) -> list[str]:
    """One sentence when images with objects have no result at all: perhaps the results are for other images."""
    found = {result["image_id"] for result in results}
    wanted = {annotation["image_id"] for annotation in truth.annotations if not annotation["iscrowd"]}
    missed = len(wanted - found)
    return [f"no result for {missed} of {len(wanted)} images with objects; all of theirs count as missed"] * bool(
        missed
    )


def ceiling_notes(truth: GroundTruth, limit: int, reason: str = "max_detections") -> list[str]:
    """What a limit on detections costs on this ground truth: nothing (an empty list), or one sentence with numbers."""
    counts = Counter((a["image_id"], a["category_id"]) for a in truth.annotations if not a["iscrowd"])
    crowded = [count for count in counts.values() if count > limit]
    if not crowded:
        return []
    recalls = list(truth.recall_limit(limit).values())
    # Interpolated AP reads the precision at 101 recalls, 0.00 to 1.00; those that cannot be reached count as 0.
    precisions = [(np.linspace(0, 1, 101) <= recall + 1e-12).mean() for recall in recalls]
    images = len({image for (image, _), count in counts.items() if count > limit})
    return [
        f"{images} of {len(truth.images)} images hold more than {limit} instances of one class ({reason}={limit}; up "
        f"to {max(crowded)}): AP cannot be above {np.mean(precisions):.3f} nor AR above {np.mean(recalls):.3f}, "
        f"however good the masks"
    ]


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


def _match(
    truth: GroundTruth, results: list[dict[str, Any]], kind: str, limits: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (T, R, K, A) at the last of `limits` and recall (T, K, A, M); -1 where there is nothing to find.

    T IoU thresholds 0.50 to 0.95, R recalls 0.00 to 1.00, K categories, A areas (all, small, medium, large), M limits.
    """
    shape = (10, 101, len(truth.names), len(AREAS), len(limits))
    if not truth.annotations:
        return np.full(shape[:-1], -1.0), np.full(shape[:1] + shape[2:], -1.0)
    images = [{"id": number, "height": size[0], "width": size[1]} for number, size in sorted(truth.sizes.items())]
    categories = [{"id": number, "name": name} for number, name in enumerate(truth.names, start=1)]
    sides = []
    for entries in (truth.annotations, results):
        side = COCO(print_function=_silent)
        # Shallow copies: the evaluation writes into the dicts.
        copies = [dict(entry) for entry in entries]
        side.dataset = {"images": images, "categories": categories, "annotations": copies}
        side.createIndex()
        sides.append(side)
    evaluation = COCOeval_faster(*sides, iouType=kind, print_function=_silent)
    evaluation.params.maxDets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"], dtype=np.float64).reshape(shape)
    recall = np.asarray(evaluation.eval["recall"], dtype=np.float64).reshape(shape[:1] + shape[2:])
    return precision[..., -1], recall


def _silent(*_: object) -> None:
    """In place of what faster-coco-eval would print or log."""


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over what is defined, -1 if nothing is: COCO's summary."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


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
