"""A search as Ray Tune sees it: the trial, the scheduler, and what follows from what trials report.

The only module of the room that imports Ray as it is loaded.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune import Callback, Trainable
from ray.tune.schedulers import ASHAScheduler

from ..training.signals import StopRequest
from .trial_records import RUNNING, TrialRecords, trial_name
from .trial_run import FAILED, RECIPE_FILE, STOPPED, TrialRun, ask_to_stop, evaluations_of

logger = logging.getLogger(__name__)
_WAIT_SECONDS = 1.0  # for the next result of a trial, before the scheduler hears that there is none
_LARGEST = 3**12  # evaluations: no run has as many


class RayTrial(Trainable):
    """A trial on one node of the cluster. A step is an evaluation, or a second without one.

    `trial` in its config: `number`, `folder` (the run folder, on every machine the same), `metric`, `environment`,
    `directory` (where the command was started, which relative paths of the recipe refer to).
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Start the process of the trial."""
        given = config["trial"]
        folder, directory = Path(given["folder"]), Path(given["directory"])
        self.trial: TrialRun | None = None
        self.missing = next((path for path in (folder / RECIPE_FILE, directory) if not path.exists()), None)
        if self.missing is None:
            os.chdir(directory)
            self.trial = TrialRun(folder, given["metric"], given["environment"])

    def step(self) -> dict[str, object]:
        """The next result of the trial; see `TrialRun.next_result`."""
        if self.trial is None:
            place = f"{os.uname().nodename} does not have {self.missing}"
            return {"done": True, "state": FAILED, "cause": f"{place}; all machines need the same folders"}
        return self.trial.next_result(_WAIT_SECONDS)

    def cleanup(self) -> None:
        """Stop the process if it still runs, with its work saved."""
        if self.trial is not None:
            self.trial.wait()


class SavingAsha(ASHAScheduler):
    """ASHA (arXiv:1810.05934) that asks a trial to stop and lets it save, instead of ending its actor.

    After 1, 3, 9 … evaluations times `grace`, a trial goes on if it is in the best third of those that came as far.
    """

    def __init__(self, grace: int) -> None:
        super().__init__(
            time_attr="evaluations",
            metric="value",
            mode="max",
            max_t=grace * _LARGEST,
            grace_period=grace,
            reduction_factor=3,
            stop_last_trials=False,
        )

    def learn(self, name: str, found: list[tuple[int, float]]) -> None:
        """Take in the evaluations of a trial that is done, from an earlier call."""
        earlier = SimpleNamespace(trial_id=name)
        self.on_trial_add(None, earlier)
        for number, (_, value) in enumerate(found, start=1):
            super().on_trial_result(None, earlier, {"evaluations": number, "value": value})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray Tune calls this for each result of a running trial."""
        if super().on_trial_result(tune_controller, trial, result) == self.STOP:
            ask_to_stop(Path(trial.config["trial"]["folder"]))
        return str(self.CONTINUE)


class SearchProgress(Callback):
    """Notes what becomes of each trial, and stops the search when that is requested."""

    def __init__(self, records: TrialRecords, stop: StopRequest) -> None:
        self.records, self.stop = records, stop
        self.running: set[int] = set()

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Ray Tune copies callbacks to its own files, which no search is continued from."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray Tune calls this many times a second. Raises KeyboardInterrupt once all trials have saved their work."""
        if self.stop.requested:
            ask_to_stop(self.records.output)
            if not self.running:
                raise KeyboardInterrupt

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has got its place on the cluster."""
        number = trial.config["trial"]["number"]
        options = ", ".join(f"{name} {value}" for name, value in self.records.search.trials[number - 1].items())
        logger.info("%s started: %s", trial_name(number), options)
        self.running.add(number)
        self.records.set_state(number, RUNNING)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial was evaluated, or a second has passed."""
        if "value" in result:
            metric, name = self.records.search.metric, trial_name(trial.config["trial"]["number"])
            logger.info("%s step %d: %s %.4f", name, result["step"], metric, result["value"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process of a trial has ended."""
        self._end(trial.config["trial"]["number"], str(trial.last_result["state"]), str(trial.last_result["cause"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray has lost a trial for good."""
        reason = str(trial.get_error() or "").strip().splitlines()
        cause = "Ray lost the process that ran it, or its machine"
        self._end(trial.config["trial"]["number"], FAILED, f"{cause} ({reason[-1]})" if reason else cause)

    def _end(self, number: int, state: str, cause: str) -> None:
        self.running.discard(number)
        self.records.set_state(number, state, cause)
        done = self.records.record(number)
        score = "no evaluation" if done.value is None else f"best {self.records.search.metric} {done.value:.4f}"
        after = " by the scheduler" if state == STOPPED else ""
        logger.info("%s %s%s at step %d: %s", done.trial, state, after, done.steps, cause.partition("\n")[0] or score)


def evaluated_before(records: TrialRecords, left: list[int]) -> dict[str, list[tuple[int, float]]]:
    """The evaluations of the trials that are done, by name."""
    done = [number for number in range(1, len(records.search.trials) + 1) if number not in left]
    return {trial_name(number): evaluations_of(records.folder(number), records.search.metric) for number in done}
