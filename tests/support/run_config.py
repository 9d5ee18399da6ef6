"""Options of tiny training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mask2former_dinov3.config.train_config import TrainConfig, load_config


def make_config(dataset: Path, output_dir: Path, **options: Any) -> TrainConfig:
    """A run of two steps with a small head on a data set, with other options where they are given."""
    settings: dict[str, Any] = {
        "dataset_name": str(dataset),
        "output_dir": str(output_dir),
        "backbone": "tiny",
        "image_height": 64,
        "image_width": 96,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "mask_feature_size": 32,
        "per_device_train_batch_size": 2,
        "max_train_steps": 2,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "max_grad_norm": 1.0,
        "learning_rate": 5e-4,
        "with_tracking": False,
        "mixed_precision": "no",
        **options,
    }
    return load_config(None, settings)[0]
