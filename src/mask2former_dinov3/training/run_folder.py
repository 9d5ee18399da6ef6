"""The run folder: what is set aside when a run goes on from an older checkpoint, and the best score so far.

A run folder holds one line of checkpoints. What is newer than the checkpoint that a run goes on from belongs to a
branch that was given up: it moves to `set-aside-N/` and is neither resumed nor removed. `best/` stays in its place
until a better model replaces it; its `score.json` says what its number is of, and other numbers are not compared.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from ..atomic_files import check_writable, move_folder, remove_folder, sweep
from ..config.train_config import TrainConfig
from ..data.coco import CocoData
from ..errors import OptionError, UserError
from ..json_files import is_integer, is_number, read_json_object
from ..model_folder.folder import SCORE_FILE
from .checkpoint import checkpoint_step, list_checkpoints

logger = logging.getLogger(__name__)
REHEARSAL = "rehearsal"  # the folder that a run writes and removes before its first step


@dataclass(frozen=True)
class Score:
    """The number by which `best/` was chosen, and what it is of. data: a digest of the validation data.

    value is None for a model that was not scored.
    """

    step: int
    metric: str
    value: float | None
    data: str
    max_detections: int

    def is_of_the_same(self, other: Score) -> bool:
        """Whether the two values can be compared."""
        mine, others = ((one.metric, one.data, one.max_detections) for one in (self, other))
        return mine == others

    def describe(self) -> str:
        """The number in words."""
        value = "undefined" if self.value is None else f"{self.value:.4f}"
        return f"{self.metric} {value} of step {self.step} (at most {self.max_detections} detections per image)"


def digest_of(data: CocoData) -> str:
    """A checksum of what the images of a split are, and which instances they have; not of where they lie."""
    names = [category.name for category in data.categories]
    found = hashlib.sha256()
    for image in data.images:
        labels = [(names[one.label], one.iscrowd, round(one.area, 1)) for one in image.annotations]
        found.update(json.dumps([image.file_name, image.height, image.width, labels]).encode())
    return found.hexdigest()[:16]


def prepare_folder(config: TrainConfig) -> None:
    """Create the run folder and sweep it. Raises UserError when it cannot be written, or holds another run."""
    output_dir = Path(config.output_dir)
    check_writable(output_dir)
    for restored in sweep(output_dir):
        logger.warning("%s: brought back, because the run ended while it was replaced", restored)
    if (output_dir / REHEARSAL).exists():
        remove_folder(output_dir / REHEARSAL)
    resumed = config.resume_from_checkpoint
    if resumed == "latest" or (resumed is not None and Path(resumed).resolve().parent == output_dir.resolve()):
        return
    if list_checkpoints(output_dir) or any((output_dir / name).exists() for name in ("best", "last")):
        raise OptionError(
            "output_dir",
            "a folder without a run",
            f"{output_dir} with an earlier run",
            "resume it with --resume-from-checkpoint latest, or choose another --output-dir",
        )


def read_score(folder: Path) -> Score | None:
    """The score that was saved with a model folder; None for one without it, or with a damaged one."""
    try:
        stored = read_json_object(folder / SCORE_FILE)
    except UserError:
        return None
    step, metric, value = stored.get("step"), stored.get("metric"), stored.get("value")
    data, limit = stored.get("data"), stored.get("max_detections")
    if not is_integer(step) or not is_integer(limit) or not isinstance(metric, str) or not isinstance(data, str):
        return None
    if value is not None and not is_number(value):
        return None
    return Score(step, metric, value, data, limit)


def best_so_far(
    output_dir: Path, now: Score, known: tuple[float | None, int | None]
) -> tuple[float | None, int | None]:
    """Value and step of the model in `best/`, if its value can be compared with that of a run like `now`; else None.

    known: what the checkpoint says, for a `best/` of an earlier version, which has no score.
    """
    best = output_dir / "best"
    if not best.is_dir():
        return None, None
    score = read_score(best)
    if score is None:
        return known
    return (score.value, score.step) if score.is_of_the_same(now) else (None, None)


def set_aside_best(output_dir: Path, now: Score) -> None:
    """Move a `best/` whose number is of something else out of the way of the first one that can be compared."""
    best = output_dir / "best"
    score = read_score(best) if best.is_dir() else None
    if score is not None and not score.is_of_the_same(now):
        target = _new_folder(output_dir)
        move_folder(best, target / "best")
        logger.warning("best/ was chosen by %s, which is not compared with what this run measures", score.describe())
        logger.warning("it is set aside as %s, and the choice of best/ begins again", target / "best")


def set_aside_newer(output_dir: Path, step: int) -> Path | None:
    """Move what is newer than `step` to `set-aside-N/`, which is returned; None when nothing is newer."""
    newer = [path for path in output_dir.glob("checkpoint-*") if (checkpoint_step(path) or 0) > step]
    last = output_dir / "last"
    score = read_score(last) if last.is_dir() else None
    if last.is_dir() and (score.step > step if score is not None else bool(newer)):
        newer.append(last)
    if not newer:
        return None
    target = _new_folder(output_dir)
    for path in sorted(newer):
        move_folder(path, target / path.name)
    names = ", ".join(path.name for path in sorted(newer))
    logger.warning("going on from step %d: what is newer (%s) is set aside in %s", step, names, target)
    best = read_score(output_dir / "best")
    if best is not None and best.step > step:
        logger.warning("best/ stays until a better model replaces it: %s", best.describe())
    return target


def _new_folder(output_dir: Path) -> Path:
    number = 1
    while (output_dir / f"set-aside-{number}").exists():
        number += 1
    return output_dir / f"set-aside-{number}"


def score_entries(score: Score) -> dict[str, object]:
    """The content of score.json."""
    return asdict(score)
