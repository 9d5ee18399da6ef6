"""Find what `compare` compares: the results, the ground truth, the recipe and the log behind a path that a user gives.

| the path is | results | ground truth |
|---|---|---|
| an evaluation folder | its predictions.json | as its evaluation.json says |
| a run folder | its predictions.json, else that of the evaluation in it | as for an evaluation folder |
| a results file | the file | `--annotations` |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.layout import Split
from ..errors import ConfigError, DatasetError, OptionError, mismatch
from ..json_files import is_number, read_json_object
from .coco_files import GroundTruth, read_ground_truth
from .stored_evaluation import StoredEvaluation, digest_of_truth, read_evaluation

_RESULTS, _RECIPE, _LOG = "predictions.json", "train_config.json", "metrics.jsonl"
_UNCHANGED_BY_TRAINING = frozenset({"output_dir", "description"})  # of a recipe


@dataclass(frozen=True)
class ComparedInput:
    """One of the things to compare.

    name: short and different from the others'. path: as given. predictions: the results file. stored: what the
    evaluation was made on, None for a results file. run: the folder of the training run, None if it is not known.
    """

    name: str
    path: Path
    predictions: Path
    stored: StoredEvaluation | None
    run: Path | None

    def recipe(self) -> dict[str, object]:
        """The options of the run; empty if they are not known. Raises ConfigError for a file that is no JSON object."""
        places = [self.run] if self.run is not None else []
        places += [Path(self.stored.scored)] if self.stored is not None else []
        for place in places:
            if (place / _RECIPE).is_file():
                return read_json_object(place / _RECIPE, "the recipe of a run (JSON)", raises=ConfigError)
        return {}

    def history(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of every line of the run's log that has `key`; validation only. Broken lines are left out."""
        file = None if self.run is None else self.run / _LOG
        if file is None or not file.is_file():
            return []
        found: list[tuple[float, float]] = []
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # cut off when the process was killed
            if isinstance(line, dict) and line.get("split", "valid") == "valid":
                step, value = line.get("step"), line.get(key)
                if is_number(step) and is_number(value):
                    found.append((float(step), float(value)))
        return found


def find_inputs(paths: Sequence[Path]) -> list[ComparedInput]:
    """What the paths stand for, in their order. Raises OptionError for fewer than two, DatasetError for other paths."""
    if len(paths) < 2:
        raise OptionError("inputs", "at least two to compare", len(paths))
    found = []
    for name, path in zip(_short_names(paths), paths, strict=True):
        predictions = _find_results(path)
        folder = predictions.parent
        stored = read_evaluation(folder) if predictions.name == _RESULTS else None
        places = [path, folder, folder.parent]
        if stored is not None:
            places += [Path(stored.scored), Path(stored.scored).parent]
        run = next((place for place in places if (place / _RECIPE).is_file() and (place / _LOG).is_file()), None)
        found.append(ComparedInput(name, path, predictions, stored, run))
    return found


def _find_results(path: Path) -> Path:
    """The results file of an input."""
    if path.is_file():
        return path
    expected = "a run folder, an evaluation folder (predictions.json), or a COCO results file"
    if not path.is_dir():
        raise DatasetError(f"{path}: {mismatch(expected, 'no such file or folder')}")
    if (path / _RESULTS).is_file():
        return path / _RESULTS
    evaluations = sorted(one.parent for one in path.glob("*/metrics.json") if (one.parent / _RESULTS).is_file())
    if len(evaluations) == 1:
        return evaluations[0] / _RESULTS
    if evaluations:
        names = ", ".join(one.name for one in evaluations)
        raise DatasetError(f"{path}: {mismatch('one evaluation in the run folder', names, 'name one of them')}")
    if not (path / "best").is_dir():
        raise DatasetError(f"{path}: {mismatch(expected, 'another folder')}")
    command = f"mask2former-dinov3 evaluate --model {path / 'best'} --dataset DATA --output {path / 'evaluation'}"
    got = "a run without one, of an older version or without validation data"
    raise DatasetError(f"{path}: {mismatch('an evaluation in the run folder', got, f'run `{command}` first')}")


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The paths without the folders that all share at their beginning and their end; numbered where they are equal."""
    parts = [path.absolute().parts for path in paths]
    shortest = min(map(len, parts))
    start = next((place for place in range(shortest) if len({one[place] for one in parts}) > 1), shortest - 1)
    room = shortest - start
    end = next((place for place in range(1, room) if len({one[-place] for one in parts}) > 1), max(room, 1)) - 1
    names = ["/".join(one[start : len(one) - end]) or one[-1] for one in parts]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: row + 1].count(name)})" for row, name in enumerate(names)
    ]


def common_truth(inputs: Sequence[ComparedInput], annotations: Split | None) -> tuple[Split, GroundTruth]:
    """The ground truth of all inputs, read again. annotations: as the user names it, None: as the evaluations say.

    Raises DatasetError where it is not known, not the same for all, or has changed since an evaluation.
    """
    for one in inputs:
        if annotations is None and one.stored is None:
            expected = "an evaluation folder with evaluation.json, which names the ground truth"
            advice = "name it with --annotations, or run evaluate again"
            raise DatasetError(f"{one.path}: {mismatch(expected, 'results without it', advice)}")
    known = [(one, one.stored) for one in inputs if one.stored is not None]
    for one, stored in known[1:]:
        first, other = known[0]
        if stored.digest != other.digest:
            places = f"{other.split.annotations} for {first.name} and {stored.split.annotations} for {one.name}"
            raise DatasetError(
                f"{one.path}: {mismatch('the same ground truth for all', f'{places}, which differ in content')}; "
                "evaluate all on the same images and annotations"
            )
    split = annotations if annotations is not None else known[0][1].split
    truth = read_ground_truth(split)
    if known and digest_of_truth(truth) != known[0][1].digest:
        got = "other content: changed since, or another file" if annotations is None else "another file, or other rules"
        expected = f"the ground truth that {known[0][0].path} was evaluated on"
        raise DatasetError(f"{split.annotations}: {mismatch(expected, got, 'run evaluate again on this file')}")
    return split, truth


def common_limit(inputs: Sequence[ComparedInput], max_detections: int | None) -> int:
    """The number of results per image and class that count. Raises OptionError where the evaluations differ in it."""
    if max_detections is not None:
        return max_detections
    limits = {one.stored.max_detections for one in inputs if one.stored is not None}
    if len(limits) > 1:
        got = ", ".join(map(str, sorted(limits)))
        raise OptionError("max_detections", "one number, as the evaluations were made with several", got, "choose one")
    return limits.pop() if limits else 100


def recipe_changes(recipes: Sequence[dict[str, object]]) -> list[tuple[str, tuple[object, ...]]]:
    """Options in which recipes differ, with the value of each recipe, None for one that lacks it; unknown ones pass.

    Only recipes that are known (not empty) are compared.
    """
    known = [recipe for recipe in recipes if recipe]
    if len(known) < 2:
        return []
    keys = dict.fromkeys(key for recipe in known for key in recipe)
    return [
        (key, tuple(recipe.get(key) for recipe in recipes))
        for key in keys
        if key not in _UNCHANGED_BY_TRAINING and any(one.get(key) != known[0].get(key) for one in known)
    ]
