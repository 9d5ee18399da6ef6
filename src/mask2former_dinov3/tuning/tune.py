"""One search: checks, the trials that are left on Ray Tune, and what they gave.

Ray Tune places the trials and its ASHA judges them. Nothing of a search is kept in Ray's own files: a trial is a run
folder, and `trials.json` says what became of it. So a search goes on after any end, with another number of machines or
another version of Ray.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..atomic_files import make_folder, write_json
from ..cluster.connection import connect_ray, live_nodes
from ..errors import OptionError
from ..extras import require
from ..folder_lock import hold_folder
from ..training.signals import StopRequest
from .trial_places import reserve_for_trials
from .trial_recipes import plan_search
from .trial_records import TrialRecords, trial_name
from .trial_run import FAILED, FINISHED, RECIPE_FILE, STOP_FILE, STOPPED

logger = logging.getLogger(__name__)
_LOST = 2  # how often a trial is begun again that Ray has lost with its machine


@dataclass(frozen=True)
class TuneSettings:
    """How trials run. at_once: maximum number at the same time. cpus, gpus: of each (see `reserve_for_trials`).

    grace: evaluations before a trial may be stopped. ray_address: as in `batch_predict`.
    """

    at_once: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    grace: int = 1
    ray_address: str | None = None
    retry_failed: bool = False

    def __post_init__(self) -> None:
        """Raises OptionError for a value that no search can use."""
        if self.cpus is not None and not 0 < self.cpus < math.inf:
            raise OptionError("cpus_per_trial", "a number above 0", self.cpus)
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            raise OptionError("gpus_per_trial", "a number from 0 to 1", self.gpus, "a trial runs on one GPU")


def tune(
    source: str | None,
    words: Sequence[str],
    search: Path,
    *,
    budget: int,
    output: Path | None = None,
    settings: TuneSettings | None = None,
) -> TrialRecords:
    """Search for the best options of a training run with `budget` trials; returns what is known of them.

    source, words: JSON file and flags of the recipe, as `load_config` takes them. search: see `read_search`. output:
    folder of the search, None for the recipe's `output_dir`. What an earlier call with this output has done is kept.
    Raises UserError for what the user can fix, and KeyboardInterrupt after a requested stop; every trial is then saved.
    """
    settings = settings or TuneSettings()
    require("ray", "tune", "ray", "pandas", "pyarrow", "tensorboardX")
    planned = plan_search(source, [*words, *(["--output-dir", str(output)] if output else [])], search, budget)
    for note in planned.notes:
        logger.warning("note: %s", note)
    output = Path(planned.config.output_dir).absolute()
    with hold_folder(output, "output", "tune"):
        records = TrialRecords(output, planned)
        (output / STOP_FILE).unlink(missing_ok=True)
        left = records.left(retry_failed=settings.retry_failed)
        if len(left) < len(planned.trials):
            logger.info("%d of %d trials were done before", len(planned.trials) - len(left), len(planned.trials))
        for number in left:
            make_folder(records.folder(number))
            recipe = planned.recipe(number, records.folder(number))
            write_json(records.folder(number) / RECIPE_FILE, recipe)
        records.write()
        if left:
            try:
                with StopRequest() as stop, connect_ray(settings.ray_address):
                    _run_trials(records, left, settings, stop)
            except KeyboardInterrupt:
                done, all_ = records.count(FINISHED, STOPPED, FAILED), len(planned.trials)
                message = f"stopped after {done} of {all_} trials in {output}; the same command continues from there"
                raise KeyboardInterrupt(message) from None
            finally:
                (output / STOP_FILE).unlink(missing_ok=True)
        records.write()
    return records


def _run_trials(records: TrialRecords, left: list[int], settings: TuneSettings, stop: StopRequest) -> None:
    """Run the trials that are left on Ray Tune. Raises KeyboardInterrupt once a requested stop is done."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it gives trials five seconds; `stop` gives them all they need
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a second without an evaluation is a result without one
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints tables with verbose 0, too
    from ray import tune as ray_tune

    from .ray_trials import RayTrial, SavingAsha, SearchProgress, evaluated_before

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `SearchProgress` says what matters
    places = reserve_for_trials(list(live_nodes().values()), settings.at_once, settings.cpus, settings.gpus)
    scheduler = SavingAsha(settings.grace)
    for name, found in evaluated_before(records, left).items():
        scheduler.learn(name, found)
    environment = {} if places["gpu"] else {"CUDA_VISIBLE_DEVICES": ""}
    trials = [{"number": number, "folder": str(records.folder(number))} for number in left]
    shared = {"metric": records.search.metric, "environment": environment, "directory": str(Path.cwd())}
    progress = SearchProgress(records, stop)
    with tempfile.TemporaryDirectory() as scratch:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(RayTrial, places),
            param_space={"trial": ray_tune.grid_search([{**shared, **trial} for trial in trials])},
            tune_config=ray_tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=settings.at_once),
            run_config=ray_tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                callbacks=[progress],
                checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),  # a trial saves in its run folder
                failure_config=ray_tune.FailureConfig(max_failures=_LOST),
            ),
        )
        tuner.fit()
    if stop.requested:
        raise KeyboardInterrupt
    for number in progress.running:  # Ray Tune has ended without them
        logger.warning("%s: Ray Tune has not said how it ended", trial_name(number))
