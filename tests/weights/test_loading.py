"""Hostile and broken model folders end in a clear error, before memory is taken for what they claim."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mask2former_dinov3.errors import CheckpointError
from mask2former_dinov3.inference.predictor import load_model


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
        (claims("mask_feature_size", 256), "expected a model that transformers can read"),
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
