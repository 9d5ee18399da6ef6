"""Evaluate a model by transformers' Trainer: argv are a model folder, a data set, a folder for what comes out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.dataset import CocoInstanceDataset
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.evaluation.trainer_metrics import TrainerMetrics, collate_padded
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.model import Mask2FormerDinov3ForInstanceSegmentation


def main(model_folder: str, dataset: str, output: str) -> None:
    model = Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(model_folder)
    processor = Mask2FormerDinov3ImageProcessor.from_pretrained(model_folder)
    arguments = TrainingArguments(
        output,
        per_device_eval_batch_size=2,
        batch_eval_metrics=True,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
    )
    valid = read_coco(find_splits(Path(dataset))[0]["valid"])
    canvas: dict[str, Any] = {"image_height": 64, "image_width": 64}
    canvas |= {"image_mean": processor.image_mean, "image_std": processor.image_std}
    data = CocoInstanceDataset(valid, **canvas)
    metrics = TrainerMetrics(processor, model.config.id2label, ("AP", "AP50", "AR100"))
    trainer = Trainer(model, arguments, eval_dataset=data, data_collator=collate_padded, compute_metrics=metrics)
    found = trainer.evaluate()
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    (Path(output) / f"{world}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
