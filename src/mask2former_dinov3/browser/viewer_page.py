"""What the page of `serve` and a folder of `export --web` share: settings of the viewer, and parts of their HTML."""

from __future__ import annotations

import html
from pathlib import Path

from ..inference.network import NetworkConfig
from ..inference.settings import DEFAULTS, one_threshold
from ..sample_data import SAMPLE
from ..visualize import PALETTE

STATIC = Path(__file__).parent / "static"
SAMPLE_IMAGE = SAMPLE / "valid" / "6fc83b33896f58a4.png"
MIN_THRESHOLD = 0.05  # the page asks for all instances above it, and filters them in the browser
MOST_INSTANCES = 1_000  # more would make the page slow

HISTOGRAM = '<svg role="img" aria-label="Histogram of scores" viewBox="0 0 100 30" preserveAspectRatio="none"></svg>'
_HEADS = "".join(
    f'<button type="button" data-sort="{key}" aria-label="Sort by {key}">{key.capitalize()}</button>'
    for key in ("class", "score", "area")
)
INSTANCE_LIST = (
    f'<p class="m2f-title">Instances</p><div class="m2f-heads" hidden>{_HEADS}</div>'
    '<div class="m2f-rows"><p>Listed here once there is an image.</p></div>'
)


def page_class_names(config: NetworkConfig) -> list[str]:
    """The names of all classes, in the order of the labels."""
    return [str(config.id2label[label]) for label in range(config.num_labels)]


def start_threshold(config: NetworkConfig) -> float:
    """The minimum score that the page starts with, in the steps of its slider."""
    return max(MIN_THRESHOLD, round(one_threshold(DEFAULTS.for_model(config)), 2))


def viewer_settings(
    config: NetworkConfig, accepted: str, whole: tuple[int, int] | None, max_bytes: int | None = None
) -> dict[str, object]:
    """What viewer.js reads as `props.settings`.

    accepted: the line that says which images are taken. whole: `Passes.whole`, the size above which images are
    cut into tiles. max_bytes: limit of the server; None where there is no server.
    """
    return {
        "least": MIN_THRESHOLD,
        "threshold": start_threshold(config),
        "max_detections": min(MOST_INSTANCES, int(config.num_queries)),
        "whole": whole,
        "max_bytes": max_bytes,
        "accepted": accepted,
        "classes": page_class_names(config),
        "palette": [f"rgb({red}, {green}, {blue})" for red, green, blue in PALETTE.tolist()],
    }


def describe_classes(config: NetworkConfig) -> str:
    """The name of the one class, or the number of classes, as HTML."""
    classes = page_class_names(config)
    return html.escape(classes[0]) if len(classes) == 1 else f"{len(classes)} classes"


def class_list(config: NetworkConfig) -> str:
    """The list of classes as HTML, as it is until there is an image."""
    names = ", ".join(map(html.escape, page_class_names(config)))
    return f'<p class="m2f-title">Classes</p><div class="m2f-list"><p>{names}</p></div>'


def display_name(model: str | Path) -> str:
    """The name of a model without the folders of this machine: "first/best" for runs/first/best."""
    path = Path(model)
    if not path.exists():
        return str(model)
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("best", "last", "model") else path.name
