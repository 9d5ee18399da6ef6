"""Checkpoint folders of a run: write, find, read, remove. See `resume` for how a run continues at one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..atomic_files import write_folder
from ..data.coco_types import Metrics
from ..errors import CheckpointError, OptionError, mismatch
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..json_files import read_json_object
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.card import RunDescription
from ..model_folder.folder import write_model_files
from ..weights.lora import unmerged_state

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
CHECKPOINT_FILES = ("state.json", "optimizer.pt", "rng.pt", "model.safetensors")
RESUME_FROM_OLDER = "resume from an older checkpoint-* of the run"


@dataclass
class RunState:
    """The progress of a run: what state.json of a checkpoint holds, and the only part of a run that changes."""

    step: int = 0  # optimiser steps done
    step_size: int = 0  # images of one optimiser step over all processes
    num_images: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    last_metrics: Metrics = field(default_factory=Metrics)


class OptimizationState(TypedDict):
    """Content of optimizer.pt: state dicts; None for what the run does not have.

    averaged: EMA weights by name. adapters: LoRA weights by name, which model.safetensors has merged.
    """

    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None
    averaged: NotRequired[dict[str, Tensor] | None]
    adapters: NotRequired[dict[str, Tensor]]


class RngState(TypedDict):
    """States of torch's random generators in one process; cuda: one per GPU. rng.pt holds a list, one per process."""

    cpu: Tensor
    cuda: list[Tensor]


def best_folder(output_dir: Path) -> Path:
    """The model folder of a finished run to use: `best/`, or `last/` of a run without validation data."""
    best = output_dir / "best"
    return best if best.is_dir() else output_dir / "last"


def save_checkpoint(
    output_dir: Path,
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Mask2FormerDinov3ImageProcessor,
    optimization: OptimizationState,
    rng_states: list[RngState],
    state: RunState,
    description: RunDescription,
    run_config: Mapping[str, object],
) -> Path:
    """Write `checkpoint-<step>/` atomically: a model folder, `optimizer.pt`, `rng.pt` and `state.json`.

    run_config: the options of the run, which `state.json` keeps with the versions of the code.
    """
    path = output_dir / f"checkpoint-{state.step}"
    with write_folder(path) as folder:
        write_model_files(model, processor, folder, state.last_metrics, description)
        torch.save(optimization, folder / "optimizer.pt")
        torch.save(rng_states, folder / "rng.pt")
        text = json.dumps({**asdict(state), "made_by": description.made_by, "config": run_config}, indent=2)
        (folder / "state.json").write_text(text + "\n", encoding="utf-8")
    return path


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if (match := CHECKPOINT_NAME.fullmatch(path.name)) and (path / "state.json").is_file()
    ]
    return [path for _, path in sorted(found)]


def remove_old_checkpoints(output_dir: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` checkpoints; None keeps all."""
    for path in list_checkpoints(output_dir)[: -keep if keep else 0]:
        shutil.rmtree(path)


def find_checkpoint(resume_from: str, output_dir: Path) -> Path:
    """The checkpoint to resume from: a path, or "latest" for the newest one in `output_dir`.

    Raises OptionError when there is none.
    """
    option = "resume_from_checkpoint"
    if resume_from == "latest":
        found = list_checkpoints(output_dir)
        if not found:
            advice = "leave the option out to start a new run"
            raise OptionError(option, f"a checkpoint-* folder in {output_dir}", "none", advice)
        return found[-1]
    path = Path(resume_from)
    missing = [name for name in CHECKPOINT_FILES if not (path / name).is_file()]
    if missing:
        got = f"{path} without {', '.join(missing)}"
        raise OptionError(option, 'a checkpoint-* folder of a run, or "latest"', got)
    return path


def read_state(path: Path) -> tuple[RunState, dict[str, object]]:
    """The progress of a checkpoint's run, and its options. Raises CheckpointError when state.json is damaged."""
    file = path / "state.json"
    stored = read_json_object(file, "the state of a run (JSON)", raises=CheckpointError)
    names = [one.name for one in fields(RunState)]
    missing = [name for name in (*names, "config") if name not in stored]
    if missing or not isinstance(stored["config"], dict):
        got = f"an object without {', '.join(missing)}" if missing else "options that are not an object"
        raise CheckpointError(f"{file}: {mismatch('the state of a run (JSON)', got, RESUME_FROM_OLDER)}")
    return RunState(**{name: stored[name] for name in names}), stored["config"]


def load_checkpoint(
    path: Path, model: Mask2FormerDinov3ForInstanceSegmentation
) -> tuple[OptimizationState, list[RngState]]:
    """Load the weights of a checkpoint into `model`; returns the other states.

    Raises CheckpointError when a file is damaged or the weights are those of another network.
    """
    try:
        loaded, report = type(model).from_pretrained(path, output_loading_info=True)
        optimization: OptimizationState = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        rng_states: list[RngState] = torch.load(path / "rng.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        got = f"a damaged one ({reason})"
        raise CheckpointError(f"{path}: {mismatch('a checkpoint', got, RESUME_FROM_OLDER)}") from error
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    state = unmerged_state(loaded.state_dict(), optimization.get("adapters", {}))
    found = {key: tensor.shape for key, tensor in state.items()}
    wrong = {key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)}
    wrong |= set(report["missing_keys"])
    if wrong:
        got = f"{len(wrong)} weights that do not, such as {', '.join(sorted(wrong)[:3])}"
        advice = "resume with the backbone, neck, classes and num_queries of that run (its train_config.json)"
        raise CheckpointError(f"{path}: {mismatch('weights that fit this configuration', got, advice)}")
    model.load_state_dict(state)
    return optimization, rng_states
