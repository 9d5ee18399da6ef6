"""Change the score threshold that a model folder stores; its weights stay as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..atomic_files import write_text
from ..data.coco_json import class_name
from ..errors import CheckpointError, mismatch
from ..json_files import read_json_object
from ..model.configuration import threshold_text
from .contents import check_model_folder

CARD_LINE = "Score threshold: "  # how the line of the model card begins


def card_line(score_threshold: float | Mapping[str, float], source: Mapping[str, object] | None) -> str:
    """The line of the model card on the threshold."""
    return f"{CARD_LINE}{threshold_text(score_threshold, source)}; used unless another is given."


def fit_classes(
    score_threshold: float | Mapping[str, float], names: Mapping[int, str], otherwise: float, where: str
) -> float | dict[str, float]:
    """Thresholds for the classes of a model, by its own names. otherwise: of the classes that have none.

    Raises CheckpointError for a class that the model does not have.
    """
    if not isinstance(score_threshold, Mapping):
        return score_threshold
    own = {class_name(str(name)) or str(name): str(name) for name in names.values()}
    if unknown := sorted(set(score_threshold) - set(own)):
        raise CheckpointError(f"{where}: {mismatch('classes of the model', ', '.join(unknown))}")
    return {name: score_threshold.get(read, otherwise) for read, name in own.items()}


def store_threshold(
    folder: Path,
    score_threshold: float | Mapping[str, float],
    source: Mapping[str, object],
    otherwise: float,
    **others: object,
) -> float | dict[str, float]:
    """Write the threshold into config.json, atomically, and into the line of README.md if it has one.

    source: see `Mask2FormerDinov3Config`. otherwise: for classes of the model that `score_threshold` by class lacks.
    others: further fields, such as copy_overlap; those that are not given stay. Returns what is stored. Raises
    CheckpointError for a folder that is no model, or cannot be written.
    """
    check_model_folder(folder)
    path = folder / "config.json"
    config = read_json_object(path, raises=CheckpointError)
    names = config.get("id2label")
    if not isinstance(names, dict):
        raise CheckpointError(f"{path}: id2label: {mismatch('an object of labels and names', names)}")
    fitted = fit_classes(score_threshold, names, otherwise, str(folder))
    changed = {**config, "score_threshold": fitted, "score_threshold_source": dict(source), **others}
    write_text(path, json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    card = folder / "README.md"
    if card.is_file():
        lines = card.read_text(encoding="utf-8").split("\n")
        new = [card_line(fitted, source) if line.startswith(CARD_LINE) else line for line in lines]
        if new != lines:
            write_text(card, "\n".join(new))
    return fitted
