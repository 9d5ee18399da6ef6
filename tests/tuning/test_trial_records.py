"""What is known of the trials of a search: from their run folders, kept between calls, written for people."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.errors import CheckpointError, ConfigError
from mask2former_dinov3.tuning.trial_recipes import Search, plan_search
from mask2former_dinov3.tuning.trial_records import RUNNING, TrialRecords
from mask2former_dinov3.tuning.trial_run import FAILED, FINISHED, INTERRUPTED, STOPPED, evaluations_of, last_step_of


def make_search(folder: Path, budget: int = 5, **options: Any) -> Search:
    content = options.pop("content", {"learning_rate": [1e-5, 1e-4, 1e-3], "neck": ["pyramid", "adapter"]})
    (folder / "search.json").write_text(json.dumps(content))
    words = [f"--{name}={value}" for name, value in {"dataset_name": "data", "backbone": "tiny", **options}.items()]
    return plan_search(None, [*words, f"--output-dir={folder / 'out'}"], folder / "search.json", budget)


def write_run(folder: Path, *lines: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "spl')


def at(step: int, ap: float | None) -> dict[str, Any]:
    return {"step": step, "split": "valid", "AP": ap}


@pytest.fixture
def records(tmp_path: Path) -> TrialRecords:
    """Five trials: finished, failed after an evaluation, stopped, interrupted, waiting."""
    records = TrialRecords(tmp_path / "out", make_search(tmp_path))
    write_run(
        records.folder(1),
        at(10, 0.2),
        {"step": 15, "loss": 1.0},
        at(20, 0.4),
        at(30, 0.3),
        {"step": 30, "split": "test", "AP": 0.9},
    )
    write_run(records.folder(2), at(10, 0.8))
    write_run(records.folder(3), at(10, -1), {"step": 12, "loss": 1.0})
    (records.folder(4) / "checkpoint-7").mkdir(parents=True)
    for number, state, cause in ((1, FINISHED, ""), (2, FAILED, "=1 is\nbad"), (3, STOPPED, ""), (4, RUNNING, "")):
        records.set_state(number, state, cause)
    return records


def test_evaluations_of__reads_what_a_run_has_written(records: TrialRecords, tmp_path: Path) -> None:
    assert evaluations_of(records.folder(1), "AP") == [(10, 0.2), (20, 0.4), (30, 0.3)]
    assert evaluations_of(records.folder(1), "AP75") == [(10, -1.0), (20, -1.0), (30, -1.0)]
    assert evaluations_of(records.folder(4), "AP") == evaluations_of(tmp_path / "nowhere", "AP") == []
    assert [last_step_of(records.folder(number)) for number in range(1, 6)] == [30, 10, 12, 7, 0]


def test_trial_records__write_the_best_recipe_and_tables(records: TrialRecords) -> None:
    best = records.best()
    assert best is not None
    assert (best.trial, best.value, best.best_step, best.steps, best.evaluations) == ("trial-001", 0.4, 20, 30, 3)
    recipe = json.loads((records.output / "best_config.json").read_text())
    config, _ = load_config(records.output / "best_config.json")
    assert {name: recipe[name] for name in ("learning_rate", "neck")} == records.search.trials[0]
    assert config.description == "Found by tune: trial-001 of 5, AP 0.4000 at step 20."
    assert config.output_dir == str(records.output / "best-run")

    with (records.output / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["trial-001", "trial-002", "trial-003", "trial-004", "trial-005"]
    assert [row["AP"] for row in rows] == ["0.4", "0.8", "", "", ""]
    assert rows[1]["cause"] == "'=1 is\nbad"  # no formula for a spreadsheet
    stored = json.loads((records.output / "trials.json").read_text())
    assert [one["state"] for one in stored["trials"]] == ["finished", "failed", "stopped", "running", "waiting"]

    lines = list(records.lines())
    assert lines[0].split() == ["trial", "learning_rate", "neck", "steps", "AP", "at", "step", "state"]
    assert lines[1].split()[3:] == ["30", "0.4000", "20", "finished"]
    assert lines[3].split()[3:] == ["12", "-", "-", "stopped"]
    assert "trial-002 failed: =1 is\nbad" in lines


def test_trial_records__are_kept_for_the_next_call(records: TrialRecords, tmp_path: Path) -> None:
    again = TrialRecords(records.output, make_search(tmp_path, budget=6))
    assert [again.state(number) for number in range(1, 7)] == [
        FINISHED,
        FAILED,
        STOPPED,
        INTERRUPTED,
        "waiting",
        "waiting",
    ]
    assert again.left(retry_failed=False) == [4, 5, 6]
    assert again.left(retry_failed=True) == [4, 2, 5, 6]
    with pytest.raises(ConfigError, match=r"^budget: expected at least 5, the trials of .* so far, got 4$"):
        TrialRecords(records.output, make_search(tmp_path, budget=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"content": {"learning_rate": [1e-5], "neck": ["pyramid", "adapter"]}},
            "^search: .*, got another learning_rate; ",
        ),
        (
            {"content": {"learning_rate": [1e-5, 1e-4, 1e-3]}},
            "^search: expected what .* begun with, got another neck; ",
        ),
        ({"max_train_steps": 7}, "^config: .*, got another max_train_steps; set it back, or choose another --output$"),
        ({"backbone": "large", "seed": 3}, "^config: expected .*, got another backbone, seed; "),
    ],
)
def test_trial_records__refuse_another_search(
    options: dict[str, Any], message: str, records: TrialRecords, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        TrialRecords(records.output, make_search(tmp_path, **options))


@pytest.mark.parametrize(
    "text", ['{"recipe": {}}', '{"search": []}', '{"search": SEARCH, "recipe": RECIPE, "trials": [1]}', '{"trials"']
)
def test_trial_records__refuse_a_damaged_file(text: str, records: TrialRecords, tmp_path: Path) -> None:
    for name, content in (("SEARCH", records.search.content), ("RECIPE", records.search.base)):
        text = text.replace(name, json.dumps(content))
    (records.output / "trials.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"trials\.json: expected "):
        TrialRecords(records.output, records.search)
    (records.output / "trials.json").unlink()
    with pytest.raises(ConfigError, match=r"^output: expected a new folder, .* with trials, but without trials\.json"):
        TrialRecords(records.output, records.search)
