"""Checkpoints: a damaged file is named with what is wrong in it, and nothing advises to run code of a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from mask2former_dinov3.errors import CheckpointError, UserError
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.model import Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.model_folder.card import RunDescription
from mask2former_dinov3.training.build_model import build_model
from mask2former_dinov3.training.checkpoint import RunState, load_checkpoint, read_state, save_checkpoint
from mask2former_dinov3.training.resume import get_rng_state
from support.models import DATA, config_of


@pytest.fixture(scope="module")
def model() -> Mask2FormerDinov3ForInstanceSegmentation:
    return build_model(config_of(backbone="tiny", num_queries=5, encoder_layers=1, decoder_layers=2), DATA)


@pytest.fixture
def checkpoint(model: Mask2FormerDinov3ForInstanceSegmentation, tmp_path: Path) -> Path:
    optimizer = torch.optim.AdamW(model.parameters())
    return save_checkpoint(
        tmp_path,
        model,
        Mask2FormerDinov3ImageProcessor({"height": 64, "width": 64}),
        {"optimizer": optimizer.state_dict(), "scheduler": {}, "scaler": None},
        [get_rng_state()],
        RunState(step=3, step_size=2, num_images=6),
        RunDescription(name="run", dataset="data", splits={}, options={}, changed={}, made_by={}),
        {},
    )


def test_load_checkpoint__gives_what_was_saved(
    model: Mask2FormerDinov3ForInstanceSegmentation, checkpoint: Path
) -> None:
    optimization, rng_states = load_checkpoint(checkpoint, model)
    assert len(optimization["optimizer"]["param_groups"]) == 1
    assert len(rng_states) == 1
    assert read_state(checkpoint)[0] == RunState(step=3, step_size=2, num_images=6)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("step", "x", "step: expected a whole number, got 'x'"),
        ("step", None, "step: expected a whole number, got None"),
        ("best_metric", "x", "best_metric: expected a number or null, got 'x'"),
        ("best_step", 1.5, "best_step: expected a whole number or null, got 1.5"),
        ("last_metrics", [], "last_metrics: expected an object, got []"),
    ],
)
def test_read_state__names_a_value_of_the_wrong_kind(checkpoint: Path, name: str, value: object, told: str) -> None:
    file = checkpoint / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    message = f"{file}: {told}; resume from an older checkpoint-* of the run"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        read_state(checkpoint)


@pytest.mark.parametrize(("name", "content"), [("optimizer.pt", b"x"), ("optimizer.pt", b""), ("rng.pt", b"")])
def test_load_checkpoint__gives_no_unsafe_advice(
    model: Mask2FormerDinov3ForInstanceSegmentation, checkpoint: Path, name: str, content: bytes
) -> None:
    (checkpoint / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{checkpoint / name}: expected a file of a ")) as caught:
        load_checkpoint(checkpoint, model)
    assert "weights_only" not in str(caught.value)
    assert "Error" not in str(caught.value)
    assert str(caught.value).endswith("; resume from an older checkpoint-* of the run")


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("optimizer.pt", {"optimizer": {"state": {}}, "scheduler": {}, "scaler": None}),
        ("optimizer.pt", []),
        ("rng.pt", {"cpu": 1}),
        ("rng.pt", [{"cpu": 1, "cuda": []}]),
    ],
)
def test_load_checkpoint__refuses_states_without_their_parts(
    model: Mask2FormerDinov3ForInstanceSegmentation, checkpoint: Path, name: str, states: object
) -> None:
    torch.save(states, checkpoint / name)
    with pytest.raises(
        CheckpointError, match=re.escape(f"{name}: expected a file of a checkpoint, got another content")
    ):
        load_checkpoint(checkpoint, model)


def test_load_checkpoint__leaves_an_error_of_ours_as_it_is(
    model: Mask2FormerDinov3ForInstanceSegmentation, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("a fault of this package")

    monkeypatch.setattr(Mask2FormerDinov3ForInstanceSegmentation, "__init__", fail)
    with pytest.raises(ValueError, match=r"^a fault of this package$") as caught:
        load_checkpoint(checkpoint, model)
    assert not isinstance(caught.value, UserError)


def test_load_checkpoint__names_cut_weights(model: Mask2FormerDinov3ForInstanceSegmentation, checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a whole file, .*; resume from an older"):
        load_checkpoint(checkpoint, model)
