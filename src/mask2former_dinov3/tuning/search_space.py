"""The file of a search: options with their choices or ranges, checked, and random choices that a seed decides."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ..config.parsing import explain_fault, explain_unknown
from ..config.presets import SPLIT_OPTIONS
from ..config.train_config import FIELDS_ONLY, TrainConfig
from ..errors import ConfigError, mismatch, suggest
from ..json_files import describe, is_number, read_json_object

SCORED_ON = (  # options that change what the score of a trial is of
    *("dataset_name", "dataset_format", "classes", "crowd", "incomplete_images", "valid_split", "max_bad_images"),
    *("max_detections", "metric_for_best_model", *SPLIT_OPTIONS),
)
OF_THE_RUN = (  # options that name folders and services, not how a model is trained
    *("description", "output_dir", "resume_from_checkpoint", "save_total_limit", "with_tracking", "report_to"),
    *("with_code", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_token"),
)
_KEYS = ("min", "max", "log", "integer")
_DRAWS = 1000
"""How often a trial is drawn again that equals an earlier one, before it counts that no other is left."""


@dataclass(frozen=True)
class OptionRange:
    """Numbers from low to high, both included. log: uniform in the logarithm. integer: whole numbers only."""

    low: float
    high: float
    log: bool
    integer: bool

    def draw(self, generator: random.Random) -> float:
        """A number; others than whole ones with four significant digits, as people write them."""
        if self.log:
            edge = 0.5 if self.integer else 0.0  # each whole number gets the interval that rounds to it
            low, high = math.log(max(self.low - edge, 0.5 * self.low)), math.log(self.high + edge)
            value = math.exp(generator.uniform(low, high))
        elif self.integer:
            return generator.randint(int(self.low), int(self.high))
        else:
            value = generator.uniform(self.low, self.high)
        rounded = round(value) if self.integer else float(f"{value:.4g}")
        return type(rounded)(min(max(rounded, self.low), self.high))


SearchSpace = Mapping[str, Sequence[object] | OptionRange]
"""Option -> its choices, or its range."""


def read_search(path: Path) -> SearchSpace:
    """The options of a search file. Raises ConfigError with all its faults, one line each."""
    content = read_json_object(path, "a JSON object of options and their choices", raises=ConfigError, unique_keys=True)
    space: dict[str, Sequence[object] | OptionRange] = {}
    faults: list[str] = []
    for name, given in content.items():
        found = list(_check_name(name)) or list(_check_choices(name, given))
        faults += [f"{name}: {reason}" for reason in found]
        if not found:
            space[name] = given if isinstance(given, list) else _range_of(name, given)
    if not content:
        faults.append(mismatch('options such as {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": true}}', "none"))
    raise_search_faults(path, faults)
    return space


def raise_search_faults(path: Path, faults: Sequence[str]) -> None:
    """Raise ConfigError with the faults of a search file, if there are any."""
    if len(faults) == 1:
        raise ConfigError(f"{path}: {faults[0]}")
    if faults:
        raise ConfigError("\n  ".join([f"{len(faults)} errors in {path}", *faults]))


def _check_name(name: str) -> Iterator[str]:
    if name not in TrainConfig.model_fields:
        yield explain_unknown(name, name, TrainConfig.model_fields)
    elif name in SCORED_ON:
        yield "decides what trials are scored on, so it cannot differ between them; set it in the recipe"
    elif name in OF_THE_RUN:
        yield "does not change how a model is trained; set it in the recipe"


def _check_choices(name: str, given: object) -> Iterator[str]:
    """What is wrong with the choices of an option that exists."""
    if isinstance(given, list):
        if not given:
            yield mismatch("a list of choices", "an empty list")
        for value in given:
            if reason := _check_value(name, value):
                yield f"{reason} (choice {json.dumps(value, ensure_ascii=False)})"
        texts = [json.dumps(value, sort_keys=True) for value in given]
        for text in dict.fromkeys(text for text in texts if texts.count(text) > 1):
            yield f"the choice {text} is given twice"
    elif isinstance(given, dict):
        yield from _check_range(name, given)
    else:
        yield mismatch('a list of choices, or an object with "min" and "max"', describe(given))


def _check_range(name: str, given: Mapping[str, object]) -> Iterator[str]:
    for key in given.keys() - set(_KEYS):
        yield f"unknown key {key}; {suggest(key, _KEYS, 'known are ' + ', '.join(_KEYS))}"
    for key in ("log", "integer"):
        if not isinstance(given.get(key, False), bool):
            yield f"{key}: {mismatch('true or false', describe(given[key]))}"
    if missing := [key for key in ("min", "max") if key not in given]:
        yield mismatch('"min" and "max"', f"no {' and no '.join(missing)}")
        return
    for key in ("min", "max"):
        if not is_number(given[key]):
            yield f"{key}: {mismatch('a number', describe(given[key]))}"
        elif reason := _check_value(name, given[key]):
            yield f"{key}: {reason}"
    low, high = given["min"], given["max"]
    if not is_number(low) or not is_number(high):
        return
    if low >= high:
        yield f"min: {mismatch(f'less than max ({high:g})', f'{low:g}')}"
    if given.get("log") is True and low <= 0:
        yield f"min: {mismatch('a number above 0 with log true', f'{low:g}')}"
    if given.get("integer") is True and not (float(low).is_integer() and float(high).is_integer()):
        yield f"min and max: {mismatch('whole numbers with integer true', f'{low:g} and {high:g}')}"
    if given.get("integer") is False and _takes_whole_numbers(name):
        yield f"integer: {mismatch('true: the option takes whole numbers', 'false')}"


def _takes_whole_numbers(name: str) -> bool:
    annotation = str(TrainConfig.model_fields[name].annotation)
    return "int" in annotation and "float" not in annotation


def _range_of(name: str, given: Mapping[str, object]) -> OptionRange:
    """A range that has been checked; of an option that takes whole numbers, whole ones."""
    low, high = given["min"], given["max"]
    assert is_number(low) and is_number(high)  # noqa: PT018 (for the type checker)
    return OptionRange(low, high, given.get("log") is True, given.get("integer") is True or _takes_whole_numbers(name))


def _check_value(name: str, value: object) -> str | None:
    """Why the option does not take this value; None if it does."""
    try:
        TrainConfig.model_validate({"output_dir": "unknown", name: value}, context=FIELDS_ONLY)
    except ValidationError as error:
        return explain_fault(error.errors()[0], TrainConfig.model_fields[name].annotation)
    return None


def draw_trials(space: SearchSpace, seed: int, budget: int) -> list[dict[str, object]]:
    """The options of `budget` trials, no two the same; fewer if the search has no more.

    The same seed gives the same trials, and a larger budget adds to those of a smaller one.
    """
    generator = random.Random(seed)
    drawn: dict[str, dict[str, object]] = {}
    while len(drawn) < budget:
        for _ in range(_DRAWS):
            options = {name: _draw(choices, generator) for name, choices in sorted(space.items())}
            key = json.dumps(options, sort_keys=True)
            if key not in drawn:
                drawn[key] = {name: options[name] for name in space}
                break
        else:
            break
    return list(drawn.values())


def _draw(choices: Sequence[object] | OptionRange, generator: random.Random) -> object:
    return choices.draw(generator) if isinstance(choices, OptionRange) else generator.choice(choices)
