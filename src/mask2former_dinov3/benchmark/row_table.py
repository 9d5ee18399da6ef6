"""Rows as a Markdown table with aligned columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
"""Flat; keys end in their unit: _seconds, _gb and _mb (10^9 and 10^6 bytes), _per_second."""

BENCHMARK_COLUMNS = {
    "canvas": "canvas",
    "runtime": "runtime",
    "precision": "precision",
    "images_per_second": "images/s",
    "latency_p50_seconds": "p50, ms",
    "latency_p95_seconds": "p95, ms",
    "speedup": "speed-up",
    "peak_gb": "peak, GB",
    "start_seconds": "start, s",
    "file_mb": "file, MB",
    "same_instances": "same",
    "AP": "AP",
    "note": "note",
}
ALWAYS_SHOWN = frozenset(BENCHMARK_COLUMNS) - {"AP", "note"}  # the others only where a row has one


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first line is its head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rows = [f"| {' | '.join(line)} |" for line in padded]
    return "\n".join([rows[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *rows[1:]])


def benchmark_table(rows: Sequence[Row]) -> str:
    """The rows of `measure_variants` as a table."""
    shown = [key for key in BENCHMARK_COLUMNS if key in ALWAYS_SHOWN or any(row.get(key) is not None for row in rows)]
    return markdown([[BENCHMARK_COLUMNS[key] for key in shown], *([_cell(key, row) for key in shown] for row in rows)])


def _cell(key: str, row: Mapping[str, Any]) -> str:
    value = f"{row['height']}x{row['width']}" if key == "canvas" else row.get(key)
    if value is None:
        return "" if key == "note" else "—"
    if key.startswith("latency"):
        return f"{value * 1000:.4g}"
    if key == "same_instances":
        return f"{value:.1%} of {row['instances']}"
    return f"{value:.4f}" if key == "AP" else f"{value:.3g}" if isinstance(value, float) else str(value)
