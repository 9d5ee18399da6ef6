"""What trials are trained with: every fault before the first one starts, and recipes that `train` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.errors import ConfigError
from mask2former_dinov3.tuning.trial_recipes import plan_search


@pytest.fixture
def search(tmp_path: Path) -> Path:
    path = tmp_path / "search.json"
    path.write_text(
        json.dumps({"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}, "neck": ["plain", "adapter"]})
    )
    return path


def recipe_file(folder: Path, **options: Any) -> str:
    path = folder / "base.json"
    path.write_text(json.dumps({"dataset_name": "data", "output_dir": "out", "backbone": "tiny", **options}))
    return str(path)


def test_plan_search__recipes_are_those_that_train_takes(search: Path, tmp_path: Path) -> None:
    planned = plan_search(recipe_file(tmp_path, seed=5), ["--max-train-steps", "70"], search, 4)
    assert planned.metric == "AP"
    assert planned.base == {"dataset_name": "data", "backbone": "tiny", "seed": 5, "max_train_steps": 70}
    recipes = [planned.recipe(number, tmp_path / f"trial-{number:03}") for number in range(1, 5)]
    assert len({recipe["learning_rate"] for recipe in recipes}) == 4
    for number, recipe in enumerate(recipes, start=1):
        config, _ = load_config(None, json.loads(json.dumps(recipe)))
        assert config.output_dir == str(tmp_path / f"trial-{number:03}")
        assert {name: getattr(config, name) for name in recipe} == recipe
    assert plan_search(recipe_file(tmp_path, seed=5), ["--max_train_steps=70"], search, 4) == planned
    assert plan_search(recipe_file(tmp_path, seed=6), [], search, 4).trials != planned.trials


def test_plan_search__checks_every_trial(search: Path, tmp_path: Path) -> None:
    """Values that are each valid, in trials that are not, and each fault once."""
    content = {
        "neck": ["plain", "adapter"],
        "mask_stride": [2, None],
        "image_height": {"min": 64, "max": 128},
        "frozen_blocks": [0, 2],
    }
    search.write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        plan_search(recipe_file(tmp_path, freeze_backbone=True), [], search, 20)
    heading, *lines = str(caught.value).split("\n  ")
    assert heading == f"{len(lines)} errors in {search}"
    assert sum(line.startswith("mask_stride: expected null with neck plain") for line in lines) == 1
    assert sum(line.startswith("frozen_blocks: expected 0 with freeze_backbone true") for line in lines) == 1
    (height, *_) = (line for line in lines if line.startswith("image_height: expected a multiple of 16"))
    assert "; use a list of choices (trial 1: neck " in height


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"push_to_hub": True}, "^push_to_hub: expected false, because all trials would be pushed to one repository"),
        ({"resume_from_checkpoint": "latest"}, "^resume_from_checkpoint: expected null, got latest; the same command"),
        ({"hub_token": "hf_x"}, "^hub_token: expected null: the recipes of trials are files, got a token"),
        ({"learning_rte": 1}, "learning_rte: unknown key; nearest is learning_rate"),
    ],
)
def test_plan_search__refuses_recipes_that_trials_cannot_share(
    options: dict[str, Any], message: str, search: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan_search(recipe_file(tmp_path, **options), [], search, 4)
    assert "hf_x" not in str(caught.value)


def test_plan_search__says_when_there_are_fewer_trials(search: Path, tmp_path: Path) -> None:
    search.write_text('{"neck": ["plain", "adapter"]}')
    planned = plan_search(recipe_file(tmp_path), [], search, 10)
    assert len(planned.trials) == 2
    assert planned.notes[-1] == "the search has 2 combinations, so there are 2 trials"
