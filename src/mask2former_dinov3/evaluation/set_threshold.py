"""Store the score threshold of an evaluation, or a given one, in a model folder."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from ..data.coco_types import OperatingBlock
from ..errors import ConfigError, DatasetError, mismatch
from ..inference.score_calibration import UNCHANGED, ScoreCalibration
from ..inference.settings import InferenceSettings
from ..model.configuration import threshold_text
from ..model_folder.contents import check_model_folder
from ..model_folder.thresholds import store_threshold
from .calibration_fit import calibration_in
from .operating_point import Aim
from .scored_model import METRICS_FILE, read_operating_block
from .threshold_choice import choose_again, operating_lines, stored_maps, stored_threshold


def set_threshold(
    model: Path, evaluation: Path | None = None, threshold: float | None = None, aim: Aim | None = None
) -> list[str]:
    """Store a threshold in a model folder: that of an evaluation (the folder that `evaluate` wrote), or `threshold`.

    aim: choose another threshold among those of the evaluation. With a threshold of calibrated scores the calibration
    is stored, too. Returns lines for people. Raises ConfigError unless one
    of evaluation and threshold is given, DatasetError for a folder without an operating point, CheckpointError for a
    model folder that cannot be read or written. Only config.json and the card's line change, each atomically.
    """
    if (evaluation is None) == (threshold is None):
        raise ConfigError("set-threshold: expected an evaluation or a threshold, got both or none; give one")
    check_model_folder(model)
    if threshold is not None:
        InferenceSettings(threshold=threshold)  # checks the value
        source: dict[str, object] = {"metric": "given by hand", "date": date.today().isoformat()}
        stored = store_threshold(model, threshold, source, threshold)
        return [f"{model / 'config.json'}: score threshold {threshold_text(stored, source)}"]
    assert evaluation is not None
    block = _read_block(evaluation)
    block = block if aim is None else choose_again(block, aim)
    numbers = block.get("calibration")
    before = None if numbers is None or numbers["before"] is None else ScoreCalibration(*numbers["before"])
    fields = stored_threshold(block, before)
    if fields["score_threshold"] is None or block["threshold"] is None or fields["score_threshold_source"] is None:
        raise DatasetError(f"{evaluation}: {mismatch('an evaluation with a threshold', 'none', block['why'])}")
    others: dict[str, object] = {"copy_overlap": fields["copy_overlap"]}
    if before is not None or (numbers is not None and numbers["applied"]):
        others["score_calibration"] = fields["score_calibration"]
    overall = float(stored_maps(block, before)[0].apply(block["threshold"]))
    chosen = store_threshold(model, fields["score_threshold"], fields["score_threshold_source"], overall, **others)
    text = f"{model / 'config.json'}: score threshold {threshold_text(chosen, fields['score_threshold_source'])}"
    if overall != block["threshold"]:
        text += f", of calibrated scores; it was {block['threshold']:.4g} before calibration"
    elif before is None and calibration_in(numbers) != UNCHANGED:
        text += "; the scores stay as they are: calibrated ones need an evaluation of the model, not of a file"
    return [*operating_lines(block), text]


def _read_block(evaluation: Path) -> OperatingBlock:
    path = evaluation if evaluation.is_file() else evaluation / METRICS_FILE
    if not path.is_file():
        got = f"a folder without {METRICS_FILE}" if evaluation.is_dir() else "no such file or folder"
        advice = "run `evaluate --model M --output DIR` and give its DIR, or a run folder"
        raise DatasetError(f"{evaluation}: {mismatch('the output folder of evaluate', got, advice)}")
    return read_operating_block(path)
