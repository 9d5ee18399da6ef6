"""Folders on disk: model folders and checkpoints, written whole or not at all."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from .errors import CheckpointError
from .model import Mask2FormerDinov3ForInstanceSegmentation
from .model_card import model_card

LICENSE_FILE = "DINOV3_LICENSE.md"
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
    last_metrics: dict[str, Any] = field(default_factory=dict)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place once the block ends without an error.

    Raises CheckpointError when the disk is full or the folder cannot be written; what stood at `path` is then as it
    was.
    """
    temporary, old = (path.with_name(f".{path.name}.{word}") for word in ("writing", "replaced"))
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        raise CheckpointError(f"{path}: could not be written ({error}); {_space_left(path)}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it. Raises CheckpointError when that fails."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: could not be written ({error}); {_space_left(path)}") from error


def _space_left(path: Path) -> str:
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    free = shutil.disk_usage(folder).free / 1e9
    return f"{free:.1f} GB are free there. Make room or choose another output_dir; what was saved before is untouched"


def check_writable(folder: Path) -> None:
    """Raise CheckpointError now rather than after the first epoch."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"output_dir {folder}: cannot be made ({error}); choose another") from error
    write_text(folder / ".probe", "")
    (folder / ".probe").unlink()


def save_model_folder(
    model: Mask2FormerDinov3ForInstanceSegmentation, processor: Any, path: Path, metrics: dict[str, Any]
) -> None:
    """`config.json`, `model.safetensors`, `preprocessor_config.json`, `README.md` and, for weights that derive from
    DINOv3, its licence: all that evaluation and prediction need, without a hub."""
    with written_folder(path) as folder:
        _write_model(model, processor, folder, metrics)


def _write_model(
    model: Mask2FormerDinov3ForInstanceSegmentation, processor: Any, folder: Path, metrics: dict[str, Any]
) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors gives the owner alone access
    (folder / "README.md").write_text(model_card(model.config, metrics), encoding="utf-8")
    if model.config.backbone_source and model.config.backbone_config.model_type.startswith("dinov3"):
        shutil.copyfile(Path(__file__).with_name(LICENSE_FILE), folder / LICENSE_FILE)


def save_checkpoint(
    output_dir: Path,
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Any,
    optimisation: dict[str, Any],
    rng_states: list[Any],
    state: RunState,
    run_config: dict[str, Any],
) -> Path:
    """`checkpoint-<step>/`: a model folder plus optimiser, schedule and gradient scaler (`optimizer.pt`), the random
    states of all processes (`rng.pt`) and `state.json`, which also says by which code it was made."""
    path = output_dir / f"checkpoint-{state.step}"
    with written_folder(path) as folder:
        _write_model(model, processor, folder, state.last_metrics)
        torch.save(optimisation, folder / "optimizer.pt")
        torch.save(rng_states, folder / "rng.pt")
        text = json.dumps({**asdict(state), "made_by": made_by(), "config": run_config}, indent=2)
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


def stored_config(path: Path) -> dict[str, Any]:
    """The options of the run that made a checkpoint. Raises CheckpointError when its state.json is damaged."""
    try:
        return dict(json.loads((path / "state.json").read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: state.json is damaged ({error}); resume from an older checkpoint-*") from error


def load_checkpoint(
    path: Path, model: Mask2FormerDinov3ForInstanceSegmentation
) -> tuple[RunState, dict[str, Any], list[Any]]:
    """Weights into `model`; returns the run state, the optimiser's states and the random states.

    Raises CheckpointError when a file is damaged or the weights are those of another network.
    """
    try:
        stored = json.loads((path / "state.json").read_text(encoding="utf-8"))
        loaded, report = type(model).from_pretrained(path, output_loading_info=True)
        optimisation = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        rng_states = torch.load(path / "rng.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged ({reason}); resume from an older checkpoint-* of the run") from error
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    found = {key: tensor.shape for key, tensor in loaded.state_dict().items()}
    wrong = {key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)}
    wrong |= set(report["missing_keys"])
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} weights do not fit this configuration, e.g. {', '.join(sorted(wrong)[:3])}; "
            f"resume with the backbone, neck, classes and num_queries of that run (its train_config.json)"
        )
    model.load_state_dict(loaded.state_dict())
    fields = {name: stored[name] for name in RunState.__dataclass_fields__}
    return RunState(**fields), optimisation, rng_states


def made_by() -> dict[str, str]:
    """Versions, and the git commit when the package runs from a checkout."""
    packages = ("mask2former-dinov3", "torch", "transformers", "accelerate", "numpy")
    result = {"python": platform.python_version()} | {name: version(name) for name in packages}
    package = Path(__file__).parent
    if shutil.which("git") is None:
        return result
    words = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    told = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split("\n")
    # Installed into an environment inside somebody else's repository, the commit would be theirs.
    is_ours = len(told) > 1 and Path(told[0]) / "src" == package.parent
    return result | ({"commit": told[1]} if is_ours else {})
