"""The README.md of a model folder."""

from __future__ import annotations

from typing import Any

from .model import Mask2FormerDinov3Config

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "boundary_AP", "box_AP")


def model_card(config: Mask2FormerDinov3Config, metrics: dict[str, Any]) -> str:
    """Markdown: what the model is, its classes, its validation metrics if there are any, how to use it, licence."""
    names = [config.id2label[label] for label in range(config.num_labels)]
    derived = bool(config.backbone_source) and config.backbone_config.model_type.startswith("dinov3")
    licence = (
        f"The backbone's weights come from `{config.backbone_source}`: they and this model fall under the DINOv3 "
        "License of Meta (DINOV3_LICENSE.md in this folder), which must travel with them."
        if derived
        else "No weights of DINOv3 are in this model."
    )
    lines = [
        "---",
        "library_name: mask2former-dinov3",
        "pipeline_tag: image-segmentation",
        *(["license: other", "license_name: dinov3-license"] if derived else []),
        "---",
        "",
        "# Mask2Former on DINOv3, instance segmentation",
        "",
        f"Backbone: {config.backbone_source or config.backbone_config.model_type + ' (trained from random weights)'}; "
        f"neck: {config.neck}; {config.num_queries} queries.",
        "",
        f"Classes ({len(names)}): {', '.join(names)}",
        "",
    ]
    if "AP" in metrics:
        at = f" after {metrics['step']} steps" if "step" in metrics else ""
        lines += [
            f"COCO metrics on the validation set{at}, masks at original image size:",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        lines += [f"| {name} | {metrics[name]:.4f} |" for name in SHOWN if metrics.get(name, -1) >= 0]
        lines += [""]
    lines += [
        "```python",
        "from mask2former_dinov3 import Predictor",
        "",
        'instances = Predictor.from_pretrained("path/to/this/folder")("image.jpg")',
        "print(len(instances), instances.labels, instances.scores)",
        "```",
        "",
        licence,
        "",
    ]
    return "\n".join(lines)
