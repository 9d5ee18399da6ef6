"""The file of a search: what may stand in it, and which trials a seed draws from it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mask2former_dinov3.errors import ConfigError
from mask2former_dinov3.tuning.search_space import OptionRange, SearchSpace, draw_trials, read_search


def write(folder: Path, content: Any) -> Path:
    path = folder / "search.json"
    path.write_text(json.dumps(content))
    return path


def test_read_search__reads_choices_and_ranges(tmp_path: Path) -> None:
    content = {
        "learning_rate": {"min": 1e-5, "max": 1e-3, "log": True},
        "num_queries": {"min": 50, "max": 200},
        "freeze_backbone": [True, None],
        "backbone_taps": [[3, 6, 9, 12], None],
    }
    assert read_search(write(tmp_path, content)) == {
        "learning_rate": OptionRange(1e-5, 1e-3, log=True, integer=False),
        "num_queries": OptionRange(50, 200, log=False, integer=True),  # the option takes whole numbers
        "freeze_backbone": [True, None],
        "backbone_taps": [[3, 6, 9, 12], None],
    }


def test_read_search__reports_all_faults_at_once(tmp_path: Path) -> None:
    content = {
        "learning_rte": [1e-4],
        "learning_rate": {"min": 1e-3, "max": 1e-5, "logg": True},
        "weight_decay": {"min": 0, "max": 0.1, "log": True},
        "gradient_accumulation_steps": {"min": 1, "max": 8, "integer": False},
        "num_queries": [10, "many", 10],
        "neck": ["pyramid", "pyramids"],
        "flip": [],
        "max_detections": [100, 200],
        "output_dir": ["a", "b"],
        "ema_decay": 0.9,
        "layer_decay": {"min": 0.5},
        "scale_min": {"min": "0.5", "max": 1},
    }
    with pytest.raises(ConfigError) as caught:
        read_search(write(tmp_path, content))
    heading, *lines = str(caught.value).split("\n  ")
    assert heading == f"{len(lines)} errors in {tmp_path / 'search.json'}"
    for begin in (
        "learning_rte: unknown key; nearest is learning_rate",
        "learning_rate: unknown key logg; nearest is log",
        "learning_rate: min: expected less than max (1e-05), got 0.001",
        "weight_decay: min: expected a number above 0 with log true, got 0",
        "gradient_accumulation_steps: integer: expected true: the option takes whole numbers, got false",
        'num_queries: expected a whole number from 1 to 100,000, or "auto", got "many"',
        "num_queries: the choice 10 is given twice",
        "neck: expected one of ",
        "flip: expected a list of choices, got an empty list",
        "max_detections: decides what trials are scored on",
        "output_dir: does not change how a model is trained",
        'ema_decay: expected a list of choices, or an object with "min" and "max", got a number',
        'layer_decay: expected "min" and "max", got no max',
        "scale_min: min: expected a number, got a string",
    ):
        assert sum(line.startswith(begin) for line in lines) == 1, begin
    assert len(lines) == 14


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object of options and their choices, got a list"),
        ("{}", "expected options such as .*, got none"),
        ('{"seed": [1], "seed": [2]}', "keys given twice: seed"),
        ('{"seed": [1,}', "got invalid JSON"),
    ],
)
def test_read_search__refuses_other_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_search(tmp_path / "search.json")
    with pytest.raises(ConfigError, match="no such file"):
        read_search(tmp_path / "other.json")


def test_draw_trials__a_seed_decides_and_a_larger_budget_adds() -> None:
    rates = OptionRange(1e-5, 1e-3, log=True, integer=False)
    space: SearchSpace = {"learning_rate": rates, "neck": ["pyramid", "adapter"]}
    some, more = draw_trials(space, 3, 5), draw_trials(space, 3, 9)
    assert some == more[:5]
    assert draw_trials(dict(reversed([*space.items()])), 3, 5) == some  # the order in the file does not matter
    assert draw_trials(space, 4, 5) != some
    assert list(some[0]) == ["learning_rate", "neck"]


def test_draw_trials__none_is_drawn_twice() -> None:
    drawn = draw_trials({"neck": ["pyramid", "adapter"], "seed": [1, 2, 3]}, 0, 50)
    assert len(drawn) == 6
    assert len({tuple(one.items()) for one in drawn}) == 6


@pytest.mark.parametrize(("log", "integer"), [(False, False), (True, False), (False, True), (True, True)])
def test_range__draws_from_all_of_it(log: bool, integer: bool) -> None:
    space = {"x": OptionRange(1, 1000, log, integer)}
    values = [float(str(one["x"])) for one in draw_trials(space, 0, 300)]
    assert 1 <= min(values) < (10 if log else 60)
    assert (600 if log else 950) < max(values) <= 1000
    middle = sorted(math.log10(value) for value in values)[150] if not log or not integer else None
    if middle is not None:
        assert middle == pytest.approx(1.5 if log else math.log10(500), abs=0.25)
    assert all(isinstance(one["x"], int if integer else float) for one in draw_trials(space, 0, 20))


def test_range__draws_each_whole_number_of_a_short_one() -> None:
    for log in (False, True):
        assert {one["x"] for one in draw_trials({"x": OptionRange(1, 4, log, True)}, 0, 50)} == {1, 2, 3, 4}
