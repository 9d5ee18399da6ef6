"""`tune` on a real Ray cluster of two nodes: real training runs that are stopped, fail, are killed and resumed."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from mask2former_dinov3.errors import ConfigError
from mask2former_dinov3.tuning.trial_run import evaluations_of
from mask2former_dinov3.tuning.tune import TuneSettings, tune
from support.processes import start_python
from support.ray_cluster import end_cluster, running_cluster
from support.small_run import SMALLEST

LONG = 5000  # steps that no trial here comes to

# Ray leaves sockets and files of the cluster's processes to the garbage collector.
pytestmark = [
    pytest.mark.xdist_group("ray"),  # as the tests of `batch-predict`: one cluster at a time
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(1800),  # every trial is a process that imports torch
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes of one CPU each, whose trials find the package and compute in one thread."""
    yield running_cluster().address
    ray.shutdown()
    end_cluster()  # these are the last tests of its group


@pytest.fixture(scope="module")
def search_files(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Recipe and search file; with seed 15 the trials are a short one, one that fails, and a long one."""
    folder = tmp_path_factory.mktemp("search")
    recipe = {**SMALLEST, "dataset_name": str(toy_dataset), "checkpointing_steps": 2, "seed": 15}
    del recipe["max_train_steps"], recipe["backbone"]
    search = {"max_train_steps": [4, LONG], "backbone": ["tiny", "nowhere"]}
    (folder / "base.json").write_text(json.dumps(recipe))
    (folder / "search.json").write_text(json.dumps(search))
    return str(folder / "base.json"), folder / "search.json"


@pytest.fixture(scope="module")
def begun(cluster: str, search_files: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search whose first two trials are done, one on each node."""
    output = tmp_path_factory.mktemp("tune") / "out"
    records = tune(
        search_files[0], [], search_files[1], budget=2, output=output, settings=TuneSettings(ray_address=cluster)
    )
    short, failed = (records.record(number) for number in (1, 2))
    assert (short.state, short.steps, short.evaluations, short.options["max_train_steps"]) == ("finished", 4, 2, 4)
    assert (failed.state, failed.value) == ("failed", None)
    assert failed.cause.startswith("nowhere: expected a folder, a file of weights or a hub id, got none")
    assert not ray.is_initialized()
    return output


def wait_until(condition: Callable[[], object], process: Any = None) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.finish()
        time.sleep(0.05)


def trial_processes(folder: Path) -> list[psutil.Process]:
    """The processes of `train` with this run folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "mask2former_dinov3.tuning.trial_process" in words and any(word.startswith(str(folder)) for word in words):
            found.append(process)
    return found


def steps_begun(folder: Path) -> int:
    """The step that the run has resumed from; 0 as long as it has not."""
    found = re.findall(r"resuming from \S+: step (\d+) of", (folder / "train.log").read_text())
    return int(found[-1]) if found else 0


def last_checkpoint(folder: Path) -> int:
    return max((int(path.name[11:]) for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()), default=0)


def test_tune__trials_are_runs_and_their_table_names_the_best(begun: Path) -> None:
    stored = json.loads((begun / "trials.json").read_text())
    assert [one["state"] for one in stored["trials"]] == ["finished", "failed"]
    assert (begun / "trial-001" / "best" / "model.safetensors").is_file()
    best = json.loads((begun / "best_config.json").read_text())
    assert (best["backbone"], best["max_train_steps"]) == ("tiny", 4)


def test_tune__goes_on_after_kill_9_and_ctrl_c_and_the_scheduler_stops_what_is_worse(
    begun: Path, cluster: str, search_files: tuple[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, search = search_files
    words = ["-m", "mask2former_dinov3", "tune", "--config", recipe, "--search", str(search), "--budget", "3"]
    words += ["--output", str(begun), "--ray-address", cluster]
    folder = begun / "trial-003"

    process = start_python(words, tmp_path)
    wait_until(lambda: last_checkpoint(folder) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.finish()
    process = start_python(words, tmp_path)  # at once, although that of the trial may still save
    wait_until(lambda: (begun_again := steps_begun(folder)) and last_checkpoint(folder) > begun_again, process)
    (only,) = trial_processes(folder)
    assert only.is_running()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    done = process.finish(600)
    assert done.returncode == 130, done.stderr
    assert f"stopped after 2 of 3 trials in {begun}; the same command continues from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert "1 of 3" not in done.stderr  # the two trials of the first call were kept
    assert not trial_processes(folder)
    states = [one["state"] for one in json.loads((begun / "trials.json").read_text())["trials"]]
    assert states == ["finished", "failed", "interrupted"]
    assert "stopped at step " in (folder / "train.log").read_text()  # by the normal stop
    saved = last_checkpoint(folder)

    metrics = begun / "trial-001" / "metrics.jsonl"  # a trial that was far better
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps({**one, **({"AP": 0.9} if "AP" in one else {})}) + "\n" for one in lines))
    with caplog.at_level(logging.INFO):
        records = tune(recipe, [], search, budget=3, output=begun, settings=TuneSettings(ray_address=cluster))
    last = records.record(3)
    assert last.state == "stopped"
    assert "trial-003 stopped by the scheduler at step " in caplog.text
    assert saved <= last.steps < LONG
    assert last_checkpoint(folder) == last.steps
    assert len(evaluations_of(folder, "AP")) == last.evaluations
    assert (folder / "best" / "model.safetensors").is_file()
    assert [line.split()[0] for line in records.lines()][1:4] == ["trial-001", "trial-003", "trial-002"]


def test_tune__says_what_it_cannot_do_before_ray_starts(
    search_files: tuple[str, Path], begun: Path, tmp_path: Path
) -> None:
    recipe, search = search_files
    with pytest.raises(ConfigError, match=r"^config: expected what .*, got another learning_rate; "):
        tune(recipe, ["--learning-rate", "1"], search, budget=3, output=begun)
    with pytest.raises(
        ConfigError, match=r"^gpus_per_trial: expected a number from 0 to 1, got 2; a trial runs on one"
    ):
        tune(recipe, [], search, budget=3, output=tmp_path / "out", settings=TuneSettings(gpus=2))
    with pytest.raises(ConfigError, match=r"^cpus_per_trial: expected a number above 0, got 0$"):
        TuneSettings(cpus=0)
    (tmp_path / "search.json").write_text('{"learning_rte": [1]}')
    with pytest.raises(ConfigError, match="learning_rte: unknown key; nearest is learning_rate"):
        tune(recipe, [], tmp_path / "search.json", budget=3, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
