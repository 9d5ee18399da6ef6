"""Charts of an evaluation: confusion, bars from 0 to 1, curves. They draw numbers; none is computed here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.array_types import Ints
from ..evaluation.report_numbers import ReportCurve, ReportNumbers
from .compare_charts import Curve, overlaid_curves
from .html_page import Html, element, folded, paragraph, table
from .svg_charts import WIDTH, drawing

_ROW = 24
MOST_CLASSES = 20  # of a confusion matrix that is drawn
MOST_CURVES = 5  # in one frame


def value_bars(
    title: str, bars: Sequence[tuple[str, float, str]], summary: str, largest: float = 1.0, anchor: str = ""
) -> Html:
    """Named values from 0 to `largest` as horizontal bars, each with its number; below 0: undefined.

    bars: name, value, and what stands behind the number, such as its interval.
    """
    shapes = []
    for row, (name, value, more) in enumerate(bars):
        top = row * _ROW
        short = name if len(name) <= 30 else f"{name[:29]}…"
        shown = f"{value:.3f}{more}" if value >= 0 else "undefined"
        label = element("text", short, x=0, y=top + 12)
        number = element("text", shown, x=WIDTH, y=top + 12, text_anchor="end")
        long = WIDTH * min(max(value, 0.0) / (largest or 1.0), 1.0)
        bar = element("rect", x=0, y=top + 16, height=5, width=f"{long:.1f}")
        shapes.append(element("g", element("title", f"{name}: {shown}"), label, number, bar))
    height = max(len(bars), 1) * _ROW
    picture = drawing(shapes, height, title, summary)
    content = element("h3", title), picture, paragraph(summary)
    return element("div", *content, class_="chart", **({"id": anchor} if anchor else {}))


def confusion_table(matrix: Ints, names: Sequence[str], thresholds: str) -> Html:
    """The confusion matrix (K + 1, K + 1) as a table whose cells are the darker, the larger their part of the row.

    Of more than `MOST_CLASSES` classes those with most objects and results off the diagonal are drawn.
    """
    size = len(names)
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    ranked = np.argsort(-(off[:size].sum(1) + off[:, :size].sum(0)), kind="stable")[:MOST_CLASSES]
    chosen = [*sorted(ranked.tolist()), size]
    columns = [*names, "missed"]
    rows = [*names, "invented"]
    titles = ["labelled \\ found", *(columns[one] for one in chosen)]
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    lines = []
    for row in chosen:
        total = int(matrix[row].sum())
        cells = [element("th", rows[row], scope="row")]
        for column in chosen:
            count = int(matrix[row, column])
            part = count / total if total else 0.0
            if row == size and column == size:
                cells.append(element("td", ""))
                continue
            kind = "hit" if row == column else "slip"
            style = f"--part:{100 * part:.0f}%"
            about = f"{rows[row]} as {columns[column]}: {count:,} ({100 * part:.1f} % of the row)"
            cells.append(element("td", f"{count:,}", class_=f"number cell {kind}", style=style, title=about))
        lines.append(element("tr", *cells))
    left = ""
    if size > MOST_CLASSES:
        left = f" {size - MOST_CLASSES} classes with fewer confusions are left out; report.json has all."
    content = element("table", element("thead", head), element("tbody", *lines))
    note = (
        f"Rows: the class of the label. Columns: the class of the result. {thresholds} IoU of 0.5. Missed: objects "
        f"that no result is on; invented: results on no object, or on one found already.{left}"
    )
    region = element("div", content, class_="wide", tabindex=0, role="region", aria_label="Confusion of instances")
    return element("div", element("h3", "Confusion of instances"), region, paragraph(note), id="confusion")


CHART_STYLE = """
.cell.hit { background: color-mix(in srgb, var(--good) calc(var(--part) * .45), transparent); }
.cell.slip { background: color-mix(in srgb, var(--error) calc(var(--part) * .4), transparent); }
td.cell { padding: .25rem .5rem; }
"""


def curve_charts(numbers: ReportNumbers) -> list[Html]:
    """Precision over recall, F1 over the threshold with the chosen point, and reliability."""
    common = [one for one in numbers.curves if not one.name]
    classes = [one for one in numbers.curves if one.name]
    drawn = [*common, *classes[: MOST_CURVES - len(common)]]
    parts = [
        overlaid_curves(
            "Precision over recall",
            [Curve(_name(one), list(zip(one.recall, one.precision, strict=True))) for one in drawn],
            ("recall", "precision"),
            "Each point is a score threshold. metrics.json has the curves of all classes.",
            unit_square=True,
        )
    ]
    block, text = numbers.operating, "No result finds an object, so no threshold is chosen."
    curves = [Curve(_name(one), list(zip(one.score, one.f1, strict=True))[::-1]) for one in drawn[: MOST_CURVES - 1]]
    if block["threshold"] is not None:
        threshold = block["threshold"]
        text = f"Chosen for all classes together, for the {block['aim']}: {threshold:g}."
        if "threshold" in block["intervals"]:
            low, high = block["intervals"]["threshold"]
            text += f" On 95 % of the resampled data sets the choice lies between {low:.3f} and {high:.3f}."
        curves.append(Curve("chosen threshold", [(threshold, 0.0), (threshold, 1.0)]))
    parts.append(
        overlaid_curves("F1 over the score threshold", curves, ("score threshold", "F1"), text, unit_square=True)
    )
    found = numbers.calibration
    if found.bins:
        text = (
            f"Results with a score of 0.8 should be right in 80 of 100 cases: then the line follows the diagonal. "
            f"Expected calibration error (ECE): {found.error:.3f}."
        )
        points = [(one.score, one.precision) for one in found.bins]
        both = [Curve("results", points), Curve("ideal", [(0.0, 0.0), (1.0, 1.0)])]
        axes = ("mean score", "precision")
        parts.append(overlaid_curves("Reliability of scores", both, axes, text, unit_square=True))
    return parts


def _name(curve: ReportCurve) -> str:
    return f"{curve.name or 'all classes'}, IoU {curve.iou:g}"


def reliability_table(numbers: ReportNumbers) -> Html:
    """The bins of the reliability diagram."""
    rows = [
        (f"{one.low:.1f} to {one.high:.1f}", one.count, round(one.score, 3), round(one.precision, 3))
        for one in numbers.calibration.bins
    ]
    return folded("reliability in numbers", table(["score", "results", "mean score", "precision"], rows))
