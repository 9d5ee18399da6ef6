"""What a folder must hold to be a model of ours, asked before anything heavy is loaded."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..atomic_files import write_folder
from ..errors import CheckpointError
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..version import __version__
from ..weights.lora import merged_state
from .bundled_code import write_code
from .card import OPTIONS_FILE, OVERLAY_FILE, RunDescription, model_card
from .licence import LICENCE_TEXT, LICENSE_FILE, is_derived

MODEL_TYPE = "mask2former_dinov3"  # `Mask2FormerDinov3Config.model_type`


def check_model_folder(folder: Path, files: tuple[str, ...] = ("config.json", "preprocessor_config.json")) -> None:
    """Raise CheckpointError unless `folder` has these files and its config.json is that of a model of ours."""
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: expected a model folder as training leaves it (best/ or last/ in output_dir), but it has no "
            f"{' and no '.join(missing)}"
        )
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: config.json is not a JSON object: {error}") from error
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{folder}: expected a model of type {MODEL_TYPE}, config.json says {kind!r}")


def save_model_folder(
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Any,
    path: Path,
    metrics: dict[str, Any],
    run: RunDescription | None = None,
    with_code: bool = False,
) -> None:
    """`config.json`, `model.safetensors`, `preprocessor_config.json`, `README.md` and, for weights that derive from
    DINOv3, its licence: all that evaluation and prediction need, without a hub. Adapters are merged into weights. Of a
    run also `train_config.json` and, with validation data, `overlay.jpg`. with_code: see `bundled_code`."""
    with write_folder(path) as folder:
        _write_model(model, processor, folder, metrics, run)
        if with_code:
            write_code(folder)


def _write_model(
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Any,
    folder: Path,
    metrics: dict[str, Any],
    run: RunDescription | None,
) -> None:
    model.save_pretrained(folder, state_dict=merged_state(model))
    processor.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors gives the owner alone access
    canvas = (int(processor.size["height"]), int(processor.size["width"]))
    (folder / "README.md").write_text(model_card(model.config, canvas, metrics, run), encoding="utf-8")
    if run:
        (folder / OPTIONS_FILE).write_text(json.dumps(run.options, indent=2) + "\n", encoding="utf-8")
    if run and run.overlay:
        (folder / OVERLAY_FILE).write_bytes(run.overlay.jpeg)
    if is_derived(model.config):
        shutil.copyfile(LICENCE_TEXT, folder / LICENSE_FILE)


def made_by() -> dict[str, str]:
    """Versions, and the git commit when the package runs from a checkout."""
    packages = ("torch", "transformers", "accelerate", "numpy")
    result = {"mask2former-dinov3": __version__, "python": platform.python_version()}
    result |= {name: version(name) for name in packages}
    package = Path(__file__).parents[1]
    if shutil.which("git") is None:
        return result
    words = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    told = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split("\n")
    # Installed into an environment inside somebody else's repository, the commit would be theirs.
    is_ours = len(told) > 1 and Path(told[0]) / "src" == package.parent
    return result | ({"commit": told[1]} if is_ours else {})
