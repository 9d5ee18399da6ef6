"""Checkpoint folders of a run: write, find, read, remove. See `resume` for how a run continues at one."""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor

from ..atomic_files import remove_folder, write_folder, write_text
from ..data.coco_types import Metrics
from ..errors import CheckpointError, OptionError, UserError, mismatch, system_reason
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..json_files import is_integer, is_number, read_json_object
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.card import RunDescription
from ..model_folder.folder import card_of, write_model_files
from ..weights.files import CHECKSUM_SUFFIX, check_checksum, first_reason, save_tensors
from ..weights.loading import load_network_config, load_pretrained
from ..weights.lora import unmerged_state

logger = logging.getLogger(__name__)
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
CHECKPOINT_FILES = ("state.json", "optimizer.pt", "rng.pt", "model.safetensors")
RESUME_FROM_OLDER = "resume from an older checkpoint-* of the run"


def _is_count(value: object) -> bool:
    return is_integer(value) and value >= 0


STATE_FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {  # of state.json: what each is expected to be
    "step": ("a whole number", _is_count),
    "step_size": ("a whole number", _is_count),
    "num_images": ("a whole number", _is_count),
    "best_metric": ("a number or null", lambda value: value is None or is_number(value)),
    "best_step": ("a whole number or null", lambda value: value is None or _is_count(value)),
    "last_metrics": ("an object", lambda value: isinstance(value, dict)),
    "finished": ("true or false", lambda value: isinstance(value, bool)),
    "unreadable": ("an object", lambda value: isinstance(value, dict)),
    "evaluations_without_better": ("a whole number", _is_count),
    "seconds": ("a number", is_number),
}
LATER_FIELDS = (
    "finished",
    "unreadable",
    "evaluations_without_better",
    "seconds",
)  # missing in checkpoints of earlier versions


@dataclass
class RunState:
    """The progress of a run: what state.json of a checkpoint holds, and the only part of a run that changes."""

    step: int = 0  # optimiser steps done
    step_size: int = 0  # images of one optimiser step over all processes
    num_images: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    last_metrics: Metrics = field(default_factory=Metrics)
    finished: bool = False  # all that follows the last step is done: evaluation, last/, test metrics
    unreadable: dict[str, str] = field(default_factory=dict)  # training images that were skipped: id -> reason
    evaluations_without_better: int = 0  # since the last one whose metric was better than all before
    seconds: float = 0.0  # of the run so far, for `max_hours`


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
        save_tensors(optimization, folder / "optimizer.pt")
        save_tensors(rng_states, folder / "rng.pt")
        (folder / "state.json").write_text(_state_text(state, description, run_config), encoding="utf-8")
    return path


def update_checkpoint(
    path: Path,
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Mask2FormerDinov3ImageProcessor,
    state: RunState,
    description: RunDescription,
    run_config: Mapping[str, object],
) -> None:
    """Write what was measured after a checkpoint was saved into it: its model card and, last, `state.json`."""
    write_text(path / "README.md", card_of(model, processor, state.last_metrics, description))
    write_text(path / "state.json", _state_text(state, description, run_config))


def _state_text(state: RunState, description: RunDescription, run_config: Mapping[str, object]) -> str:
    return json.dumps({**asdict(state), "made_by": description.made_by, "config": run_config}, indent=2) + "\n"


def checkpoint_step(path: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None for another name."""
    match = CHECKPOINT_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run that have all their files, oldest first."""
    found = [
        (step, path)
        for path in output_dir.glob("checkpoint-*")
        if (step := checkpoint_step(path)) is not None
        if not _missing_files(path)
    ]
    return [path for _, path in sorted(found)]


def remove_old_checkpoints(output_dir: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` checkpoints; None keeps all."""
    for path in list_checkpoints(output_dir)[: -keep if keep else 0]:
        remove_folder(path)


def _missing_files(path: Path) -> list[str]:
    """The files that a checkpoint lacks: all, in a folder that this user may not read."""
    return [name for name in CHECKPOINT_FILES if not os.path.isfile(path / name)]  # Path.is_file raises


def find_damage(path: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None. All its files are read: a power cut can leave holes."""
    missing = _missing_files(path)
    if missing:
        return f"{path}: without {', '.join(missing)}"
    weights = path / "model.safetensors"
    checksum = weights.with_name(weights.name + CHECKSUM_SUFFIX)
    try:
        read_state(path)
        load_network_config(str(path))
        read_json_object(path / "preprocessor_config.json")
        if checksum.is_file():
            check_checksum(weights, checksum)
    except UserError as error:
        return str(error).partition(";")[0]
    except OSError as error:  # a file that this user may not read
        return f"{path}: {system_reason(error)}"
    damaged = [name for name in ("optimizer.pt", "rng.pt") if not _is_whole_archive(path / name)]
    return f"{path}: {damaged[0]} is damaged" if damaged else None


def _is_whole_archive(file: Path) -> bool:
    """Whether a file of `torch.save` has all its parts, with the check sums (CRC-32) that were written with them."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # damaged headers make zipfile raise errors of ten kinds: of text, of numbers, of ends
        return False


def find_checkpoint(resume_from: str, output_dir: Path) -> Path:
    """The checkpoint to resume from: a path, or "latest" for the newest whole one in `output_dir`.

    A damaged newer one is named in a warning. Raises OptionError when there is none.
    """
    option = "resume_from_checkpoint"
    if resume_from == "latest":
        steps = [(checkpoint_step(path), path) for path in output_dir.glob("checkpoint-*")]
        found = sorted((step, path) for step, path in steps if step is not None)
        damage: list[str] = []
        for _, path in reversed(found):
            reason = find_damage(path)
            if reason is None:
                for other in damage:
                    logger.warning("not whole, so an older checkpoint is used: %s", other)
                return path
            damage.append(reason)
        complete = list_checkpoints(output_dir)
        if not complete:
            advice = "leave the option out to start a new run"
            raise OptionError(option, f"a checkpoint-* folder in {output_dir}", "none", advice)
        return complete[-1]  # reading it says what is wrong
    path = Path(resume_from)
    missing = _missing_files(path)
    if missing:
        got = f"{path} without {', '.join(missing)}"
        raise OptionError(option, 'a checkpoint-* folder of a run, or "latest"', got)
    return path


def read_state(path: Path) -> tuple[RunState, dict[str, object]]:
    """The progress of a checkpoint's run, and its options. Raises CheckpointError when state.json is damaged."""
    file = path / "state.json"
    stored = read_json_object(file, "the state of a run (JSON)", raises=CheckpointError)
    names = [one.name for one in fields(RunState)]
    missing = [name for name in (*names, "config") if name not in stored and name not in LATER_FIELDS]
    if missing or not isinstance(stored["config"], dict):
        got = f"an object without {', '.join(missing)}" if missing else "options that are not an object"
        raise CheckpointError(f"{file}: {mismatch('the state of a run (JSON)', got, RESUME_FROM_OLDER)}")
    wrong = [
        f"{name}: {mismatch(expected, repr(stored[name]))}"
        for name, (expected, is_right) in STATE_FIELDS.items()
        if name in stored and not is_right(stored[name])
    ]
    if wrong:
        raise CheckpointError(f"{file}: {'; '.join(wrong)}; {RESUME_FROM_OLDER}")
    return RunState(**{name: stored[name] for name in names if name in stored}), stored["config"]


def load_checkpoint(
    path: Path, model: Mask2FormerDinov3ForInstanceSegmentation
) -> tuple[OptimizationState, list[RngState]]:
    """Load the weights of a checkpoint into `model`; returns the other states.

    Raises CheckpointError when a file is damaged or the weights are those of another network.
    """
    optimization, rng_states = _read_states(path)
    try:
        loaded = load_pretrained(type(model), str(path), load_network_config(str(path)))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {RESUME_FROM_OLDER}") from error
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    state = unmerged_state(loaded.state_dict(), optimization.get("adapters", {}))
    found = {key: tensor.shape for key, tensor in state.items()}
    wrong = {key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)}
    if wrong:
        got = f"{len(wrong)} weights that do not, such as {', '.join(sorted(wrong)[:3])}"
        advice = "resume with --backbone, --neck, --num-queries and the classes of that run (its train_config.json)"
        raise CheckpointError(f"{path}: {mismatch('weights that fit this configuration', got, advice)}")
    model.load_state_dict(state)
    return optimization, rng_states


def _read_states(path: Path) -> tuple[OptimizationState, list[RngState]]:
    """The states in optimizer.pt and rng.pt. Raises CheckpointError for other content; no code in them is run."""
    optimization = _load_states(path / "optimizer.pt", _is_optimization)
    return cast(OptimizationState, optimization), cast(list[RngState], _load_states(path / "rng.pt", _is_rng))


def _load_states(file: Path, is_right: Callable[[object], bool]) -> object:
    got = "another content"
    try:
        stored: object = torch.load(file, map_location="cpu", weights_only=True)
        if is_right(stored):
            return stored
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, UnpicklingError) as error:  # by torch's reader
        got = f"a damaged one ({first_reason(error)})"
    raise CheckpointError(f"{file}: {mismatch('a file of a checkpoint', got, RESUME_FROM_OLDER)}")


def _is_optimization(stored: object) -> bool:
    """Whether the states have the structure that `OptimizationState` says."""
    if not isinstance(stored, dict) or not isinstance(stored.get("scheduler"), dict) or "scaler" not in stored:
        return False
    optional = [stored["scaler"], stored.get("averaged"), stored.get("adapters")]
    if not all(one is None or isinstance(one, dict) for one in optional):
        return False
    optimizer = stored.get("optimizer")
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("state"), dict):
        return False
    groups = optimizer.get("param_groups")
    return isinstance(groups, list) and all(isinstance(one, dict) and "params" in one for one in groups)


def _is_rng(stored: object) -> bool:
    """Whether the states have the structure that `RngState` says, one or more of them."""
    return isinstance(stored, list) and all(
        isinstance(one, dict) and isinstance(one.get("cpu"), Tensor) and isinstance(one.get("cuda"), list)
        for one in stored
    )
