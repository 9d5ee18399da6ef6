"""The splits that the options of a run name."""

from __future__ import annotations

from pathlib import Path

from ..config.train_config import TrainConfig
from ..data.layout import Split, find_splits
from ..data.read_rules import ReadRules


def find_splits_of(config: TrainConfig) -> tuple[dict[str, Split], list[str]]:
    """The splits that a run reads, and notes on how they were found. Raises DatasetError where there are none."""
    return find_splits(
        Path(config.dataset_name) if config.dataset_name else None,
        train_annotations=config.train_annotations,
        train_images=config.train_images,
        valid_annotations=config.valid_annotations,
        valid_images=config.valid_images,
        test_annotations=config.test_annotations,
        test_images=config.test_images,
        valid_split=config.valid_split,
        rules=ReadRules(config.crowd, config.incomplete_images),
        dataset_format=config.dataset_format,
        classes=config.classes,
    )
