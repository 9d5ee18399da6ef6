"""AP at fixed times of training: our model beside stock Mask2Former on the same ViT.

Both start from random weights and read the same batches in the same order; the rate falls to 0 over the budget, so a
budget of two minutes is another run than the first two minutes of ten. The clock runs in training alone, data loading
included. `--images` counts images seen instead of minutes, which compares learning on machines of any speed. Recipes
are chosen with `--held-out`, which scores on a sixth of the training images that it does not train on; without it the
validation files are scored.

    learning.py --data nuclei --square 256 --minutes 1 2 --seeds 0 1 2 --output learning.json --plot learning.png
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from baseline import build_baseline
from machine import describe_machine
from mask2former_dinov3.allocator import keep_freed_memory
from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.data.coco import CocoData, read_coco
from mask2former_dinov3.data.coco_types import CocoResult
from mask2former_dinov3.data.dataset import collate
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.sampler import TrainingOrder
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.coco_files import GroundTruth, ScoredMask, read_ground_truth, read_results
from mask2former_dinov3.evaluation.evaluate import predict_split
from mask2former_dinov3.model.criterion.loss import Mask2FormerCriterion
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.training.batches import training_dataset
from mask2former_dinov3.training.build_model import build_model, build_processor, resolve_auto
from mask2former_dinov3.training.ema import AveragedWeights
from mask2former_dinov3.training.imbalance import repeat_factors_of
from mask2former_dinov3.training.optimizer import build_optimizer
from plot import Panel, draw_panels
from shapes import shapes_dataset
from stardist_metric import choose_threshold, score_stardist

RECIPE = SAMPLE / "from_scratch_args.json"
# The published model at the recipe's ViT, canvas, batch and rate: what stock Mask2Former is built from.
STOCK = {
    **{"neck": "pyramid", "query_init": "learned", "matching": "points", "mask_loss": "points"},
    **{"mask_stride": None, "encoder_layers": None, "decoder_layers": None, "mask_feature_size": None},
}
HELD_OUT_EVERY = 6
Row = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", default="shapes", help="the folder of a data set, or `shapes`: drawn here")
    found.add_argument("--square", type=int, help="only the images of this width and height")
    found.add_argument(
        "--minutes", type=float, nargs="+", default=[1.0, 2.0], help="evaluate here; the last is the end"
    )
    found.add_argument("--images", type=int, nargs="+", help="evaluate after so many images instead of minutes")
    found.add_argument("--device", default="cpu")
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--sides", nargs="+", choices=["ours", "baseline"], default=["ours", "baseline"])
    found.add_argument("--config", type=Path, default=RECIPE, help="recipe of both sides")
    found.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options that differ from the recipe")
    found.add_argument("--held-out", action="store_true", help="score on a sixth of the training images")
    found.add_argument(
        "--metric",
        choices=["ap", "stardist"],
        default="ap",
        help="`stardist` adds StarDist's metric, its threshold chosen on a sixth of the training images",
    )
    found.add_argument("--output", type=Path, help="add the rows to this JSON file")
    found.add_argument("--plot", type=Path, help="draw all rows of --output")
    return found


def read_splits(root: Path, square: int | None, held_out: bool) -> tuple[CocoData, CocoData]:
    """What is trained on, and what is scored: the validation files, or a sixth of the training images."""
    found, _ = find_splits(root)

    def read(split: str) -> CocoData:
        data = read_coco(found[split])
        fits = [i for i, x in enumerate(data.images) if square is None or x.height == x.width == square]
        return dataclasses.replace(data, images=data.images.take(fits))

    train = read("train")
    if not held_out:
        return train, read("valid")
    scored = train.images[::HELD_OUT_EVERY]
    rest = train.images.take([i for i in range(len(train.images)) if i % HELD_OUT_EVERY])
    return dataclasses.replace(train, images=rest), dataclasses.replace(train, images=scored)


def batches(config: TrainConfig, processor: Any, train: CocoData) -> Iterator[dict[str, Any]]:
    """As `train` reads them, without end."""
    size = int(config.per_device_train_batch_size)  # the recipes here have a number
    factors = repeat_factors_of(config, train)
    order = TrainingOrder(len(train.images), batch_size=size, seed=config.seed, last_step=10**9, repeat_factors=factors)
    data, workers = training_dataset(config, processor, train), config.dataloader_num_workers
    return iter(DataLoader(data, batch_sampler=order, collate_fn=collate, num_workers=workers))


def train_until(
    side: str,
    config: TrainConfig,
    train: CocoData,
    unit: str,
    marks: Sequence[float],
    device: str,
    criterion: type[Mask2FormerCriterion] = Mask2FormerCriterion,
) -> Iterator[tuple[Row, Any, Any]]:
    """Train until the last of `marks`, minutes or images as `unit` says: at each of them what was spent, the model to
    be judged and its image processor. criterion: of our side."""
    torch.manual_seed(config.seed)
    ours = build_model(config, train)
    ours.criterion = criterion(ours.config)
    processor = build_processor(config, ours)
    model: Any = ours
    if side == "baseline":
        model = build_baseline(ours.config, train_backbone=True)
        model.config.category_ids, model.config.id2label = ours.config.category_ids, ours.config.id2label
    model.to(device)
    averaged = AveragedWeights(model, config.ema_decay) if config.ema_decay else None
    optimizer = build_optimizer(model, config)
    peaks = [group["lr"] for group in optimizer.param_groups]
    read = batches(config, processor, train)
    spent: Row = {"minutes": 0.0, "cpu_seconds": 0.0, "images": 0}
    step = reached = 0
    model.train()
    while reached < len(marks):
        start, cpu_start = time.perf_counter(), time.process_time()
        warm = min(1.0, (step + 1) / max(config.num_warmup_steps, 1))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * warm * max(0.0, 1 - spent[unit] / marks[-1])
        batch = next(read)
        masks = [mask.to(device) for mask in batch["mask_labels"]]
        inputs = {
            "pixel_values": batch["pixel_values"].to(device),
            "pixel_mask": batch["pixel_mask"].to(device),
            "class_labels": [labels.to(device) for labels in batch["class_labels"]],
            "mask_labels": masks if side == "ours" else [mask.float() for mask in masks],
        }
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if averaged:
            averaged.update(step)
        spent["minutes"] += (time.perf_counter() - start) / 60
        spent["cpu_seconds"] += time.process_time() - cpu_start
        spent["images"] += config.per_device_train_batch_size
        if spent[unit] >= marks[reached]:
            yield {"mark": marks[reached], **spent}, averaged.model if averaged else model, processor
            model.train()
            reached += 1


def predict(model: Any, processor: Any, data: CocoData) -> list[CocoResult]:
    """At most as many results per image as the model has queries."""
    limit = model.config.num_queries
    return predict_split(model, processor, data, batch_size=4, max_detections=limit, network_scores=True)


def score(results: list[CocoResult], data: CocoData, max_detections: int) -> Row:
    ids = [record.id for record in data.images]
    metrics = evaluate_coco(data.annotations, results, image_ids=ids, max_detections=max_detections)
    return {name: metrics[name] for name in ("AP", "AP50", "AP75", "per_class")}


def score_as_stardist(
    results: list[CocoResult], scored: CocoData, chosen_on: list[CocoResult], choice: CocoData
) -> Row:
    """StarDist's metric of results on `scored`, at the score threshold that is best for those on `choice`."""

    def read(found: list[CocoResult], data: CocoData) -> tuple[GroundTruth, list[ScoredMask]]:
        truth = read_ground_truth(data.annotations, [record.id for record in data.images])
        return truth, read_results(found, truth)

    threshold = choose_threshold(*read(chosen_on, choice))
    [best] = score_stardist(*read(results, scored), thresholds=[threshold])
    return {"threshold": best.threshold, "stardist50": best.accuracy[0.5], "stardist": best.mean}


def draw(rows: list[Row], path: Path) -> None:
    """AP over minutes, CPU-seconds and images of each side's longest budget; the median of the seeds."""
    panels = []
    for key, label in (("minutes", "minutes"), ("cpu_seconds", "CPU-seconds"), ("images", "images seen")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for side in ("baseline", "ours"):
            own = [row for row in rows if row["side"] == side]
            longest = [row for row in own if row["budget"] == max(row["budget"] for row in own)]
            line = [(0.0, 0.0)]
            for mark in sorted({row["mark"] for row in longest}):
                at = [row for row in longest if row["mark"] == mark]
                line.append((statistics.median(row[key] for row in at), statistics.median(row["AP"] for row in at)))
            lines[side] = line
        panels.append(Panel(label, "mask AP", lines))
    draw_panels([panels], path)


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    keep_freed_memory()
    unit, marks = ("images", args.images) if args.images else ("minutes", args.minutes)
    options = dict(word.split("=", 1) for word in args.set)
    with tempfile.TemporaryDirectory() as scratch:
        root = shapes_dataset(Path(scratch)) if args.data == "shapes" else Path(args.data)
        name = " ".join([Path(args.data).name, *([str(args.square)] if args.square else [])])
        train, scored = read_splits(root, args.square, args.held_out)
        for seed in args.seeds:
            for side in args.sides:
                given = {"output_dir": "unused", "dataset_name": str(root), "seed": seed, **options}
                config, _ = load_config(args.config, given | (STOCK if side == "baseline" else {}))
                config = resolve_auto(config, train)
                for spent, model, processor in train_until(side, config, train, unit, marks, args.device):
                    results = predict(model, processor, scored)
                    row = spent | score(results, scored, config.max_detections)
                    if args.metric == "stardist":
                        choice = dataclasses.replace(train, images=train.images[::HELD_OUT_EVERY])
                        chosen_on = predict(model, processor, choice)
                        row |= score_as_stardist(results, scored, chosen_on, choice)
                    told = {"data": name, "held_out": args.held_out, "side": side, "seed": seed, "set": options}
                    whole = {**told, "unit": unit, "budget": marks[-1], **row}
                    print(json.dumps(whole), flush=True)
                    if args.output:
                        keep(args.output, whole)
    if args.output and args.plot:
        draw(json.loads(args.output.read_text())["rows"], args.plot)


def keep(path: Path, row: Row) -> None:
    """One more row, so that a run that is stopped leaves what it has measured."""
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": describe_machine()}
    stored["rows"] = [*stored.get("rows", []), row]
    path.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
