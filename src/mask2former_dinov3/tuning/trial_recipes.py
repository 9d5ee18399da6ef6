"""What each trial is trained with: the recipe with the drawn options, checked before the first trial starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.parsing import GivenOptions
from ..config.train_config import TrainConfig, load_config
from ..errors import ConfigError, OptionError
from .search_space import SearchSpace, draw_trials, raise_search_faults, read_search

NO_OPTIONS = ("output_dir", "hub_token", "resume_from_checkpoint")  # what each trial has of its own, or never in a file


@dataclass(frozen=True)
class Search:
    """What is searched. base: the options that were given for all trials. trials: the drawn options of each.

    content: the search file. notes: for the user.
    """

    config: TrainConfig
    base: Mapping[str, object]
    content: Mapping[str, object]
    trials: Sequence[Mapping[str, object]]
    notes: Sequence[str]

    @property
    def metric(self) -> str:
        """What trials are compared by."""
        return self.config.metric_for_best_model

    def recipe(self, number: int, folder: Path) -> dict[str, object]:
        """The options of a trial (from 1), as `train --config` takes them. folder: its run folder."""
        return {**self.base, **self.trials[number - 1], "output_dir": str(folder)}


def plan_search(source: str | None, words: Sequence[str], search: Path, budget: int) -> Search:
    """The search of a recipe, a search file and a number of trials.

    source, words: JSON file and flags of the recipe, as `load_config` takes them. Raises ConfigError with every fault
    of the recipe, of the search file, or of the trials that they make together.
    """
    config, notes = load_config(source, words)
    _refuse_for_trials(config)
    space = read_search(search)
    given = GivenOptions(TrainConfig.model_fields, source, words)
    resolved = config.model_dump(mode="json")  # a flag's "100" as the number 100
    base = {name: resolved[name] for name in given.values if name not in NO_OPTIONS}
    trials = draw_trials(space, config.seed, budget)
    _check_trials(search, space, base, trials)
    notes = [note for note in notes if note.partition(":")[0] not in space]
    if len(trials) < budget:
        notes = [*notes, f"the search has {len(trials)} combinations, so there are {len(trials)} trials"]
    content = json.loads(search.read_text(encoding="utf-8-sig"))
    return Search(config, base, content, trials, notes)


def _refuse_for_trials(config: TrainConfig) -> None:
    """Raise OptionError for options of the recipe that trials cannot share."""
    if config.push_to_hub:
        advice = "train with best_config.json afterwards, and push that model"
        raise OptionError("push_to_hub", "false, because all trials would be pushed to one repository", "true", advice)
    if config.resume_from_checkpoint is not None:
        advice = "the same command continues a search"
        raise OptionError("resume_from_checkpoint", "null", config.resume_from_checkpoint, advice)
    if config.hub_token is not None:
        raise OptionError("hub_token", "null: the recipes of trials are files", "a token", "set HF_TOKEN instead")


def _check_trials(
    path: Path, space: SearchSpace, base: Mapping[str, object], trials: Sequence[Mapping[str, object]]
) -> None:
    """Raise ConfigError with each different fault of the trials, and the first trial that has it."""
    first: dict[str, int] = {}
    for number, options in enumerate(trials, start=1):
        try:
            load_config(None, {**base, **options, "output_dir": "unknown"})
        except ConfigError as error:
            lines = str(error).split("\n  ")
            for line in lines[1:] or lines:
                first.setdefault(line, number)
    faults = []
    for line, number in first.items():
        drawn = ", ".join(f"{name} {json.dumps(value)}" for name, value in trials[number - 1].items())
        advice = "; use a list of choices" if not isinstance(space.get(line.partition(":")[0], []), list) else ""
        faults.append(f"{line}{advice} (trial {number}: {drawn})")
    raise_search_faults(path, faults)
