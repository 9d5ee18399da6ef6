"""What a folder must hold to be a model of ours, asked before anything heavy is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import CheckpointError

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
