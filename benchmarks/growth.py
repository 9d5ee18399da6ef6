"""Seconds and peak memory of a training step over the number of instances and over the size of the image."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from machine import describe_machine
from mask2former_dinov3.benchmark.row_table import Row
from measure import SIDES, in_own_process
from plot import Panel, draw_panels

INSTANCES = (1, 10, 50, 100, 200)
SIZES = (256, 512, 768, 1024, 1280, 1536)  # pixels, with SIZES_AT instances
SIZES_AT = 10


def measure_growth(script: str, argv: Sequence[str], size: int, cap: float) -> list[Row]:
    """One row a point and side, each in a process of its own: one warm-up and one timed step.

    A point that takes more than `cap` seconds, or memory that the machine does not have, gets a note instead of
    numbers, and the larger points of that side are left out.
    """
    rows: list[Row] = []
    curves = [("instances", [(count, size) for count in INSTANCES]), ("size", [(SIZES_AT, side) for side in SIZES])]
    for axis, points in curves:
        for side in SIDES:
            for instances, pixels in points:
                row = {"axis": axis, "instances": instances, "size": pixels, "side": side}
                point = ["--instances", str(instances), "--size", str(pixels), "--only", side, "--repeat", "1"]
                try:
                    rows.append(row | in_own_process(script, [*argv, *point], cap))
                except subprocess.TimeoutExpired:
                    rows.append(row | {"note": f"more than {cap:g} s"})
                    break
                except MemoryError:
                    rows.append(row | {"note": "out of memory"})
                    break
                print(rows[-1], file=sys.stderr)
    return rows


def write_growth(rows: list[Row], output: Path | None, picture: Path | None) -> None:
    """Rows with the machine they are from as JSON, and as a picture, where asked for."""
    if output is not None:
        output.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")
    if picture is not None:
        draw_panels(panels_of(rows), picture)


def panels_of(rows: list[Row]) -> list[list[Panel]]:
    """Two rows (seconds, GB) of two panels (over instances, over the side of the image)."""
    axes = (("instances", "instances an image"), ("size", "side of the image (pixels)"))
    quantities = (("seconds", "seconds a step"), ("peak_gb", "peak memory (GB)"))
    return [
        [
            Panel(
                x_label,
                y_label,
                {
                    side: [
                        (float(row[axis]), float(row[key]))
                        for row in rows
                        if (row["axis"], row["side"]) == (axis, side) and key in row
                    ]
                    for side in SIDES
                },
            )
            for axis, x_label in axes
        ]
        for key, y_label in quantities
    ]
