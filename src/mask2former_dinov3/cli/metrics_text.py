"""The content of metrics.json as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ..data.coco_types import OperatingBlock

HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "boundary_AP", "box_AP")


def format_metric(value: object) -> str:
    """A metric as a number, or as a word where COCO leaves it undefined (-1)."""
    return f"{value:.4f}" if isinstance(value, int | float) and value >= 0 else "undefined"


def metric_lines(metrics: Mapping[str, object]) -> Iterator[str]:
    """The metrics as a table, the operating point, and the notes."""
    for name in (name for name in HEADLINE if name in metrics):
        yield f"{name:12} {format_metric(metrics[name])}"
    classes = metrics.get("per_class")
    if isinstance(classes, dict) and len(classes) > 1:
        width = max(map(len, classes))
        yield "per class"
        yield from (f"  {name:{width}}  {format_metric(ap)}" for name, ap in classes.items())
    yield f"{metrics['detections']} detections in {metrics['images']} images, at most {metrics['max_detections']} each"
    if "operating_point" in metrics:
        from ..evaluation.threshold_choice import operating_lines

        yield from operating_lines(cast("OperatingBlock", metrics["operating_point"]))
    notes = metrics.get("notes")
    yield from (f"note: {note}" for note in (notes if isinstance(notes, list) else ()))
