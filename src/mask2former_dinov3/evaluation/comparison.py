"""Compare sets of results on one ground truth: differences of AP with intervals, and what changed on each image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.array_types import Floats
from ..data.layout import Split
from ..errors import OptionError
from .bootstrap import LEVEL
from .coco_ap import ceiling_notes, coverage_notes, read_named_results
from .coco_files import GroundTruth, ScoredMask
from .compared_inputs import ComparedInput, common_limit, common_truth, find_inputs, recipe_changes
from .image_changes import ImageChange, changes_by_image, match_above
from .matches import Overlaps, match_overlaps, overlaps_of
from .paired_bootstrap import (
    FEWEST_COMPARED,
    FEWEST_DRAWS,
    SEED_NOISE,
    Difference,
    PairedDifferences,
    paired_bootstrap,
    precision_at_recalls,
)
from .score_curves import CURVE_IOUS, ScoreCurve, score_curve
from .stored_evaluation import names_of_images

TOO_FEW = "too few images"
INTERVAL_NAME = f"{LEVEL * 100:g} % interval"
_RESEEDED = (
    "{after} and {before} differ in the seed alone, so a difference counts only if its interval lies more than "
    f"{SEED_NOISE:g} beyond 0, which another seed may bring"
)


@dataclass(frozen=True)
class ComparisonSettings:
    """How results are compared.

    samples, seed: of the bootstrap; samples None: 1,000, fewer for very many results. threshold: minimum score of the
    results whose changes are shown; iou: from which a result finds an object, for these. max_detections: per image and
    class; None: as in the evaluations.
    Raises OptionError for a value out of range.
    """

    samples: int | None = None
    seed: int = 0
    threshold: float = 0.5
    iou: float = 0.5
    max_detections: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < FEWEST_DRAWS:
            raise OptionError("samples", f"at least {FEWEST_DRAWS} draws", self.samples)
        if not 0 <= self.threshold <= 1:
            raise OptionError("threshold", "a score from 0 to 1", self.threshold)
        if not 0 < self.iou <= 1:
            raise OptionError("iou", "an IoU above 0, up to 1", self.iou)


@dataclass(frozen=True)
class ComparedResults:
    """One set of results. source: where it is from; results: all of it; notes: what the reader should know.

    precision: IoU -> precision (101,) at the recalls 0.00 to 1.00, mean over the classes. scores: counts over the score
    threshold, of all classes.
    """

    source: ComparedInput
    results: list[ScoredMask]
    notes: list[str]
    precision: dict[float, Floats]
    scores: ScoreCurve


@dataclass(frozen=True)
class PairComparison:
    """B against the first set of results, A. changes: the images on which something changed, largest first.

    notes: what the reader should know of this pair.
    """

    after: ComparedResults
    differences: PairedDifferences
    changes: list[ImageChange]
    notes: list[str]

    @property
    def verdict(self) -> str:
        """AP in a word or two: better, worse, no difference, or too few images."""
        overall = self.differences.overall["AP"]
        if math.isinf(overall.noise):
            return TOO_FEW
        return "better" if overall.better else "worse" if overall.worse else "no difference"


@dataclass(frozen=True)
class Comparison:
    """The whole comparison. base: A; pairs: each of the others against it. notes: on all of them.

    recipes: options in which the recipes differ, with a value per input (base first).
    """

    split: Split
    truth: GroundTruth
    settings: ComparisonSettings
    max_detections: int
    base: ComparedResults
    pairs: list[PairComparison]
    recipes: list[tuple[str, tuple[object, ...]]]
    notes: list[str]

    @property
    def all(self) -> list[ComparedResults]:
        """Every set of results, base first."""
        return [self.base, *(pair.after for pair in self.pairs)]

    @property
    def all_notes(self) -> list[str]:
        """The notes on the comparison, and on each of its pairs."""
        return [*self.notes, *(note for pair in self.pairs for note in pair.notes)]

    def to_json(self) -> dict[str, object]:
        """The content of compare.json: every number of the page. Undefined numbers are null."""
        names = names_of_images(self.truth)
        return {
            "ground_truth": str(self.split.annotations),
            "images": len(self.truth.sizes),
            "objects": sum(not one["iscrowd"] for one in self.truth.annotations),
            "max_detections": self.max_detections,
            "level": LEVEL,
            "samples": self.pairs[0].differences.samples,
            "seed": self.settings.seed,
            "threshold": self.settings.threshold,
            "iou": self.settings.iou,
            "base": self.base.source.name,
            "results": [
                {
                    "name": one.source.name,
                    "path": str(one.source.path),
                    "predictions": str(one.source.predictions),
                    "results": len(one.results),
                    "notes": one.notes,
                    "precision": {f"{iou:g}": _numbers(curve) for iou, curve in one.precision.items()},
                }
                for one in self.all
            ],
            "differences": [_pair_to_json(pair, self.truth.names, names) for pair in self.pairs],
            "recipes": [{"option": key, "values": list(values)} for key, values in self.recipes],
            "notes": self.all_notes,
        }


def compare_results(
    paths: Sequence[Path], settings: ComparisonSettings | None = None, annotations: Split | None = None
) -> Comparison:
    """Compare run folders, evaluation folders or results files with the first of them.

    annotations: the ground truth, None: as the evaluations say. The same inputs and seed give the same numbers.
    Raises OptionError for settings that do not fit, DatasetError for inputs that cannot be compared: without results,
    of unknown or different ground truths.
    """
    settings = ComparisonSettings() if settings is None else settings
    inputs = find_inputs(paths)
    split, truth = common_truth(inputs, annotations)
    limit = common_limit(inputs, settings.max_detections)
    sides = [_read_side(one, truth, limit, settings.iou) for one in inputs]
    stated = [match_above(overlaps, side.results, settings.threshold, settings.iou) for side, overlaps in sides]
    numbers = np.array(sorted(truth.sizes), dtype=np.int64)
    own_recipes = [one.recipe() for one in inputs]
    pairs = []
    for (side, overlaps), found, recipe in zip(sides[1:], stated[1:], own_recipes[1:], strict=True):
        reseeded = {option for option, _ in recipe_changes([own_recipes[0], recipe])} == {"seed"}
        differences = paired_bootstrap(
            sides[0][1],
            overlaps,
            numbers,
            len(truth.names),
            samples=settings.samples,
            seed=settings.seed,
            noise=SEED_NOISE if reseeded else 0.0,
        )
        about = [_RESEEDED.format(after=side.source.name, before=inputs[0].name)] if reseeded else []
        pairs.append(PairComparison(side, differences, changes_by_image(truth, stated[0], found), about))
    notes = [*dict.fromkeys(truth.notes), *ceiling_notes(truth, limit)]
    if len(truth.sizes) < FEWEST_COMPARED:
        notes.append(
            f"{len(truth.sizes)} images are too few to tell a difference from noise; {FEWEST_COMPARED} are the least"
        )
    return Comparison(split, truth, settings, limit, sides[0][0], pairs, recipe_changes(own_recipes), notes)


def _read_side(source: ComparedInput, truth: GroundTruth, limit: int, iou: float) -> tuple[ComparedResults, Overlaps]:
    """One set of results with its curves, and its overlaps with the objects."""
    results, notes = read_named_results(truth, source.predictions)
    overlaps = overlaps_of(truth, results, limit)
    numbers = np.array(sorted(truth.sizes), dtype=np.int64)
    curves = {one: precision_at_recalls(overlaps, numbers, len(truth.names), one) for one in CURVE_IOUS}
    scores = score_curve(overlaps, match_overlaps(overlaps, iou))
    return ComparedResults(source, results, [*notes, *coverage_notes(truth, results)], curves, scores), overlaps


def summary_lines(comparison: Comparison) -> list[str]:
    """The comparison in plain lines: AP of each, difference with interval, classes that changed beyond noise."""
    lines = []
    width = max(len(one.source.name) for one in comparison.all)
    first = comparison.pairs[0].differences.overall["AP"].before
    values = [first, *(pair.differences.overall["AP"].after for pair in comparison.pairs)]
    for one, value in zip(comparison.all, values, strict=True):
        shown = "undefined" if math.isnan(value) else f"{value:.4f}"
        lines.append(f"{one.source.name:{width}}  AP {shown}")
    for pair in comparison.pairs:
        name = f"{pair.after.source.name} - {comparison.base.source.name}"
        lines += [f"{name}: {key} {describe_difference(found)}" for key, found in pair.differences.overall.items()]
        changed = zip(comparison.truth.names, pair.differences.per_class, strict=True)
        lines += [
            f"  {label}: AP {describe_difference(one)}"
            for label, one in changed
            if len(comparison.truth.names) > 1 and (one.better or one.worse)
        ]
        for_better = sum(one.balance > 0 for one in pair.changes)
        for_worse = sum(one.balance < 0 for one in pair.changes)
        lines.append(
            f"{name}: {len(pair.changes)} of {len(comparison.truth.sizes)} images changed at score "
            f"{comparison.settings.threshold:g}: {for_better} for the better, {for_worse} for the worse"
        )
    own = [f"{one.source.name}: {note}" for one in comparison.all for note in one.notes]
    return [*lines, *(f"note: {note}" for note in (*comparison.all_notes, *own))]


def describe_difference(one: Difference) -> str:
    """A difference with its interval in words: "+0.0300 (95 % interval +0.0100 to +0.0500): better"."""
    if math.isnan(one.difference):
        return "undefined: no object in the ground truth"
    none = "too few images to tell" if math.isinf(one.noise) else "no difference beyond noise"
    word = "better" if one.better else "worse" if one.worse else none
    return f"{one.difference:+.4f} ({INTERVAL_NAME} {one.low:+.4f} to {one.high:+.4f}): {word}"


def _pair_to_json(pair: PairComparison, classes: Sequence[str], names: Mapping[int, str]) -> dict[str, object]:
    return {
        "name": pair.after.source.name,
        "verdict": pair.verdict,
        "overall": {key: _difference_to_json(one) for key, one in pair.differences.overall.items()},
        "per_class": {
            name: _difference_to_json(one) for name, one in zip(classes, pair.differences.per_class, strict=True)
        },
        "changed_images": [
            {
                "file_name": names.get(one.image),
                "gained": one.gained,
                "lost": one.lost,
                "new_wrong": one.new_wrong,
                "gone_wrong": one.gone_wrong,
            }
            for one in pair.changes
        ],
    }


def _difference_to_json(one: Difference) -> dict[str, float | None]:
    values = {"a": one.before, "b": one.after, "difference": one.difference, "low": one.low, "high": one.high}
    return {key: None if math.isnan(value) else round(value, 6) for key, value in values.items()}


def _numbers(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
