"""Formats and classes from one end to the other: trained, saved with the model, and applied in evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former_dinov3.cli import main
from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.data.formats.conversion import convert_data
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import ConfigError, DatasetError
from mask2former_dinov3.training.resume import compare_options
from mask2former_dinov3.training.train import load_data, train

SMALL = {
    "backbone": "tiny",
    "image_height": 64,
    "image_width": 96,
    "max_train_steps": 1,
    "dataloader_num_workers": 0,
    "with_tracking": False,
    "mixed_precision": "no",
}


def make_config(dataset: Path, output: Path, **options: Any) -> TrainConfig:
    return load_config(None, {**SMALL, "dataset_name": str(dataset), "output_dir": str(output), **options})[0]


def test_train__yolo_with_classes_is_scored_on_files_with_the_original_names(
    make_toy_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, run = make_toy_dataset(train=2, valid=2), tmp_path / "run"
    convert_data(find_splits(coco)[0], tmp_path / "yolo", to="yolo")
    config = make_config(tmp_path / "yolo", run, classes='{"disc": "thing", "bar": "thing"}')
    metrics = train(config)
    assert list(metrics["per_class"]) == ["thing"]
    assert metrics["images"] == 2
    saved = json.loads((run / "best" / "config.json").read_text())
    assert saved["class_map"] == {"disc": "thing", "bar": "thing"}
    assert saved["id2label"] == {"0": "thing"}
    assert load_config(run / "train_config.json", {})[0] == config

    words = ["evaluate", "--model", str(run / "best"), "--output", str(tmp_path / "scores")]
    for source in (
        ["--annotations", str(coco / "valid" / "_annotations.coco.json"), "--images", str(coco / "valid")],
        ["--dataset", str(tmp_path / "yolo")],
    ):
        capsys.readouterr()
        assert main([*words, *source]) == 0
        scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
        assert list(scores["per_class"]) == ["thing"]
        assert scores["AP"] == pytest.approx(metrics["AP"], abs=1e-6)


def test_compare_options__another_format_or_map_is_refused(tmp_path: Path) -> None:
    then = make_config(tmp_path, tmp_path / "run", classes={"a": "b"}).model_dump(mode="json")
    with pytest.raises(ConfigError, match="classes: was"):
        compare_options(make_config(tmp_path, tmp_path / "run"), tmp_path, then)


def test_load_data__unknown_names_in_classes_stop_the_run(toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match='got "disk"; nearest is disc'):
        load_data(make_config(toy_dataset, tmp_path, classes={"disk": None}))
    with pytest.raises(ConfigError, match="classes: expected an object of names such as"):
        make_config(toy_dataset, tmp_path, classes="disc")
    with pytest.raises(ConfigError, match="dataset_format: expected one of auto, coco, yolo"):
        make_config(toy_dataset, tmp_path, dataset_format="zip")
