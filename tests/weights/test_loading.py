"""Hostile and broken model folders end in a clear error, before memory is taken for what they claim."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTModel

from mask2former_dinov3.errors import CheckpointError, UserError
from mask2former_dinov3.inference.predictor import load_model
from mask2former_dinov3.model import Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.weights.backbones import load_backbone
from mask2former_dinov3.weights.files import save_tensors
from mask2former_dinov3.weights.loading import load_network_config
from support.models import small_vit


def claims(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        *path, last = name.split(".")
        for part in path:
            config = config[part]
        config[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            claims("backbone_config.num_hidden_layers", 10**7),
            r"config\.json to fit .*, got one that asks for 10,000,000 layers where the file has \d+ tensors",
        ),
        (claims("encoder_layers", 10**7), "asks for 10,000,000 layers"),
        (
            claims("backbone_config.intermediate_size", 2**40),
            r"safetensors: expected the [\d,]+ numbers of the network in config\.json, got [\d,]+; the file",
        ),
        (claims("num_queries", 2**40), r"expected the [\d,]+ numbers of the network"),
        (claims("mask_feature_size", 256), r"got \d+ of another shape, e\.g\. \S+ \(\d.*\) instead of \("),
    ],
)
def test_load_model__takes_no_memory_for_what_a_config_only_claims(
    model_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=told):
        load_model(folder, "cpu")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize(
    ("file", "field", "value", "told"),
    [
        ("config.json", "hidden_dim", "a", "hidden_dim: expected 1 or more, a whole number, got 'a'"),
        ("config.json", "hidden_dim", None, "hidden_dim: expected 1 or more, a whole number, got None"),
        ("config.json", "num_queries", -3, "num_queries: expected 1 or more, a whole number, got -3"),
        ("config.json", "id2label", [], "id2label: expected an object, got a list"),
        ("config.json", "id2label", {"a": "b"}, "id2label: expected label numbers as keys, got 'a'"),
        ("config.json", "auto_map", 3, "auto_map: expected an object, got a number"),
        ("config.json", "dtype", "zz", "dtype: expected a data type of torch, such as float32, got 'zz'"),
        ("config.json", "backbone_config.hidden_size", "a", "Field 'hidden_size' expected int, got str (value: 'a')"),
        ("config.json", "backbone_config.num_attention_heads", 0, "backbone_config.num_attention_heads: expected at"),
        (
            "preprocessor_config.json",
            "size",
            5,
            'size: expected {"height": ..., "width": ...} in whole numbers, got a n',
        ),
        ("preprocessor_config.json", "size", {"height": "a", "width": 64}, "size: expected"),
        (
            "preprocessor_config.json",
            "image_mean",
            ["x"],
            "image_mean: expected numbers, one for each channel, got ['x']",
        ),
        (
            "preprocessor_config.json",
            "image_std",
            [0, 1, 1],
            "image_std: expected three numbers above 0, got [0, 1, 1]",
        ),
    ],
)
def test_load_model__names_file_and_field_of_a_wrong_value(
    model_folder: Path, tmp_path: Path, file: str, field: str, value: object, told: str
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(model_folder, folder)
    stored = json.loads((folder / file).read_text())
    claims(field, value)(stored)
    (folder / file).write_text(json.dumps(stored))
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, "cpu")
    assert str(caught.value).startswith(f"{folder}: {file}: {told}")


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, TypeError, KeyError])
def test_load_model__leaves_an_error_in_our_network_as_it_is(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise kind("a fault of this package")

    monkeypatch.setattr(Mask2FormerDinov3ForInstanceSegmentation, "__init__", fail)
    with pytest.raises(kind, match="a fault of this package") as caught:
        load_model(model_folder, "cpu")
    assert not isinstance(caught.value, UserError)


def test_load_backbone__names_a_config_that_the_network_of_transformers_refuses(tmp_path: Path) -> None:
    DINOv3ViTModel(small_vit()).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "hidden_act": "zz"}))
    with pytest.raises(
        CheckpointError, match=r"config\.json: expected values for a DINOv3ViTModel, got an error of it"
    ):
        load_backbone(str(tmp_path))


def test_load_model__names_weights_that_are_left_over_or_missing(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(model_folder, folder)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "head.surprise": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match=r"expected only weights of the network in config\.json, got 1 others, e\.g\. head\.surprise",
    ):
        load_model(folder, "cpu")
    state.pop("head.transformer_decoder.class_predictor.bias")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"got 1 missing weights, e\.g\. head\.transformer_decoder\.class_pred"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_load_model__says_that_its_weights_are_cut(model_folder: Path, tmp_path: Path, share: float) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(model_folder, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: expected a whole file, got one that is cut or damaged"
    ):
        load_model(folder, "cpu")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_load_network_config__does_not_wait_for_a_named_pipe(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: expected a file, got a named pipe or a device"):
        load_network_config(str(folder))


def test_save_tensors__a_full_disk_is_an_error_of_the_operating_system() -> None:
    """torch itself raises a RuntimeError, which counts as a fault of this package."""
    with pytest.raises(OSError, match=r"^full: "):
        save_tensors({"weight": torch.zeros(1_000_000)}, Path("/dev/full"))
