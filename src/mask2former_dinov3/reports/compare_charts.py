"""Charts that set several runs against each other: curves in one frame, and differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .html_page import Html, element, folded, paragraph, table
from .svg_charts import WIDTH, drawing

_HEIGHT = 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 36
_ROW = 24  # height of one interval
_MOST_ROWS = 200  # of the table below a chart
# Colour and dashes, so that curves differ without colours too.
_STROKES = (
    "stroke:var(--bar)",
    "stroke:var(--warning);stroke-dasharray:7 3",
    "stroke:var(--good);stroke-dasharray:2 3",
    "stroke:var(--error);stroke-dasharray:9 3 2 3",
    "stroke:var(--ink);stroke-dasharray:4 4",
)


class Curve(NamedTuple):
    """A named line through (x, y) points, in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


class Interval(NamedTuple):
    """A named value with its interval."""

    name: str
    value: float
    low: float
    high: float


def overlaid_curves(
    title: str, curves: Sequence[Curve], axes: tuple[str, str], summary: str, *, unit_square: bool = False
) -> Html:
    """Curves in one frame, with a legend. axes: what x and y are. unit_square: both axes run from 0 to 1.

    Points that are not finite are left out. summary: the chart in a sentence.
    """
    finite = [Curve(one.name, [point for point in one.points if all(map(math.isfinite, point))]) for one in curves]
    every = [point for one in finite for point in one.points]
    (x0, x1), (y0, y1) = ((0.0, 1.0), (0.0, 1.0)) if unit_square else _ranges(every)
    floor, right = _HEIGHT - _BOTTOM, WIDTH - _RIGHT

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - x0) / (x1 - x0) * (right - _LEFT)
        return f"{across:.1f},{floor - (y - y0) / (y1 - y0) * (floor - _TOP):.1f}"

    shapes = []
    for step in range(5):
        y = y0 + (y1 - y0) * step / 4
        height = floor - (floor - _TOP) * step / 4
        shapes.append(element("line", x1=_LEFT, x2=right, y1=f"{height:.1f}", y2=f"{height:.1f}"))
        shapes.append(element("text", _tick(y), x=_LEFT - 4, y=f"{height + 4:.1f}", text_anchor="end"))
        x, at = x0 + (x1 - x0) * step / 4, _LEFT + (right - _LEFT) * step / 4
        anchor = "start" if step == 0 else "end" if step == 4 else "middle"
        shapes.append(
            element("text", f"{x:.0f}" if x1 - x0 > 10 else f"{x:.3g}", x=f"{at:.1f}", y=floor + 14, text_anchor=anchor)
        )
    for row, one in enumerate(finite):
        name = element("title", one.name)
        line = element(
            "polyline",
            points=" ".join(place(*point) for point in one.points),
            style=f"fill:none;stroke-width:2;{_stroke(row)}",
        )
        shapes.append(element("g", name, line))
    shapes.append(element("text", axes[0], x=(_LEFT + right) / 2, y=_HEIGHT - 6, text_anchor="middle", class_="soft"))
    picture = drawing(shapes, _HEIGHT, title, summary)
    numbers = [folded("the numbers", *(_table_of(one, axes) for one in finite if one.points))]
    return element("div", element("h3", title), _legend(finite), picture, paragraph(summary), *numbers, class_="chart")


def _ranges(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The range of x and of y; never empty."""
    found = []
    for axis in (0, 1):
        values = [point[axis] for point in points] or [0.0]
        low, high = min(values), max(values)
        found.append((low, high if high > low else low + 1))
    return found[0], found[1]


def _tick(value: float) -> str:
    """A number beside an axis, in six characters at most."""
    text = f"{value:.3g}"
    return text if len(text) <= 6 else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _stroke(row: int) -> str:
    return _STROKES[row % len(_STROKES)]


def _legend(curves: Sequence[Curve]) -> Html:
    """Names with a sample of their line."""
    items = []
    for row, one in enumerate(curves):
        line = element("line", x1=0, x2=28, y1=5, y2=5, style=f"stroke-width:2.5;{_stroke(row)}")
        sample = element(
            "svg", line, viewBox="0 0 28 10", aria_hidden="true", style="display:inline-block;width:28px;height:10px"
        )
        items.append(element("span", sample, f" {one.name}", style="margin-right:1rem;white-space:nowrap"))
    return element("p", *items, style="font-size:.85rem")


def _table_of(curve: Curve, axes: tuple[str, str]) -> Html:
    """The points of a curve; of many, evenly spaced ones."""
    step = math.ceil(len(curve.points) / _MOST_ROWS) or 1
    rows = [(f"{x:g}", round(y, 4)) for x, y in curve.points[::step]]
    left = f", every {step} points" if step > 1 else ""
    return table(list(axes), rows, caption=f"{curve.name}{left}")


def interval_chart(title: str, rows: Sequence[Interval], summary: str) -> Html:
    """Values with their intervals around a line at 0; filled where the interval does not hold 0."""
    reach = max((abs(side) for one in rows for side in (one.low, one.high, one.value)), default=0.0) or 1.0
    middle = WIDTH / 2

    def place(value: float) -> float:
        return middle + value / reach * (middle - 8)

    height = len(rows) * _ROW + 20
    shapes = [element("line", x1=middle, x2=middle, y1=0, y2=height - 16, class_="mark")]
    for row, one in enumerate(rows):
        y = row * _ROW + 16
        colour = "var(--good)" if one.low > 0 else "var(--error)" if one.high < 0 else "var(--soft)"
        name = one.name if len(one.name) <= 34 else f"{one.name[:33]}…"
        label = element("text", name, x=0, y=y - 6)
        number = element("text", f"{one.value:+.3f}", x=WIDTH, y=y - 6, text_anchor="end")
        bar = element(
            "line",
            x1=f"{place(one.low):.1f}",
            x2=f"{place(one.high):.1f}",
            y1=y,
            y2=y,
            style=f"stroke:{colour};stroke-width:2",
        )
        decided = one.low > 0 or one.high < 0
        dot = element(
            "circle",
            cx=f"{place(one.value):.1f}",
            cy=y,
            r=4,
            style=f"stroke:{colour};stroke-width:2;fill:{colour if decided else 'var(--card)'}",
        )
        about = element("title", f"{one.name}: {one.value:+.4f}, {one.low:+.4f} to {one.high:+.4f}")
        shapes.append(element("g", about, label, number, bar, dot))
    for value, anchor in ((-reach, "start"), (0.0, "middle"), (reach, "end")):
        x = {"start": 0.0, "middle": middle, "end": float(WIDTH)}[anchor]
        shapes.append(element("text", f"{value:+.3g}", x=x, y=height - 4, text_anchor=anchor, class_="soft"))
    picture = drawing(shapes, height, title, summary)
    return element("div", element("h3", title), picture, paragraph(summary), class_="chart")
