"""Model folders and checkpoints: saved, found, rotated, loaded."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from ..atomic_files import write_folder
from ..data.coco_types import Metrics
from ..errors import CheckpointError
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.card import RunDescription
from ..model_folder.folder import write_model_files
from ..weights.lora import unmerged_state

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
CHECKPOINT_FILES = ("state.json", "optimizer.pt", "rng.pt", "model.safetensors")


@dataclass
class RunState:
    """Where a run stands: what a checkpoint knows besides tensors."""

    step: int = 0  # optimiser steps done
    step_size: int = 0  # images of one optimiser step over all processes
    num_images: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    last_metrics: Metrics = field(default_factory=Metrics)


def best_folder(output_dir: Path) -> Path:
    """The model to use of a finished run: `best/`, or `last/` of one without validation data."""
    best = output_dir / "best"
    return best if best.is_dir() else output_dir / "last"


def save_checkpoint(
    output_dir: Path,
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Any,
    optimisation: dict[str, Any],
    rng_states: list[Any],
    state: RunState,
    run_config: dict[str, Any],
    run: RunDescription,
) -> Path:
    """`checkpoint-<step>/`: a model folder plus optimiser, schedule, gradient scaler, averages and adapters
    (`optimizer.pt`), the random states of all processes (`rng.pt`) and `state.json`, which also says by which code it
    was made."""
    path = output_dir / f"checkpoint-{state.step}"
    with write_folder(path) as folder:
        write_model_files(model, processor, folder, state.last_metrics, run)
        torch.save(optimisation, folder / "optimizer.pt")
        torch.save(rng_states, folder / "rng.pt")
        text = json.dumps({**asdict(state), "made_by": run.made_by, "config": run_config}, indent=2)
        (folder / "state.json").write_text(text + "\n", encoding="utf-8")
    return path


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if (match := CHECKPOINT_NAME.fullmatch(path.name)) and (path / "state.json").is_file()
    ]
    return [path for _, path in sorted(found)]


def rotate(output_dir: Path, keep: int | None) -> None:
    """Remove the oldest checkpoints beyond `keep`."""
    for path in checkpoints(output_dir)[: -keep if keep else 0]:
        shutil.rmtree(path)


def find_checkpoint(resume_from: str, output_dir: Path) -> Path:
    """The folder to resume from: a path, or "latest" of the run folder. Raises CheckpointError when there is none."""
    if resume_from == "latest":
        found = checkpoints(output_dir)
        if not found:
            raise CheckpointError(
                f"resume_from_checkpoint: no checkpoint-* in {output_dir}; leave it out to start anew"
            )
        return found[-1]
    path = Path(resume_from)
    missing = [name for name in CHECKPOINT_FILES if not (path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"resume_from_checkpoint: {path} is not a checkpoint ({', '.join(missing)} missing); "
            f"expected a checkpoint-* folder of a run, or latest"
        )
    return path


def read_state(path: Path) -> tuple[RunState, dict[str, Any]]:
    """Where the run of a checkpoint stood, and its options. Raises CheckpointError when state.json is damaged."""
    try:
        stored = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return RunState(**{name: stored[name] for name in RunState.__dataclass_fields__}), dict(stored["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: state.json is damaged ({error}); resume from an older checkpoint-*") from error


def load_checkpoint(path: Path, model: Mask2FormerDinov3ForInstanceSegmentation) -> tuple[dict[str, Any], list[Any]]:
    """Weights into `model`; returns the optimiser's states and the random states.

    Raises CheckpointError when a file is damaged or the weights are those of another network.
    """
    try:
        loaded, report = type(model).from_pretrained(path, output_loading_info=True)
        optimisation = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        rng_states = torch.load(path / "rng.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged ({reason}); resume from an older checkpoint-* of the run") from error
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    state = unmerged_state(loaded.state_dict(), optimisation.get("adapters", {}))
    found = {key: tensor.shape for key, tensor in state.items()}
    wrong = {key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)}
    wrong |= set(report["missing_keys"])
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} weights do not fit this configuration, e.g. {', '.join(sorted(wrong)[:3])}; "
            f"resume with the backbone, neck, classes and num_queries of that run (its train_config.json)"
        )
    model.load_state_dict(state)
    return optimisation, rng_states
