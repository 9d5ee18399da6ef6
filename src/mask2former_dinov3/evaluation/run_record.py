"""What a training run has left in its folder, for a report: its log, its options, where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data.numbers import number
from ..errors import ConfigError
from ..json_files import read_json_object


@dataclass(frozen=True)
class RunRecord:
    """A run so far. options: of its train_config.json. series: name of a logged number -> (step, value) in the order of
    the log; those of evaluations begin with the name of their split, such as "valid AP". step: the last one logged.
    seconds: time since the last start of the run. stopped: why it ended, a sentence. unread: lines of the log that are
    no JSON object with a step. versions: package -> version.
    """

    options: dict[str, object]
    series: dict[str, list[tuple[float, float]]]
    step: int
    epoch: float
    seconds: float
    stopped: str
    unread: int
    versions: Mapping[str, str]


def read_run(folder: Path, stopped: str, versions: Mapping[str, str]) -> RunRecord:
    """Read metrics.jsonl and train_config.json of a run folder; of a log that does not exist there are no series.

    Raises ConfigError for options that are no JSON object.
    """
    options = read_json_object(folder / "train_config.json", "the options of a run (JSON)", raises=ConfigError)
    series: dict[str, list[tuple[float, float]]] = {}
    last: Mapping[str, object] = {}
    unread = 0
    log = folder / "metrics.jsonl"
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []:
        line = _parse(text)
        if line is None:
            unread += 1
            continue
        last = line
        split = line.get("split")
        for name, value in line.items():
            if name in ("step", "epoch", "time") or isinstance(value, bool):
                continue
            if isinstance(value, int | float):
                label = f"{split} {name}" if split is not None else name
                series.setdefault(label, []).append((float(number(line["step"]) or 0), float(value)))
    return RunRecord(
        options=dict(options),
        series=series,
        step=int(number(last.get("step")) or 0),
        epoch=float(number(last.get("epoch")) or 0.0),
        seconds=float(number(last.get("time")) or 0.0),
        stopped=stopped,
        unread=unread,
        versions=versions,
    )


def _parse(text: str) -> dict[str, object] | None:
    """A line of the log, None for one that is cut off."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and number(line.get("step")) is not None else None
