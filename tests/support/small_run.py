"""Training runs of seconds: a network of one layer on the toy data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mask2former_dinov3.config.train_config import TrainConfig, load_config

SMALLEST: dict[str, Any] = {
    "backbone": "tiny",
    "image_height": 64,
    "image_width": 64,
    "num_queries": 5,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "mask_feature_size": 32,
    "scale_min": 1.0,
    "scale_max": 1.0,
    "per_device_train_batch_size": 1,
    "max_train_steps": 2,
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "max_grad_norm": 1.0,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "with_tracking": False,
    "mixed_precision": "no",
}


def small_config(dataset: Path, output_dir: Path, **options: Any) -> TrainConfig:
    """The options of a run that takes seconds."""
    values = {**SMALLEST, "dataset_name": str(dataset), "output_dir": str(output_dir), **options}
    return load_config(None, values)[0]


def metric_lines(run: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a run's metrics without what differs from run to run."""
    varying = {"time", "images_per_second", "memory_gb", "seconds"}
    lines = [json.loads(line) for line in (run / file).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in varying} for line in lines]


def weights_equal(first: Path, second: Path) -> bool:
    """Whether two model folders hold the same weights, bit for bit."""
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
