"""Draw charts as inline SVG: histograms and horizontal bars, each with a summary in words and its numbers as a table.

Charts are 360 units wide, so that their letters stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .html_page import Html, element, folded, join, paragraph, table

WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 18, 34
_ROW = 22  # height of one horizontal bar


def histogram(
    title: str,
    edges: Sequence[str],
    counts: Sequence[int],
    unit: str,
    summary: str,
    mark: tuple[float, str] | None = None,
) -> Html:
    """Counts in neighbouring bins as upright bars. edges: the labels of the bins' borders, one more than counts.

    unit: what the borders measure; summary: the chart in a sentence. mark: a position in bins from the left, and what
    stands there.
    """
    most = max(counts, default=0) or 1
    step = (WIDTH - _LEFT - _RIGHT) / max(len(counts), 1)
    floor = _HEIGHT - _BOTTOM
    shapes = [element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=floor, y2=floor)]
    for place, count in enumerate(counts):
        tall = (floor - _TOP) * count / most
        name = element("title", f"{edges[place]} to {edges[place + 1]} {unit}: {count:,}")
        box = {"x": f"{_LEFT + place * step + 1:.1f}", "width": f"{max(step - 2, 1):.1f}"}
        bar = element("rect", y=f"{floor - tall:.1f}", height=f"{max(tall, 1.5 * (count > 0)):.1f}", **box)
        shapes.append(element("g", name, bar))
    every = max(1, math.ceil(len(edges) / 8))
    for place, label in enumerate(edges):
        if place % every == 0:
            anchor = "start" if place == 0 else "end" if place == len(edges) - 1 else "middle"
            x = f"{_LEFT + place * step:.1f}"
            shapes.append(element("text", label, x=x, y=floor + 14, text_anchor=anchor))
    shapes.append(element("text", unit, x=WIDTH / 2, y=_HEIGHT - 4, text_anchor="middle", class_="soft"))
    shapes.append(element("text", f"most: {most:,}", x=_LEFT, y=11, class_="soft"))
    if mark is not None:
        place_of_mark = f"{min(max(_LEFT + mark[0] * step, _LEFT), WIDTH - _RIGHT):.1f}"
        shapes.append(element("line", x1=place_of_mark, x2=place_of_mark, y1=_TOP - 4, y2=floor, class_="mark"))
        shapes.append(element("text", mark[1], x=WIDTH - _RIGHT, y=11, text_anchor="end", class_="marked"))
    rows = [(f"{edges[place]} to {edges[place + 1]}", count) for place, count in enumerate(counts)]
    return _chart(title, drawing(shapes, _HEIGHT, title, summary), summary, table([unit, "number"], rows))


def bar_chart(title: str, bars: Sequence[tuple[str, int]], noun: str, summary: str, shown: int = 25) -> Html:
    """Named counts as horizontal bars, `shown` of them; the table has all. noun: what is named, such as "class"."""
    most = max((count for _, count in bars), default=0) or 1
    drawn = bars[:shown]
    shapes = []
    for row, (name, count) in enumerate(drawn):
        top = row * _ROW
        short = name if len(name) <= 34 else f"{name[:33]}…"
        label = element("text", short, x=0, y=top + 11)
        number = element("text", f"{count:,}", x=WIDTH, y=top + 11, text_anchor="end")
        long = max(WIDTH * count / most, 1.5 * (count > 0))
        bar = element("rect", x=0, y=top + 14, height=5, width=f"{long:.1f}")
        shapes.append(element("g", element("title", f"{name}: {count:,}"), label, number, bar))
    if len(bars) > shown:
        rest = f"and {len(bars) - shown:,} more in the table"
        shapes.append(element("text", rest, x=0, y=len(drawn) * _ROW + 12, class_="soft"))
    height = (len(drawn) + (len(bars) > shown)) * _ROW or _ROW
    return _chart(title, drawing(shapes, height, title, summary), summary, table([noun, "number"], bars))


def charts(parts: Sequence[Html]) -> Html:
    """Charts side by side."""
    return element("div", *parts, class_="charts")


def drawing(shapes: Sequence[Html], height: float, title: str, summary: str) -> Html:
    """Shapes as one picture, `WIDTH` wide, with its name and what it says for those who cannot see it."""
    label = f"{title}. {summary}"
    return element("svg", join(shapes), viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)


def _chart(title: str, picture: Html, summary: str, numbers: Html) -> Html:
    content = element("h3", title), picture, paragraph(summary), folded("the numbers", numbers)
    return element("div", *content, class_="chart")
