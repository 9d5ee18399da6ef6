"""One trial: the process of `train`, its evaluations as they come, and how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..json_files import is_integer, is_number

RECIPE_FILE, LOG_FILE, STOP_FILE = "trial_config.json", "train.log", ".stop"
FINISHED, STOPPED, FAILED, INTERRUPTED = "finished", "stopped", "failed", "interrupted"
_POLL_SECONDS = 0.2
_INTERRUPTED_CODE = 130


def evaluations_of(folder: Path, metric: str) -> list[tuple[int, float]]:
    """(step, metric) of each evaluation on the validation split in a run folder; -1 where COCO leaves it undefined."""
    return evaluations_in(logged_steps(folder), metric)


def evaluations_in(lines: Iterable[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """As `evaluations_of`, of the lines of a log."""
    valid = (line for line in lines if line.get("split") == "valid")
    return [(line["step"], float(line[metric]) if is_number(line.get(metric)) else -1.0) for line in valid]


def logged_steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in a run folder that have a step; of a log that cannot be read there are none."""
    try:
        texts = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for text in texts:
        with suppress(ValueError):  # a line that is being written
            line = json.loads(text)
            if isinstance(line, dict) and is_integer(line.get("step")):
                found.append(line)
    return found


def last_step_of(folder: Path, lines: Iterable[Mapping[str, Any]] | None = None) -> int:
    """The last optimiser step that a run folder knows of: logged, or saved in a checkpoint; 0 for none.

    lines: of its log, if they are read already.
    """
    lines = logged_steps(folder) if lines is None else lines
    saved = (path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*"))
    return max([*(int(step) for step in saved if step.isdecimal()), *(line["step"] for line in lines)], default=0)


def ask_to_stop(folder: Path) -> None:
    """Ask for the stop of the trial with this run folder, or of all trials in this output folder."""
    (folder / STOP_FILE).touch()


class TrialRun:
    """A trial whose process runs from the call of the constructor.

    folder: the run folder, which has the recipe; its parent is the output folder of the search. A run that has a
    checkpoint is resumed. environment: variables of the process besides those of this one.
    """

    def __init__(self, folder: Path, metric: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.metric = folder, metric
        self.reported = 0
        self._read: tuple[float, int] | None = None  # time and size of metrics.jsonl when it was read
        self._found: list[tuple[int, float]] = []
        self.asked: str | None = None  # the state that the trial has when it ends because it was asked to
        (folder / STOP_FILE).unlink(missing_ok=True)  # of a search that was killed
        self.log: IO[bytes] = (folder / LOG_FILE).open("ab")
        self.log_start = self.log.tell()
        self.process: subprocess.Popen[bytes] | None = None
        if not self._asks(folder.parent):
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.trial_process", str(folder), *self._words()],
                stdin=subprocess.PIPE,
                stdout=self.log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,  # Ctrl-C in a terminal reaches the command, which then asks for the stop
            )

    def _words(self) -> list[str]:
        if any(self.folder.glob("checkpoint-*")):
            return ["train", "--output-dir", str(self.folder), "--resume-from-checkpoint", "latest"]
        return ["train", "--config", str(self.folder / RECIPE_FILE)]

    def _asks(self, folder: Path) -> bool:
        return (folder / STOP_FILE).exists()

    def next_result(self, seconds: float) -> dict[str, object]:
        """What happened next: an evaluation, the end, or nothing within `seconds` (empty).

        An evaluation: `evaluations` (its number, from 1), `step`, `value`. The end: `done`, `state`, `cause`.
        """
        until = time.monotonic() + seconds
        while True:
            ended = self.process is None or self.process.poll() is not None  # before the last lines are read
            found = self._evaluations()
            if len(found) > self.reported:
                step, value = found[self.reported]
                self.reported += 1
                return {"evaluations": self.reported, "step": step, "value": value}
            if ended:
                return {"done": True, **self._end()}
            if self.asked is None:
                self.asked = INTERRUPTED if self._asks(self.folder.parent) else None
                self.asked = self.asked or (STOPPED if self._asks(self.folder) else None)
                if self.asked is not None:
                    self.stop()
            if time.monotonic() >= until:
                return {}
            time.sleep(_POLL_SECONDS)

    def _evaluations(self) -> list[tuple[int, float]]:
        """`evaluations_of` the run so far; the file is read again only when it has changed."""
        try:
            status = (self.folder / "metrics.jsonl").stat()
        except OSError:
            return []
        if self._read != (status.st_mtime, status.st_size):
            self._read = status.st_mtime, status.st_size
            self._found = evaluations_of(self.folder, self.metric)
        return self._found

    def stop(self) -> None:
        """Ask the process to finish its step and save."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def wait(self) -> None:
        """Ask the process to stop, and wait for its end."""
        self.stop()
        if self.process is not None:
            self.process.wait()
        self.log.close()

    def _end(self) -> dict[str, object]:
        """State of a trial whose process has ended, and why it failed if it did."""
        self.log.close()
        (self.folder / STOP_FILE).unlink(missing_ok=True)
        code = None if self.process is None else self.process.returncode
        if code in (None, _INTERRUPTED_CODE) or (self.asked and code == -signal.SIGTERM):
            return {"state": self.asked or INTERRUPTED, "cause": ""}
        if code == 0 and self.reported:
            return {"state": FINISHED, "cause": ""}
        if code == 0:
            return {"state": FAILED, "cause": "no evaluation: the data have no validation images"}
        return {"state": FAILED, "cause": self._cause(code or 0)}

    def _cause(self, code: int) -> str:
        """Why the process failed: its error, or the last line of its log."""
        if code < 0:
            name = signal.Signals(-code).name if -code in {*signal.Signals} else str(-code)
            memory = ": most likely out of memory" if -code == signal.SIGKILL else ""
            return f"its process was ended by {name}{memory}"
        with (self.folder / LOG_FILE).open("rb") as log:
            log.seek(self.log_start)
            lines = log.read().decode("utf-8", "replace").splitlines()
        start = next((place for place, line in enumerate(lines) if line.startswith("error: ")), None)
        if start is not None:
            return "\n".join([lines[start].removeprefix("error: "), *lines[start + 1 :]]).strip()
        written = [line for line in lines if line.strip()]
        return f"exit code {code}: {written[-1].strip()}" if written else f"exit code {code}"
