"""Settings of a model in use: what is None is the model's own, thresholds by class, and the line that says so."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former_dinov3.errors import CheckpointError, OptionError
from mask2former_dinov3.inference.onnx_model import OnnxConfig
from mask2former_dinov3.inference.predictor import Predictor, load_network
from mask2former_dinov3.inference.settings import DEFAULTS, InferenceSettings, describe_threshold, one_threshold
from mask2former_dinov3.model_folder.thresholds import store_threshold
from mask2former_dinov3.pipeline import InstanceSegmentationPipeline

SOURCE = {"metric": "best F1", "iou": 0.5, "data": "toy/valid", "images": 12, "date": "2026-01-02"}
PLAIN = OnnxConfig({0: "disc", 1: "bar"}, [3, 7], num_labels=2, num_queries=8, mask_stride=4)


def stored_model(model_folder: Path, tmp_path: Path, threshold: Any, copy_overlap: float | None = None) -> Path:
    """A copy of a model folder with a threshold."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    store_threshold(folder, threshold, SOURCE, 0.5, copy_overlap=copy_overlap)
    return folder


def test_for_model__fills_what_is_none_from_the_model() -> None:
    assert DEFAULTS.for_model(PLAIN) == InferenceSettings(0.5, 8, copy_overlap=1.0)
    stored = replace(PLAIN, score_threshold={"bar": 0.25, "disc": 0.75}, copy_overlap=0.8)
    assert DEFAULTS.for_model(stored) == InferenceSettings((0.75, 0.25), 8, copy_overlap=0.8)
    given = InferenceSettings(0.1, 3, 2, 64, 0.25, copy_overlap=1.0)
    assert given.for_model(stored) == given
    assert given.for_model(stored).for_model(stored) == given
    assert InferenceSettings({"disc": 0.1, "bar": 0.2}).for_model(PLAIN).threshold == (0.1, 0.2)
    assert one_threshold(DEFAULTS.for_model(stored)) == 0.5


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ({"disc": 0.1}, "threshold: expected one threshold for each class of the model, got none for bar"),
        (
            {"disc": 0.1, "bar": 0.2, "x": 0},
            "threshold: expected one threshold for each class of the model, got unknown: x",
        ),
        ((0.1, 0.2, 0.3), "threshold: expected 2 thresholds, one per class, got 3"),
    ],
)
def test_for_model__refuses_thresholds_of_other_classes(threshold: Any, message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        InferenceSettings(threshold).for_model(PLAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": {"disc": 1.5}}, "threshold: expected a score from 0 to 1, got 1.5"),
        ({"threshold": (0.5, float("nan"))}, "threshold: expected a score from 0 to 1, got nan"),
        ({"threshold": "0.5"}, "threshold: expected a score from 0 to 1, got 0"),
        ({"copy_overlap": 0}, "copy_overlap: expected a fraction above 0, up to 1 for none, got 0"),
        ({"copy_overlap": float("nan")}, "copy_overlap: expected a fraction above 0, up to 1 for none, got nan"),
    ],
)
def test_inference_settings__refuses_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        InferenceSettings(**options)


def test_describe_threshold__says_where_it_comes_from() -> None:
    assert (
        describe_threshold(DEFAULTS, PLAIN) == "score threshold 0.5: the model stores none; `evaluate` finds the best"
    )
    assert describe_threshold(InferenceSettings(0.3), PLAIN) == "score threshold 0.3, as given"
    stored = replace(PLAIN, score_threshold=0.87, score_threshold_source=SOURCE)
    assert describe_threshold(DEFAULTS, stored) == (
        "score threshold 0.87 (best F1, IoU 0.5, toy/valid, 12 images, 2026-01-02), of the model"
    )
    by_class = replace(PLAIN, score_threshold={"disc": 0.25, "bar": 0.75})
    assert describe_threshold(DEFAULTS, by_class) == "score threshold 0.25 to 0.75 by class, of the model"


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_predictor__follows_the_model_unless_told_otherwise(model_folder: Path, tmp_path: Path) -> None:
    every = Predictor.from_pretrained(model_folder, "cpu")(picture(), threshold=0.0)
    assert set(every.names) == {"disc", "bar"}
    low, high = np.quantile(every.scores, [0.3, 0.7])
    threshold = {"disc": float(low), "bar": float(high)}
    predictor = Predictor.from_pretrained(stored_model(model_folder, tmp_path, threshold), "cpu")
    found = predictor(picture())
    wanted = every[every.scores >= np.array([threshold[name] for name in every.names], np.float32)]
    assert found.scores.tolist() == wanted.scores.tolist()
    assert found.names == wanted.names
    assert 0 < len(found) < len(every)
    again = predictor(picture(), threshold=0.0)
    assert again.scores.tolist() == every.scores.tolist()
    (batch,) = predictor.predict_prepared([predictor.processor.prepare(picture())], DEFAULTS)
    assert batch.scores.tolist() == found.scores.tolist()


def test_predictor__an_old_folder_has_a_threshold_of_a_half(model_folder: Path, tmp_path: Path) -> None:
    folder = stored_model(model_folder, tmp_path, 0.2)
    config = json.loads((folder / "config.json").read_text())
    for name in ("score_threshold", "score_threshold_source", "copy_overlap"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    predictor = Predictor.from_pretrained(folder, "cpu")
    assert predictor.fill(DEFAULTS) == InferenceSettings(0.5, 8, copy_overlap=1.0)
    assert predictor(picture()).scores.tolist() == predictor(picture(), threshold=0.5).scores.tolist()


def test_pipeline__follows_the_model_unless_told_otherwise(model_folder: Path, tmp_path: Path) -> None:
    folder = stored_model(model_folder, tmp_path, 0.2, 0.6)
    network, processor = load_network(folder, "cpu")
    nuclei = InstanceSegmentationPipeline(network, image_processor=processor, device=torch.device("cpu"))
    predictor = Predictor(network, processor)
    for options in ({}, {"threshold": 0.0}, {"threshold": {"disc": 1.0, "bar": 0.0}, "copy_overlap": 1.0}):
        found = predictor(picture(), **options)
        got = nuclei(Image.fromarray(picture()), **options)
        assert [one["label"] for one in got] == found.names
        assert [one["score"] for one in got] == pytest.approx(found.scores.tolist())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold: expected numbers from 0 to 1, got 1.5"),
        (
            {"score_threshold": {"disc": 0.5}},
            "score_threshold: expected a number for each of ['bar', 'disc'], got ['disc']",
        ),
        ({"score_threshold": "high"}, "score_threshold: expected numbers from 0 to 1, got 'high'"),
        ({"score_threshold_source": 3}, "score_threshold_source"),
        ({"copy_overlap": 0}, "copy_overlap: expected a fraction above 0, up to 1, got 0"),
    ],
)
def test_load_network__refuses_a_config_with_faulty_thresholds(
    model_folder: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    folder = stored_model(model_folder, tmp_path, 0.5)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_network(folder, "cpu")
