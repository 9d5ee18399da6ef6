"""Save a model folder."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from ..atomic_files import write_folder
from ..data.coco_types import Metrics
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..version import __version__
from ..weights.lora import merged_state
from .bundled_code import write_code
from .card import OPTIONS_FILE, OVERLAY_FILE, RunDescription, model_card
from .licence import LICENCE_TEXT, LICENSE_FILE, is_derived

SCORE_FILE = "score.json"


class Processor(Protocol):
    """What a model folder needs of its image processor."""

    size: dict[str, int]

    def save_pretrained(self, save_directory: Path) -> object: ...


def save_model_folder(
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Processor,
    path: Path,
    metrics: Metrics,
    run: RunDescription | None = None,
    with_code: bool = False,
    score: Mapping[str, object] | None = None,
) -> None:
    """Write the folder atomically; evaluation and prediction need nothing else, and no hub.

    It holds `config.json`, `model.safetensors` (LoRA adapters merged), `preprocessor_config.json`, `README.md`, and the
    DINOv3 License for weights that derive from DINOv3. run: adds `train_config.json` and, if it has an overlay,
    `overlay.jpg`. with_code: see `bundled_code`. score: what resuming needs to know,
    in `score.json`. Raises CheckpointError when it cannot be written.
    """
    with write_folder(path) as folder:
        write_model_files(model, processor, folder, metrics, run)
        if with_code:
            write_code(folder)
        if score is not None:
            (folder / SCORE_FILE).write_text(json.dumps(score, indent=2) + "\n", encoding="utf-8")


def write_model_files(
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Processor,
    folder: Path,
    metrics: Metrics,
    run: RunDescription | None,
) -> None:
    """Write the files of `save_model_folder`, but the code, into an existing folder."""
    model.save_pretrained(folder, state_dict=merged_state(model))
    processor.save_pretrained(folder)
    # safetensors makes its files readable for the owner only.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    (folder / "README.md").write_text(card_of(model, processor, metrics, run), encoding="utf-8")
    if run:
        (folder / OPTIONS_FILE).write_text(json.dumps(run.options, indent=2) + "\n", encoding="utf-8")
    if run and run.overlay:
        (folder / OVERLAY_FILE).write_bytes(run.overlay.jpeg)
    if is_derived(model.config):
        shutil.copyfile(LICENCE_TEXT, folder / LICENSE_FILE)


def card_of(
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Processor,
    metrics: Metrics,
    run: RunDescription | None,
) -> str:
    """The text of a model's README.md."""
    canvas = (int(processor.size["height"]), int(processor.size["width"]))
    return model_card(model.config, canvas, metrics, run)


def collect_versions() -> dict[str, str]:
    """Versions of the packages in use, and the git commit when this package runs from a checkout."""
    packages = ("torch", "transformers", "accelerate", "numpy")
    result = {"mask2former-dinov3": __version__, "python": platform.python_version()}
    result |= {name: version(name) for name in packages}
    package = Path(__file__).parents[1]
    if shutil.which("git") is None:
        return result
    words = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split("\n")
    # An environment inside another repository must not report that repository's commit.
    is_ours = len(lines) > 1 and Path(lines[0]) / "src" == package.parent
    return result | ({"commit": lines[1]} if is_ours else {})
