"""Line plots as PNG with Pillow alone: the project needs no plotting library for two pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # drawn larger and made smaller again: smooth lines
WIDTH, HEIGHT, MARGIN = 460, 300, 62  # of one panel, pixels
COLORS = {"baseline": "#8a8f98", "ours": "#d9480f"}
INK, GRID = "#222222", "#e4e6e9"


class Panel(NamedTuple):
    """One plot: labels of its axes, and a line of (x, y) points for each side; both axes start at 0."""

    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]]


def draw_panels(rows: list[list[Panel]], path: Path) -> None:
    """Panels in rows, with a legend in each."""
    size = (WIDTH * SCALE * max(map(len, rows)), HEIGHT * SCALE * len(rows))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            _draw_panel(draw, panel, column * WIDTH, row * HEIGHT)
    picture.resize((size[0] // SCALE, size[1] // SCALE), Image.Resampling.LANCZOS).save(path)


def ticks_of(highest: float) -> list[float]:
    """Round numbers from 0 to just above `highest`, four to six of them."""
    power = 10 ** math.floor(math.log10(max(highest, 1e-9) / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * 5 >= highest)
    return [step * count for count in range(math.ceil(highest / step) + 1)]


def _draw_panel(draw: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
    """One panel with its top left corner at (left, top), in pixels before scaling."""
    font = ImageFont.load_default(12 * SCALE)
    points = [point for line in panel.lines.values() for point in line] or [(1.0, 1.0)]
    x_ticks, y_ticks = (ticks_of(max(values) or 1.0) for values in zip(*points, strict=True))
    x_end = max(x for x, _ in points) * 1.03
    box = (left + MARGIN, top + 30, left + WIDTH - 20, top + HEIGHT - 48)

    def place(x: float, y: float) -> tuple[float, float]:
        across = box[0] + (box[2] - box[0]) * x / x_end
        return across * SCALE, (box[3] - (box[3] - box[1]) * y / y_ticks[-1]) * SCALE

    for y in y_ticks:
        draw.line([place(0, y), place(x_end, y)], GRID, SCALE)
        draw.text((place(0, y)[0] - 8 * SCALE, place(0, y)[1]), f"{y:g}", INK, font, anchor="rm")
    for x in (tick for tick in x_ticks if tick <= x_end):
        draw.text((place(x, 0)[0], place(x, 0)[1] + 6 * SCALE), f"{x:g}", INK, font, anchor="mt")
    draw.line([place(0, 0), place(x_end, 0)], INK, SCALE)
    draw.text((place(x_end / 2, 0)[0], (box[3] + 26) * SCALE), panel.x_label, INK, font, anchor="mt")
    draw.text((box[0] * SCALE, (top + 10) * SCALE), panel.y_label, INK, font, anchor="lm")
    for number, (name, line) in enumerate(panel.lines.items()):
        places = [place(*point) for point in line]
        draw.line(places, COLORS[name], 2 * SCALE, joint="curve")
        for x, y in places:
            draw.ellipse([x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE], COLORS[name])
        legend = ((box[0] + 12) * SCALE, (box[1] + 10 + 18 * number) * SCALE)
        draw.line([legend, (legend[0] + 20 * SCALE, legend[1])], COLORS[name], 2 * SCALE)
        draw.text((legend[0] + 26 * SCALE, legend[1]), name, INK, font, anchor="lm")
