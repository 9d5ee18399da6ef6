"""State and score of each trial of a search: trials.json, trials.csv, the table, and the best recipe."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..atomic_files import write_json, write_text
from ..data.faults import plain_cell
from ..errors import CheckpointError, OptionError, mismatch
from ..json_files import describe, read_json_object
from .trial_recipes import Search
from .trial_run import FAILED, FINISHED, INTERRUPTED, STOPPED, evaluations_in, last_step_of, logged_steps

TRIALS_JSON, TRIALS_CSV, BEST_CONFIG = "trials.json", "trials.csv", "best_config.json"
WAITING, RUNNING = "waiting", "running"
_STATES = (FINISHED, STOPPED, INTERRUPTED, RUNNING, FAILED, WAITING)


@dataclass(frozen=True)
class TrialRecord:
    """One trial. steps: optimiser steps done. value, best_step: of its best evaluation, None without one.

    state: finished (all its steps), stopped (by the scheduler), failed (cause says why), interrupted (goes on when the
    search does), running, or waiting.
    """

    trial: str
    options: dict[str, object]
    steps: int
    evaluations: int
    value: float | None
    best_step: int | None
    state: str
    cause: str


class TrialRecords:
    """The trials of a search, and what is known of them. Numbers count from 1."""

    def __init__(self, output: Path, search: Search) -> None:
        """Reads what an earlier call left in `output`. Raises OptionError when that is of another search."""
        self.output, self.search = output, search
        self.states: dict[int, tuple[str, str]] = {}
        if (output / TRIALS_JSON).exists():
            self._read(read_json_object(output / TRIALS_JSON, "the trials of a search (JSON)", raises=CheckpointError))
        elif next(output.glob("trial-*"), None) is not None:
            got = f"{output} with trials, but without {TRIALS_JSON}"
            raise OptionError("output", "a new folder, or the folder of this search", got, "choose another")

    def folder(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.output / trial_name(number)

    def _read(self, stored: dict[str, object]) -> None:
        for option, key, now in (("search", "search", self.search.content), ("config", "recipe", self.search.base)):
            then = stored.get(key)
            if not isinstance(then, dict):
                raise CheckpointError(f"{self.output / TRIALS_JSON}: {mismatch(f'an object {key}', describe(then))}")
            names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
            if names:
                expected = f"what the search in {self.output} was begun with"
                advice = "set it back, or choose another --output"
                raise OptionError(option, expected, f"another {', '.join(names)}", advice)
        trials = stored.get("trials")
        if not isinstance(trials, list):
            raise CheckpointError(f"{self.output / TRIALS_JSON}: {mismatch('a list trials', describe(trials))}")
        if len(trials) > len(self.search.trials):
            expected = f"at least {len(trials)}, the trials of {self.output} so far"
            raise OptionError("budget", expected, len(self.search.trials))
        for number, trial in enumerate(trials, start=1):
            if not isinstance(trial, dict) or not trial.keys() >= {"trial", "options", "state", "cause"}:
                raise CheckpointError(f"{self.output / TRIALS_JSON}: {mismatch('trials with their states', 'others')}")
            if trial["options"] != self.search.trials[number - 1]:
                expected = f"a search that this version draws the trials of {self.output} for"
                raise OptionError("output", expected, f"another {trial['trial']}", "choose another")
            state = trial["state"] if trial["state"] in _STATES else WAITING
            self.states[number] = (INTERRUPTED if state == RUNNING else state, trial["cause"])

    def left(self, *, retry_failed: bool) -> list[int]:
        """The trials that are not done, those that have begun first."""
        undone = [INTERRUPTED, *([FAILED] if retry_failed else []), WAITING]
        numbers = [one for one in range(1, len(self.search.trials) + 1) if self.state(one) in undone]
        return sorted(numbers, key=lambda one: undone.index(self.state(one)))

    def state(self, number: int) -> str:
        """The state of a trial."""
        return self.states.get(number, (WAITING, ""))[0]

    def set_state(self, number: int, state: str, cause: str = "") -> None:
        """Note the state of a trial, and write all of them."""
        self.states[number] = (state, cause)
        self.write()

    def record(self, number: int) -> TrialRecord:
        """What is known of a trial, read from its run folder."""
        folder = self.folder(number)
        lines = logged_steps(folder)
        found = evaluations_in(lines, self.search.metric)
        value, step = max(((value, step) for step, value in found if value >= 0), default=(None, None))
        state, cause = self.states.get(number, (WAITING, ""))
        options = dict(self.search.trials[number - 1])
        return TrialRecord(folder.name, options, last_step_of(folder, lines), len(found), value, step, state, cause)

    def ranked(self) -> list[TrialRecord]:
        """All trials: by score, then failed ones that have a score, then those without one."""
        records = [self.record(number) for number in range(1, len(self.search.trials) + 1)]
        return sorted(
            records,
            key=lambda one: (one.value is None, one.state == FAILED, -(one.value or 0.0), _STATES.index(one.state)),
        )

    def best(self) -> TrialRecord | None:
        """The best trial; None as long as none is evaluated that did not fail."""
        return self._best_of(self.ranked())

    def _best_of(self, ranked: Sequence[TrialRecord]) -> TrialRecord | None:
        first = ranked[0]
        return None if first.value is None or first.state == FAILED else first

    def count(self, *states: str) -> int:
        """How many trials are in one of these states."""
        return sum(self.state(number) in states for number in range(1, len(self.search.trials) + 1))

    def write(self) -> None:
        """Write trials.json, trials.csv, and best_config.json once a trial is evaluated."""
        metric, ranked = self.search.metric, self.ranked()
        content = {
            "metric": metric,
            "recipe": self.search.base,
            "search": self.search.content,
            "trials": [_renamed(one, metric) for one in sorted(ranked, key=lambda one: int(one.trial[6:]))],
        }
        write_json(self.output / TRIALS_JSON, content)
        names = list(self.search.content)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["trial", *names, "steps", metric, "best_step", "evaluations", "state", "cause"])
        for one in ranked:
            values = [json.dumps(one.options[name], ensure_ascii=False) for name in names]
            score = [one.steps, one.value, one.best_step, one.evaluations]
            table.writerow([plain_cell(cell) for cell in (one.trial, *values, *score, one.state, one.cause)])
        write_text(self.output / TRIALS_CSV, text.getvalue())
        if (best := self._best_of(ranked)) is not None:
            write_json(self.output / BEST_CONFIG, self._best_recipe(best))

    def _best_recipe(self, best: TrialRecord) -> dict[str, object]:
        """The recipe of a trial for a run of its own."""
        found = f"{self.search.metric} {best.value:.4f} at step {best.best_step}"
        description = f"Found by tune: {best.trial} of {len(self.search.trials)}, {found}."
        own = {"description": description, "output_dir": str(self.output / "best-run")}
        return {**self.search.base, **best.options, **own}

    def lines(self) -> Iterator[str]:
        """The table for the terminal, the best trial first, then the causes of failed ones."""
        names = list(self.search.content)
        rows = [["trial", *names, "steps", self.search.metric, "at step", "state"]]
        ranked = self.ranked()
        for one in ranked:
            score = ["-", "-"] if one.value is None else [f"{one.value:.4f}", str(one.best_step)]
            rows.append([one.trial, *(_short(one.options[name]) for name in names), str(one.steps), *score, one.state])
        yield from _aligned(rows)
        for one in ranked:
            if one.cause:
                yield f"{one.trial} failed: {one.cause}"


def trial_name(number: int) -> str:
    """The name of a trial and of its run folder: trial-003."""
    return f"trial-{number:03}"


def _renamed(one: TrialRecord, metric: str) -> dict[str, object]:
    """A record as trials.json has it: its value under the name of the metric."""
    return {metric if name == "value" else name: value for name, value in asdict(one).items()}


def _short(value: object) -> str:
    """A value of an option as a cell of the table."""
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells in columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
