"""`check-data --suggest`: options that suit the data, each with its reason, and a run that starts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former_dinov3.cli import main
from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.data.check import Report, check_data
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.training.recipe import suggest_recipe
from mask2former_dinov3.training.train import load_data


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def report_of(root: Path) -> Report:
    splits, notes = find_splits(root, valid_split=0)
    return check_data(splits, notes, num_queries=None, full=False)


def suggest(root: Path, gpu_memory: float | None = None) -> dict[str, Any]:
    config = TrainConfig(output_dir="unused", dataset_name=str(root))
    return dict(suggest_recipe(report_of(root).data["train"], config, gpu_memory).options)


def test_suggest__trains_the_sample_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "recipe.json"
    assert main(["check-data", str(SAMPLE), "--suggest", str(file)]) == 0
    shown = capsys.readouterr().out
    config, _ = load_config(file)
    assert Path(config.dataset_name or "") == SAMPLE
    for name in ("image_height", "num_queries", "mask_stride", "matching", "num_train_epochs", "num_warmup_steps"):
        assert f"\n{name}: {json.dumps(getattr(config, name))}\n    " in shown
        assert f" {name}: " in config.description
    words = ["--output-dir", str(tmp_path / "run"), "--max-train-steps", "2", "--checkpointing-steps", "2"]
    words += ["--image-height", "64", "--image-width", "64", "--with-tracking", "false", "--num-queries", "50"]
    assert main(["train", "--config", str(file), *words]) == 0
    assert main(["check-data", str(SAMPLE), "--suggest", str(file)]) == 1
    assert "--suggest: expected a new file" in capsys.readouterr().err


def test_suggest__follows_size_number_and_shape_of_the_data(toy_dataset: Path) -> None:
    """6 images of 72 x 64 and 64 x 80, up to two objects: some lie across, so the canvas is square."""
    found = suggest(toy_dataset)
    assert (found["image_height"], found["image_width"]) == (256, 256)
    assert (found["backbone"], found["num_queries"], found["query_init"]) == ("tiny", 50, "seeds")
    assert found["num_train_epochs"] == 567  # 3,400 images in all
    assert found["num_warmup_steps"] == 30
    assert found["checkpointing_steps"] == 85  # a tenth of 851


@pytest.mark.parametrize(("cores", "told"), [(2, 2), (64, None)])
def test_suggest_recipe__starts_no_more_workers_than_this_machine_has_cores(
    cores: int, told: int | None, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """few-images asks for four; a recipe for another machine (with a GPU's memory given) keeps them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    config, data = TrainConfig(output_dir="unused", dataset_name=str(toy_dataset)), report_of(toy_dataset).data["train"]
    chosen = {one.option: one for one in suggest_recipe(data, config, name="few-images").choices}
    assert (chosen["dataloader_num_workers"].value if "dataloader_num_workers" in chosen else None) == told
    if told:
        assert chosen["dataloader_num_workers"].reason == "4 in the recipe; 2 CPU cores here."
    assert suggest_recipe(data, config, 80.0, name="few-images").options["dataloader_num_workers"] == 4


@pytest.mark.parametrize(
    ("memory", "batch"), [(80, 16), (24, 16), (8, 16), (2.1, 4), (1.6, 1)], ids=lambda value: str(value)
)
def test_suggest__batch_follows_the_memory_of_the_gpu(memory: float, batch: int, toy_dataset: Path) -> None:
    """0.13 GB an image of 256 x 256, by 2.1 GB for 1024 x 1024, and 1.5 GB beside it."""
    found = suggest(toy_dataset, memory)
    assert (found["image_height"], found["image_width"]) == (256, 256)
    assert found["per_device_train_batch_size"] == batch
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 16
    assert found["freeze_backbone"] is True


def test_suggest__scale_keeps_the_smallest_objects(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = [[4, 4, 5, 4, 5, 5, 4, 5]]
    file.write_text(json.dumps(content))
    assert suggest(root, 24)["scale_min"] == 0.29  # a pixel of an image of 72 rows on 256: 1 / 3.56
    assert suggest(root, 24)["scale_max"] == 2.0


def test_suggest__canvas_has_the_shape_of_the_images_and_masks_their_stride(toy_dataset: Path) -> None:
    data = report_of(toy_dataset).data["train"]
    wide = [place for place, record in enumerate(data.images) if record.width > record.height]
    data = replace(data, images=data.images.take(wide))
    options = suggest_recipe(data, TrainConfig(output_dir="unused", dataset_name="data"), 24).options
    assert (options["image_height"], options["image_width"]) == (224, 256)  # 64 x 80 is 205 x 256
    assert options["mask_stride"] == 4
    assert options["dataset_name"] == str(Path("data").resolve())


def test_load_data__warns_of_objects_that_the_smallest_scale_erases(
    toy_dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(
        output_dir="unused", dataset_name=str(toy_dataset), image_height=64, image_width=64, scale_min=0.05
    )
    with caplog.at_level(logging.INFO):
        load_data(config)
    assert (
        "of 10 objects cover less than one pixel of the canvas of 64 x 64 at the smallest random scale" in caplog.text
    )


def test_suggest__needs_objects_to_measure(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    file = root / "train" / "_annotations.coco.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(DatasetError, match="expected a train split with objects to measure, got none"):
        suggest(root)
