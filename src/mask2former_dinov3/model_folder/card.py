"""Write the model card: README.md of a model folder, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import EvalResult, ModelCardData

from ..data.coco_types import Metrics
from ..model import Mask2FormerDinov3Config
from .licence import LICENCE, LICENSE_FILE, is_derived
from .thresholds import card_line

MetricName = Literal["AP", "AP50", "AP75", "APs", "APm", "APl", "boundary_AP", "box_AP"]
CARD_METRICS: tuple[MetricName, ...] = ("AP", "AP50", "AP75", "APs", "APm", "APl", "boundary_AP", "box_AP")
# Metrics in the front matter: the hub lists them beside those of other models.
INDEXED: dict[MetricName, str] = {
    "AP": "mask AP",
    "AP50": "mask AP at IoU 0.50",
    "AP75": "mask AP at IoU 0.75",
    "box_AP": "box AP",
}
OVERLAY_FILE = "overlay.jpg"
OPTIONS_FILE = "train_config.json"


@dataclass(frozen=True)
class Overlay:
    """A picture of found instances: a JPEG file, and its caption."""

    jpeg: bytes
    caption: str


@dataclass(frozen=True)
class RunDescription:
    """What a card says about a training run.

    name: of the model. dataset: its name, or its id on the hub (USER/NAME). splits: name -> (images, instances).
    options: all options of the run, for `train_config.json`; changed: those that differ from their defaults.
    made_by: package -> version. step: optimiser steps so far, each with step_size images.
    """

    name: str
    dataset: str
    splits: dict[str, tuple[int, int]]
    options: Mapping[str, object]
    changed: Mapping[str, object]
    made_by: dict[str, str] = field(default_factory=dict)
    step: int = 0
    step_size: int = 0
    overlay: Overlay | None = None


def model_card(
    config: Mask2FormerDinov3Config,
    canvas: tuple[int, int],
    metrics: Metrics,
    run: RunDescription | None = None,
) -> str:
    """Markdown with the model's data, validation metrics, recipe, use, limits and licence.

    canvas: (height, width) that images are fitted into. metrics: empty without validation. run: None if nothing is
    known about the training.
    """
    derived = is_derived(config)
    kind = str(config.backbone_config.model_type)
    backbone = f"{kind} ({'trained from random weights' if run else 'its weights are of unknown origin'})"
    if config.backbone_source:
        source = Path(config.backbone_source)
        backbone = source.name if source.is_absolute() else config.backbone_source
    names = [str(config.id2label[label]) for label in range(config.num_labels)]
    bands = config.num_channels
    image = '"image.jpg"' if bands == 3 else '"image.tif"'
    stored = config.score_threshold
    lines = [
        *("---", _front_matter(config, metrics, run), "---", ""),
        *(f"# Mask2Former on {'DINOv3' if kind.startswith('dinov3') else kind.title()}, instance segmentation", ""),
        *(f"Backbone: {backbone}; neck: {config.neck}; {config.num_queries} queries.", ""),
        *(f"Classes ({len(names)}): {', '.join(names)}", ""),
        *(() if bands == 3 else (f"Images of {bands} channels; `preprocessor_config.json` says which.", "")),
    ]
    if run and run.overlay:
        lines += [f"![Instances outlined in a validation image]({OVERLAY_FILE})", "", f"*{run.overlay.caption}*", ""]
    if run:
        rows = [(name, images, instances) for name, (images, instances) in run.splits.items()]
        lines += ["## Data", "", f"`{run.dataset}`", "", *_table(("split", "images", "instances"), rows)]
    if "AP" in metrics:
        lines += _results(metrics)
    if run:
        lines += _recipe(run, canvas)
    lines += [
        *("## Use", "", "```python", "from mask2former_dinov3 import Predictor", ""),
        'model = "."  # this folder, or the id of its repository: "user/name"',
        f"instances = Predictor.from_pretrained(model)({image})",
        *("print(len(instances), instances.names, instances.scores)", "```", ""),
        *([card_line(stored, config.score_threshold_source), ""] if stored is not None else []),
        *("## Limits", ""),
        *_limits(config, canvas),
        *("", "## Licence", ""),
        _licence(kind, backbone if derived else None, is_known=run is not None),
        "",
    ]
    return "\n".join(lines)


def _limits(config: Mask2FormerDinov3Config, canvas: tuple[int, int]) -> list[str]:
    """What limits the instances: the size of the canvas, the stride of the masks, the number of queries."""
    size, scale, per = f"{canvas[0]} x {canvas[1]} pixels (height x width)", config.image_scale, "image"
    shown = f"An image is fitted into {size}"
    if scale != "fit":
        own = "its own scale" if scale == "native" else f"{scale:g} times its own scale"
        shown, per = f"An image is seen at {own}, in tiles of {size} where it is larger", "tile"
    return [
        f"{shown}, and masks are computed with one "
        f"value for {config.mask_stride} x {config.mask_stride} of them: objects of only a few of these pixels are "
        f"often missed. The model finds at most {config.num_queries} instances per {per}, of the classes above only."
    ]


def _licence(kind: str, dinov3: str | None, is_known: bool) -> str:
    """Sentence on the licence. kind: of backbone. dinov3: Meta's weights in it. is_known: whether its training is."""
    if dinov3 is not None:
        return (
            f"The backbone's weights come from `{dinov3}`: they and this model fall under the DINOv3 License of Meta "
            f"({LICENSE_FILE} in this folder), a copy of which must accompany them."
        )
    if is_known or not kind.startswith("dinov3"):
        return "No weights of DINOv3 are in this model."
    return (
        "The origin of the backbone's weights was unknown when this card was written. If they derive from Meta's "
        f"DINOv3, its [DINOv3 License]({LICENCE}) binds this model."
    )


def _front_matter(config: Mask2FormerDinov3Config, metrics: Metrics, run: RunDescription | None) -> str:
    """YAML; undefined metrics are left out, and all metrics if nothing is known about the run."""
    derived = is_derived(config)
    tags = ["instance-segmentation", "mask2former"]
    tags += ["dinov3"] if str(config.backbone_config.model_type).startswith("dinov3") else []
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Instance segmentation",
            dataset_type=run.dataset,
            dataset_name=run.dataset,
            dataset_split="validation",
            metric_type=name,
            metric_name=text,
            metric_value=round(float(metrics[name]), 4),
        )
        for name, text in INDEXED.items()
        if run and metrics.get(name, -1) >= 0
    ]
    data = ModelCardData(
        library_name="mask2former-dinov3",
        pipeline_tag="image-segmentation",
        tags=tags,
        datasets=[run.dataset] if run and "/" in run.dataset else None,
        license="other" if derived else None,
        license_name="dinov3-license" if derived else None,
        license_link=LICENCE if derived else None,
        model_name=run.name if run and results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _results(metrics: Metrics) -> list[str]:
    """Metrics of the validation set, and AP per class if there are several classes."""
    at = f" after {metrics['step']} steps" if "step" in metrics else ""
    lines = ["## Results", "", f"COCO metrics on the validation set{at}, masks at original image size:", ""]
    lines += _table(
        ("metric", "value"), [(name, _number(metrics[name])) for name in CARD_METRICS if metrics.get(name, -1) >= 0]
    )
    classes = metrics.get("per_class", {})
    if len(classes) > 1:
        lines += _table(("class", "AP"), [(name, _number(value)) for name, value in classes.items()])
    return lines


def _recipe(run: RunDescription, canvas: tuple[int, int]) -> list[str]:
    """Section on the training: steps, options, versions."""
    lines = [
        *("## Recipe", ""),
        f"Steps: {run.step}; images per step: {run.step_size}; canvas: {canvas[0]} x {canvas[1]} pixels (height x "
        f"width). Options other than the defaults (all: [{OPTIONS_FILE}]({OPTIONS_FILE})):",
        *("", *_table(("option", "value"), [(f"`{name}`", f"`{json.dumps(v)}`") for name, v in run.changed.items()])),
    ]
    if run.made_by:
        lines += [f"Made by {', '.join(f'{name} {version}' for name, version in run.made_by.items())}.", ""]
    return lines


def _number(value: float) -> str:
    """A metric, or "undefined" where COCO leaves it undefined."""
    return f"{value:.4f}" if value >= 0 else "undefined"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table, followed by an empty line."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""]
