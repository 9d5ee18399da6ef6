"""`--recipe`: what the data and the machine decide, what the user's own options keep, and that it is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from mask2former_dinov3.cli import main
from mask2former_dinov3.cli.train_options import options_of_train
from mask2former_dinov3.config.presets import PUBLISHED, RECIPES
from mask2former_dinov3.config.recipe_files import read_recipe
from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import ConfigError, HubError
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.training import apply_recipe as module
from mask2former_dinov3.training import recipe as suggestions
from mask2former_dinov3.training.apply_recipe import apply_recipe, judge_length
from support.paths import ROOT

BACKBONE = "facebook/dinov3-vits16plus-pretrain-lvd1689m"


def apply(root: Path, **given: Any) -> TrainConfig:
    config, _ = load_config(None, {"dataset_name": str(root), "output_dir": "unused", "recipe": "auto", **given})
    train = root / "train"
    return apply_recipe(config, read_coco(Split("train", train / "_annotations.coco.json", train)), Accelerator())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 24 GB, and weights that the hub would send."""
    for one in (module, suggestions):
        monkeypatch.setattr(one, "memory_of_gpu", lambda: 24.0)
    monkeypatch.setattr(module, "check_access", lambda source, token: None)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes__are_valid_and_say_for_what_they_are(name: str) -> None:
    options = read_recipe(name)
    config, _ = load_config(None, {**options, "dataset_name": "data", "output_dir": "out"})
    assert "images" in config.description
    assert "memory" in config.description
    assert "recipe" not in options


def test_recipes__published_is_that_of_the_launch_script() -> None:
    shipped = json.loads((ROOT / "mask2former-dinov3_smallplus_1024_train_args.json").read_text(encoding="utf-8"))
    own = {"description", "dataset_name", "output_dir"}
    published = read_recipe(PUBLISHED)
    assert {key: value for key, value in published.items() if key not in own} == {
        key: value for key, value in shipped.items() if key not in own
    }


def test_recipes__from_scratch_is_the_measured_one() -> None:
    """But for what follows from the data, and flips, which depend on what the images show."""
    measured = json.loads((SAMPLE / "from_scratch_args.json").read_text(encoding="utf-8"))
    found = read_recipe("from-scratch")
    differ = {key for key in found if found[key] != measured.get(key, TrainConfig.model_fields[key].default)}
    assert differ == {"description", "flip"}


def test_apply_recipe__without_a_gpu_trains_the_small_network(
    toy_dataset: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        config = apply(toy_dataset, learning_rate=0.5, neck="plain")
    assert (config.recipe, config.backbone, config.query_init) == ("from-scratch", "tiny", "seeds")
    assert (config.learning_rate, config.neck) == (0.5, "plain")  # given
    assert config.mask_stride is None  # the plain neck has none to choose
    assert config.seed == 0
    assert "recipe: from-scratch\n" in caplog.text
    assert f"  image_height: {config.image_height}: the images' longer side is" in caplog.text
    assert "learning_rate" not in caplog.text
    assert "--recipe NAME" in caplog.text


@pytest.mark.parametrize(
    ("images", "name", "frozen", "seeds"),
    [(6, "few-images", True, "seeds"), (1_000, "frozen", True, "learned"), (10_000, "full", False, "learned")],
)
def test_apply_recipe__with_a_gpu_follows_the_number_of_images(
    images: int, name: str, frozen: bool, seeds: str, gpu: None, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("FEW_IMAGES", "MANY_IMAGES"):
        monkeypatch.setattr(suggestions, limit, getattr(suggestions, limit) * 6 // images)
    config = apply(toy_dataset)
    assert (config.recipe, config.backbone) == (name, BACKBONE)
    assert (config.freeze_backbone, config.query_init, config.mixed_precision) == (frozen, seeds, "bf16")
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 16


def test_apply_recipe__says_why_the_weights_cannot_be_had(
    gpu: None, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(source: str, token: str | None) -> None:
        raise HubError(f"{source}: expected access to this gated repository, got a refusal for this account")

    monkeypatch.setattr(module, "check_access", refuse)
    with caplog.at_level(logging.INFO):
        config = apply(toy_dataset)
    assert (config.recipe, config.backbone) == ("from-scratch", "tiny")
    assert "recipe: from-scratch (DINOv3's weights cannot be had: facebook/dinov3-vits16plus" in caplog.text


def test_apply_recipe__uses_the_weights_that_were_named(
    toy_dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        config = apply(toy_dataset, backbone="weights/here")
    assert (config.recipe, config.backbone, config.freeze_backbone) == ("few-images", "weights/here", True)
    assert config.mixed_precision is None
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 4  # 16 take minutes on a CPU
    assert "recipe: few-images (the weights weights/here were named)" in caplog.text


def test_apply_recipe__keeps_a_canvas_and_a_length_that_were_given(
    toy_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = apply(toy_dataset, image_height=96, image_width=64, max_train_steps=40)
    assert (config.image_height, config.image_width) == (96, 64)
    assert (config.max_train_steps, config.num_warmup_steps, config.checkpointing_steps) == (40, 4, 4)


def test_apply_recipe__is_stable_when_its_result_is_given_back(
    toy_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    first = apply(toy_dataset)
    again = apply(toy_dataset, **first.model_dump(exclude={"dataset_name", "output_dir", "hub_token"}))
    assert again.model_dump() == first.model_dump()


def test_apply_recipe__without_one_changes_nothing(toy_dataset: Path) -> None:
    config = apply(toy_dataset, recipe=None)
    assert config == TrainConfig(dataset_name=str(toy_dataset), output_dir="unused")


def test_load_config__refuses_a_recipe_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="recipe: expected one of auto, published, few-images, frozen, full, "):
        load_config(None, {"dataset_name": "data", "output_dir": "out", "recipe": "best"})


def test_judge_length__says_how_many_steps_runs_of_this_kind_needed() -> None:
    config = TrainConfig(dataset_name="data", output_dir="out", backbone="tiny")
    (line,) = judge_length(config, 44, 16)
    assert line.startswith("44 steps of 16 images are 704 images; runs of this kind needed about 3,400 ")
    assert line.endswith("set --max-train-steps 213")
    assert list(judge_length(config, 213, 16)) == []
    assert list(judge_length(config.model_copy(update={"head": "runs/x/best"}), 1, 1)) == []


@pytest.mark.parametrize("flag", ["--recipe=published", "--head", "--resume-from-checkpoint"])
def test_train__without_a_file_uses_the_recipe_auto_unless_told_otherwise(flag: str, tmp_path: Path) -> None:
    words = ["--dataset-name", "data", "--output-dir", str(tmp_path)]
    assert options_of_train(None, words) == (None, [*words, "--recipe", "auto"])
    assert options_of_train("a.json", words) == ("a.json", words)
    assert options_of_train(None, [*words, flag, "x"]) == (None, [*words, flag, "x"])


def test_train__goes_on_with_the_options_that_it_was_started_with(toy_dataset: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--dataset_name",
        str(toy_dataset),
        "--output-dir",
        str(tmp_path / "run"),
        "--with_tracking=false",
    ]
    words += ["--image-height", "64", "--image-width", "64", "--max-train-steps", "2", "--checkpointing-steps", "1"]
    assert main([*words, "--save-total-limit", "none"]) == 0
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "ended")
    again = ["train", "--output-dir", str(tmp_path / "run"), "--resume-from-checkpoint", "latest"]
    assert main(again) == 0
    assert json.loads((tmp_path / "run" / "train_config.json").read_text())["backbone"] == "tiny"


def refuse(source: str, token: str | None) -> None:
    raise HubError(f"{source}: expected weights in the local cache or on the hub, got neither")


@pytest.mark.parametrize("recipe", [None, PUBLISHED])
def test_head__of_the_hub_that_cannot_be_had_is_left_out_beside_random_weights(
    recipe: str | None, toy_dataset: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped recipes name one. On a pretrained backbone the run stops before its first step instead."""
    monkeypatch.setattr(module, "check_access", refuse)
    head = {} if recipe else {"head": "facebook/mask2former-swin-small-coco-instance"}
    config = apply(toy_dataset, recipe=recipe, backbone="tiny", **head)
    assert config.head is None
    said = "head: not used, it starts from random weights as tiny does: facebook/mask2former-swin-small-coco-instance: "
    assert said in caplog.text
    with pytest.raises(HubError, match=r"^head: facebook/mask2.*, give head that folder, or null to start the head"):
        apply(toy_dataset, recipe=recipe, backbone=BACKBONE, **head)


def test_head__is_not_asked_for_where_it_is_a_folder_or_the_run_resumes(
    toy_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "check_access", refuse)
    assert apply(toy_dataset, recipe=None, head=str(toy_dataset)).head == str(toy_dataset)
    assert apply(toy_dataset, recipe=None, head="some/head", resume_from_checkpoint="latest").head == "some/head"
