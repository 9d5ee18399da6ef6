"""The options against imbalanced classes in a run: what it says, does and saves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from mask2former_dinov3.data.class_balance import automatic_class_weights, image_repeat_factors
from mask2former_dinov3.errors import ConfigError, OptionError
from mask2former_dinov3.model import Mask2FormerDinov3Config
from mask2former_dinov3.training.resume import compare_options
from mask2former_dinov3.training.train import load_data, train
from support.small_run import metric_lines, small_config

OPTIONS = {"repeat_factor": 1.0, "class_weights": "auto", "checkpointing_steps": None, "valid_split": 0}


def test_train__says_and_saves_what_is_repeated_and_weighted(
    make_toy_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All bars but one are taken out of the training data."""
    root = make_toy_dataset()
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    bars = [one for one in content["annotations"] if one["category_id"] == 7]
    content["annotations"] = [one for one in content["annotations"] if one not in bars[1:]]
    file.write_text(json.dumps(content))
    config = small_config(root, tmp_path / "run", num_train_epochs=1, **OPTIONS | {"max_train_steps": None})
    data = load_data(config)["train"]
    weights, factors = automatic_class_weights(data), image_repeat_factors(data, 1.0)
    assert len(set(weights.values())) == 2
    assert factors.max() > 1
    with caplog.at_level(logging.INFO, logger="mask2former_dinov3"):
        train(config)
    for name, weight in weights.items():
        assert f"{name} {weight:g} (" in caplog.text
    assert f"the largest factor is {factors.max():.2f}, an epoch has about {factors.sum():.0f} images" in caplog.text
    resolved = json.loads((tmp_path / "run" / "train_config.json").read_text())
    assert resolved["class_weights"] == weights
    saved = Mask2FormerDinov3Config.from_pretrained(tmp_path / "run" / "last")
    assert list(saved.label_weights or ()) == [weights[saved.id2label[label]] for label in range(2)]
    lines = metric_lines(tmp_path / "run")
    assert lines[-1]["epoch"] == 1
    assert lines[-1]["step"] == pytest.approx(factors.sum(), abs=3)  # an epoch is longer than 6 images
    assert lines[-1]["step"] > 6


def test_train__refuses_weights_of_unknown_classes(toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r'^class_weights: expected names of the 2 classes .*, got "disk"; nearest is'
    ):
        train(small_config(toy_dataset, tmp_path / "run", class_weights={"disk": 3}))
    assert not (tmp_path / "run" / "train_config.json").exists()


def test_resume__refuses_another_balance(toy_dataset: Path, tmp_path: Path) -> None:
    then = small_config(toy_dataset, tmp_path, class_weights={"disc": 2, "bar": 1}).model_dump(mode="json")
    compare_options(small_config(toy_dataset, tmp_path, class_weights='{"bar": 1.0, "disc": 2.0}'), tmp_path, then)
    with pytest.raises(ConfigError, match=r"repeat_factor: was None, now 0\.5\n  class_weights: was {'disc': 2"):
        compare_options(small_config(toy_dataset, tmp_path, repeat_factor=0.5), tmp_path, then)
