"""The parts of a report with numbers: verdict, run, numbers, errors by kind."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.faults import count_of
from ..evaluation.breakdown import ApGroup
from ..evaluation.report_numbers import Findings, ReportNumbers
from ..evaluation.run_record import RunRecord
from ..evaluation.verdict import VerdictSentence
from .compare_charts import Curve, overlaid_curves
from .evaluation_charts import MOST_CLASSES, confusion_table, curve_charts, reliability_table, value_bars
from .html_page import Html, element, folded, join, paragraph, section, table
from .svg_charts import charts

_HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_OTHERS = ("boundary_AP", "box_AP", "AR1", "AR10", "AR100")
_MEANING = {
    "class": "enough overlap with an object of another class",
    "localisation": "on an object of its class, with an IoU of 0.1 to 0.5",
    "both": "another class and too little overlap",
    "duplicate": "on an object that a better result has found",
    "background": "IoU of at most 0.1 with every object",
    "missed": "objects that no result of the kinds class and localisation is about",
    "false positives": "all results that find nothing ranked last",
    "false negatives": "all objects that nothing finds left out",
}
_EVIDENCE = {
    "numbers": "the numbers",
    "classes": "the classes",
    "groups": "AP by group",
    "threshold": "the curves",
    "errors": "errors by kind",
    "doubts": "labels in doubt",
}


def verdict_section(sentences: Sequence[VerdictSentence], notes: Sequence[str]) -> Html:
    """The five sentences, each with a link to its evidence; notes on the score below."""
    items = [
        element("li", f"{one.text} ", element("a", _EVIDENCE[one.evidence], href=f"#{one.evidence}"))
        for one in sentences
    ]
    more = folded(f"{count_of(len(notes), 'note')} on the score", element("ul", *(element("li", one) for one in notes)))
    return section("Verdict", element("ol", *items, class_="verdict"), *([more] if notes else []), anchor="verdict")


def run_section(run: RunRecord) -> Html:
    """Curves of the log, the recipe, versions, time, and why the run ended."""
    about = f"Step {run.step:,}, epoch {run.epoch:.2f}, {_duration(run.seconds)} since its last start. {run.stopped}"
    parts = []
    for title, names, axis in (
        ("Losses", ("loss", "loss_cross_entropy", "loss_mask", "loss_dice", "loss_seed"), "loss"),
        ("AP", ("valid AP", "valid AP50", "valid AP75", "test AP"), "AP"),
        ("Learning rate", ("lr",), "rate"),
        ("Images per second", ("images_per_second",), "images/s"),
        ("Memory", ("memory_gb",), "GB"),
    ):
        curves = [Curve(name, run.series[name]) for name in names if name in run.series]
        if curves:
            last = ", ".join(f"{one.name} {one.points[-1][1]:.4g}" for one in curves)
            parts.append(overlaid_curves(title, curves, ("step", axis), f"Last: {last}."))
    if run.unread:
        parts.append(paragraph(f"{count_of(run.unread, 'line')} of metrics.jsonl could not be read."))
    options = table(["option", "value"], sorted((name, str(value)) for name, value in run.options.items()))
    versions = table(["package", "version"], sorted(run.versions.items()))
    return section("Run", paragraph(about), charts(parts), folded("recipe", options), folded("versions", versions))


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"


def scores_section(findings: Findings) -> Html:
    """AP with intervals, classes, curves, confusion, reliability, AP by group."""
    numbers = findings.numbers
    own = numbers.intervals
    rows: list[tuple[object, ...]] = [
        (name, _value(one.value), _span(one.low, one.high)) for name, one in own.metrics.items() if name in _HEADLINE
    ]
    rows += [(name, _value(float(numbers.metrics[name])), "") for name in _OTHERS]  # type: ignore[literal-required]
    note = (
        f"{count_of(numbers.metrics['images'], 'image')}, {count_of(numbers.objects, 'object')}, "
        f"{count_of(numbers.crowd_regions, 'crowd region')}, {count_of(numbers.metrics['detections'], 'result')}; "
        f"at most {numbers.metrics['max_detections']} results per image and class. 95 % intervals are "
        f"from {own.resamples:,} resamples of the images (seed {own.seed})."
    )
    limits = sorted({one.threshold for one in numbers.classes})
    limit = f"{limits[0]:g}" if len(limits) == 1 else "that of each class in the table,"
    thresholds = f"Score threshold: {limit};" if len(limits) == 1 else f"Score threshold: {limit}"
    return section(
        "Numbers",
        table(["metric", "value", "95 % interval"], [tuple(map(str, row)) for row in rows]),
        paragraph(note),
        _classes(numbers),
        paragraph("Results, precision, recall and F1 are at the threshold of the class and an IoU of 0.5."),
        element("div", charts(curve_charts(numbers)), id="threshold"),
        reliability_table(numbers),
        confusion_table(numbers.confusion, findings.truth.names, thresholds),
        element("div", charts(_groups(numbers)), id="groups"),
        anchor="numbers",
    )


def _value(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "undefined"


def _span(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}" if low >= 0 else ""


def _classes(numbers: ReportNumbers) -> Html:
    """The classes with their counts and numbers, the weakest first."""
    head = ["class", "objects", "results", "AP", "95 % interval", "AP50", "threshold", "precision", "recall", "F1"]
    ordered = sorted(numbers.classes, key=lambda one: (one.ap.value < 0, one.ap.value))
    rows = [
        (
            one.name,
            one.objects,
            one.results,
            *(_value(one.ap.value), _span(one.ap.low, one.ap.high), _value(one.AP50), f"{one.threshold:g}"),
            *(_value(one.precision), _value(one.recall), _value(one.f1)),
        )
        for one in ordered
    ]
    caption = "Classes, the weakest first"
    first = table(head, rows[:MOST_CLASSES], caption=caption)
    rest = [folded(f"{len(rows) - MOST_CLASSES} more classes", table(head, rows[MOST_CLASSES:]))]
    return element("div", first, *(rest if len(rows) > MOST_CLASSES else []), id="classes")


def _groups(numbers: ReportNumbers) -> list[Html]:
    found = numbers.breakdown
    sets = (
        ("AP over the size of objects", found.by_size, "{} px", "Side of a square with the object's area."),
        ("AP over crowding", found.by_crowding, "{} per image", "Images by the number of their objects."),
        ("AP over the size of images", found.by_image_size, "{} px", "Side of a square with the image's area."),
    )
    brackets = "In brackets: how many objects."
    return [
        value_bars(title, [_group(one, words) for one in groups], f"{text} {brackets}")
        for title, groups, words, text in sets
        if groups
    ]


def _group(one: ApGroup, words: str) -> tuple[str, float, str]:
    low, high = f"{one.low:.0f}", f"{one.high:.0f}"
    name = words.format(low if low == high else f"{low} to {high}")
    return f"{name} ({one.objects:,})", one.AP, f" (AP50 {one.AP50:.3f})" if one.AP50 >= 0 else ""


def errors_section(findings: Findings) -> Html:
    """Errors by kind with the AP50 that each costs, in all and by class."""
    numbers = findings.numbers
    note = (
        f"AP50 is {numbers.AP50:.3f}. Each bar says how much it would be higher if all errors of one kind were "
        "corrected, and nothing else (TIDE, arXiv:2008.08115). The gains do not add up. All results count here, not "
        "only those above the threshold."
    )
    if numbers.AP50 < 0:
        return section("Errors by kind", paragraph("There is no object to find."), anchor="errors")
    top = max((one.cost for one in numbers.errors), default=0.0)
    bars = [(f"{one.kind} ({one.count:,})", one.cost, "") for one in numbers.errors]
    meaning = element("ul", *(element("li", join([f"{name}: {text}"])) for name, text in _MEANING.items()))
    kinds = numbers.errors[:6]
    head = ["class", *(one.kind for one in kinds)]
    rows = [
        (name, *(f"{one.per_class[place]:.3f}" if place in one.per_class else "" for one in kinds))
        for place, name in enumerate(findings.truth.names)
    ]
    by_class = [folded("gain in AP50 of each class", table(head, rows))] if len(rows) > 1 else []
    chart = value_bars("AP50 that each kind costs", bars, "In brackets: how many there are.", largest=max(top, 0.05))
    parts = [paragraph(note), charts([chart]), folded("the kinds", meaning), *by_class]
    return section("Errors by kind", *parts, anchor="errors")
