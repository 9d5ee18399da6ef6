"""What the numbers of a report say, in five sentences: how good, where weak, the threshold, and what would help most.

Each sentence names the part of the page that holds its evidence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..data.faults import count_of
from .breakdown import ApGroup
from .doubtful_labels import count_kinds
from .error_kinds import ERROR_KINDS
from .report_numbers import Findings, ReportNumbers

MANY_DOUBTS = 0.5  # suspicion from which a label in doubt counts for the verdict
_FEW = 3  # labels in doubt, below which they are not worth a sentence
_WEAKER = 0.05  # AP below the rest from which a class or a group is called weak
_COSTLY = 0.005  # AP from which a kind of error is worth a sentence
_TRAINED = 0.3  # AP50 from which outlines are worth a word; below it, the model has not learnt the objects
_REACHED = 0.98  # recall below which a limit is a ceiling


@dataclass(frozen=True)
class VerdictSentence:
    """One sentence. evidence: the part of the page that shows why."""

    text: str
    evidence: str


def verdict_of(findings: Findings, num_queries: int | None = None) -> list[VerdictSentence]:
    """The five sentences; one where there is nothing to find. num_queries: of the model, None if unknown."""
    numbers = findings.numbers
    if numbers.AP50 < 0:
        return [VerdictSentence("There is no object to find, so nothing can be said about the model.", "numbers")]
    helps = _what_helps(findings, num_queries)
    first, second = [*helps, *[_NOTHING] * 2][:2]
    return [_how_good(numbers), _where_weak(numbers), _threshold(numbers), first, second]


_NOTHING = VerdictSentence("No other kind of error costs as much as 0.005 of AP50.", "errors")


def _how_good(numbers: ReportNumbers) -> VerdictSentence:
    ap, point = numbers.intervals.metrics["AP"], numbers.point
    interval = f" (95 % interval {ap.low:.3f} to {ap.high:.3f})" if ap.low >= 0 else ""
    text = (
        f"AP is {ap.value:.3f}{interval}, AP50 {numbers.AP50:.3f}, on {count_of(numbers.metrics['images'], 'image')} "
        f"with {count_of(numbers.objects, 'object')}: {_percent(point.recall)} of the objects are found, and "
        f"{_percent(point.precision)} of the results are right, at the threshold of each class and an IoU of 0.5."
    )
    return VerdictSentence(text, "numbers")


def _percent(value: float) -> str:
    return "none" if value < 0 else f"{100 * value:.0f} %"


def _where_weak(numbers: ReportNumbers) -> VerdictSentence:
    """The weakest class, if it lies clearly below the others; else the weakest group of objects or images."""
    classes = [one for one in numbers.classes if one.ap.value >= 0]
    if len(classes) > 1:
        weakest = min(classes, key=lambda one: one.ap.value)
        rest = float(np.mean([one.ap.value for one in classes if one is not weakest]))
        if weakest.ap.value < rest - _WEAKER and weakest.ap.high < rest:
            text = (
                f'It is weakest on the class "{weakest.name}": AP {weakest.ap.value:.3f} ({weakest.ap.low:.3f} to '
                f"{weakest.ap.high:.3f}, {count_of(weakest.objects, 'object')}), while the other classes have "
                f"{rest:.3f} on average."
            )
            return VerdictSentence(text, "classes")
    groups: list[tuple[float, str, ApGroup, float]] = []
    parts = (
        (numbers.breakdown.by_size, "objects with a side of {} pixels (as a square of their area)"),
        (numbers.breakdown.by_crowding, "images with {} objects"),
        (numbers.breakdown.by_image_size, "images with a side of {} pixels (as a square)"),
    )
    for found, words in parts:
        defined = [one for one in found if one.AP >= 0]
        for one in defined if len(defined) > 1 else []:
            rest = float(np.mean([other.AP for other in defined if other is not one]))
            groups.append((one.AP - rest, words.format(_span(one)), one, rest))
    if groups:
        gap, words, group, rest = min(groups, key=lambda one: one[0])
        if gap < -_WEAKER:
            text = f"It is weakest on {words}: AP {group.AP:.3f}, while the other groups have {rest:.3f} on average."
            return VerdictSentence(text, "groups")
    return VerdictSentence("No class, size or crowding is clearly weaker than the rest.", "groups")


def _span(group: ApGroup) -> str:
    low, high = f"{group.low:.0f}", f"{group.high:.0f}"
    return low if low == high else f"{low} to {high}"


def _threshold(numbers: ReportNumbers) -> VerdictSentence:
    block = numbers.operating
    if block["threshold"] is None:
        return VerdictSentence("No result finds an object, so no threshold can be chosen.", "threshold")
    point = block["points"][f"{block['iou']:.2f}"]
    doubt = f" This choice is {block['why']}." if not block["stable"] else ""
    copies = block["copies"]["overlap"]
    dropped = "" if copies is None else f" Copies are dropped (copy_overlap {copies:g})."
    text = (
        f"The score threshold for the {block['aim']} is {block['threshold']:g}: precision {point['precision']:.3f}, "
        f"recall {point['recall']:.3f}, F1 {point['f1']:.3f}.{dropped}{doubt}"
    )
    return VerdictSentence(text, "threshold")


def _what_helps(findings: Findings, num_queries: int | None) -> list[VerdictSentence]:
    """What is most likely to help: a limit that is reached, then the largest gain. Labels in doubt are second at the
    latest."""
    numbers = findings.numbers
    found = [
        (one.cost, VerdictSentence(_describe_errors(one.kind, one.count, one.cost, findings), "errors"))
        for one in numbers.errors[: len(ERROR_KINDS)]
        if one.cost >= _COSTLY
    ]
    found.sort(key=lambda one: -one[0])
    ranked = [*_describe_ceiling(findings, num_queries), *(sentence for _, sentence in found)]
    return [*ranked[:1], *_describe_doubts(findings), *ranked[1:]]


def _describe_ceiling(findings: Findings, num_queries: int | None) -> list[VerdictSentence]:
    """One sentence if the number of results limits recall: what is missed for it, nothing else can find."""
    most = findings.numbers.metrics["max_detections"]
    limit = min(most, num_queries or most)
    reachable = findings.truth.recall_limit(limit)
    recall = float(np.mean(list(reachable.values()))) if reachable else 1.0
    if recall >= _REACHED:
        return []
    if limit == num_queries:
        what, advice = f"The model has {limit:,} queries", "Train with more (num_queries)"
        advice += ", and score with more (--max-detections)." if most == limit else "."
    else:
        what, advice = (
            f"At most {limit:,} results per image and class count for AP",
            "Score with more (--max-detections).",
        )
    text = f"{what}, so its recall cannot be above {recall:.3f}: some images hold more objects. {advice}"
    return [VerdictSentence(text, "numbers")]


def _describe_errors(kind: str, count: int, cost: float, findings: Findings) -> str:
    """One kind of error: what it is, what it costs, where it is, what may help."""
    gain = f"correcting all of them would add {cost:.3f} to AP50"
    if kind == "class":
        return f"{count_of(count, 'result')} on an object have the wrong class; {gain}.{_most_confused(findings)}"
    if kind == "localisation":
        metrics = findings.numbers.intervals.metrics
        ap75, ap50 = metrics["AP75"].value, metrics["AP50"].value
        finer = "; a finer mask stride or a larger canvas gives finer outlines" if ap50 >= _TRAINED else ""
        return (
            f"{count_of(count, 'result')} overlap an object of their class too little to count; {gain}. AP75 is "
            f"{ap75:.3f}, AP50 {ap50:.3f}{finer}."
        )
    if kind == "both":
        return f"{count_of(count, 'result')} have the wrong class and too little overlap with any object; {gain}."
    if kind == "duplicate":
        return f"{count_of(count, 'result')} are on objects that a better result has found; {gain}."
    if kind == "background":
        return f"{count_of(count, 'result')} lie where no object is labelled; {gain}. Images without objects help."
    return f"{count_of(count, 'object')} are missed by every result; {gain}.{_small_misses(findings)}"


def _most_confused(findings: Findings) -> str:
    """The classes that are taken for each other most, at the threshold."""
    matrix = findings.numbers.confusion[:-1, :-1].copy()
    np.fill_diagonal(matrix, 0)
    if not matrix.any():
        return ""
    row, column = np.unravel_index(int(matrix.argmax()), matrix.shape)
    names, count = findings.truth.names, int(matrix[row, column])
    return f' Most often "{names[row]}" is taken for "{names[column]}": {count_of(count, "object")} at the threshold.'


def _small_misses(findings: Findings) -> str:
    """Whether the missed objects are the small ones."""
    bounds = findings.numbers.breakdown.by_size
    missed = findings.overlaps.area[findings.errors.missed]
    if len(bounds) < 2 or not len(missed):
        return ""
    small = int((np.sqrt(missed) <= bounds[0].high).sum())
    if small < 2 * len(missed) * bounds[0].objects / max(findings.numbers.objects, 1):
        return ""
    return (
        f" {small:,} of them are among the smallest {bounds[0].objects:,} objects (side up to {bounds[0].high:.0f} "
        "pixels): a larger canvas may help."
    )


def _describe_doubts(findings: Findings) -> list[VerdictSentence]:
    """One sentence if there are several labels that are more likely wrong than right."""
    strong = [one for one in findings.numbers.doubts if one.suspicion >= MANY_DOUBTS]
    if len(strong) < _FEW:
        return []
    names = findings.truth.names
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in count_kinds(strong).items() if count)
    pairs = Counter((one.category, one.suggested) for one in strong if one.kind == "other class")
    most = ""
    if pairs:
        (labelled, said), count = pairs.most_common(1)[0]
        most = f' Most often "{names[labelled - 1]}" is labelled where the model finds "{names[said - 1]}": {count:,}.'
    text = f"{len(strong):,} labels of {count_of(findings.numbers.objects, 'object')} are in doubt ({kinds}).{most}"
    return [VerdictSentence(f"{text} Look at them first: wrong labels cost training and this score.", "doubts")]
