"""Check that a folder holds a model of this package, before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, mismatch
from ..json_files import read_json_object
from ..version import MODEL_TYPE


def check_model_folder(folder: Path, files: tuple[str, ...] = ("config.json", "preprocessor_config.json")) -> None:
    """Raise CheckpointError unless `folder` has these files and its config.json describes a model of this package."""
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        advice = "training saves model folders as best/ and last/ in output_dir"
        got = f"a folder without {' and '.join(missing)}" if folder.is_dir() else "no folder"
        raise CheckpointError(f"{folder}: {mismatch('a model folder', got, advice)}")
    kind = read_json_object(folder / "config.json", raises=CheckpointError).get("model_type")
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{folder / 'config.json'}: {mismatch(f'model_type {MODEL_TYPE!r}', repr(kind))}")
