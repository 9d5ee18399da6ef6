"""Options that are each valid but do not fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLACEHOLDER = "path/to/"  # how the shipped JSON files begin a path that the user has to give
Fault = tuple[tuple[str, ...], str]


def cross_faults(values: Mapping[str, Any]) -> list[Fault]:
    """What is wrong between options that are each valid: (the keys involved, the reason). values: all of them."""
    faults: list[Fault] = []
    dataset = values["dataset_name"]
    if dataset is None and values["train_annotations"] is None:
        reason = "required; the folder of a COCO data set (or train_annotations and train_images)"
        faults.append((("dataset_name", "train_annotations"), reason))
    if dataset is not None and dataset.startswith(PLACEHOLDER):
        reason = f"{dataset!r} stands for your own data; write the folder of a COCO data set or add --dataset_name DIR"
        faults.append((("dataset_name",), reason))
    for split in ("train", "valid", "test"):
        annotations, images = f"{split}_annotations", f"{split}_images"
        if dataset is None and values[images] is not None and values[annotations] is None:
            faults.append(((annotations, images), f"required, since {images} is given"))
    if values["neck"] == "plain" and values["mask_stride"] is not None:
        reason = f"{values['mask_stride']} needs maps finer than those of neck=plain; set it to null, or use pyramid"
        faults.append((("mask_stride", "neck"), reason))
    if values["neck"] == "none" and values["backbone_taps"] is not None:
        reason = (
            f"{values['backbone_taps']} is for a ViT; a backbone that is a pyramid (neck=none) gives its four stages"
        )
        faults.append((("backbone_taps", "neck"), reason))
    ways = {"frozen_blocks": values["frozen_blocks"] > 0, "layer_decay": values["layer_decay"] < 1}
    for name in (name for name, chosen in ways.items() if chosen):
        if values["lora_rank"]:
            reason = f"{values[name]} is for weights that are trained, lora_rank={values['lora_rank']} trains adapters"
            faults.append(((name, "lora_rank"), f"{reason}; choose one"))
        elif values["freeze_backbone"]:
            reason = f"{values[name]} is for a backbone that is trained; set freeze_backbone to false or null"
            faults.append(((name, "freeze_backbone"), reason))
    if values["lora_rank"] and values["freeze_backbone"] is False:
        reason = f"{values['lora_rank']} keeps the backbone's weights; set freeze_backbone to null or lora_rank to 0"
        faults.append((("lora_rank", "freeze_backbone"), reason))
    if values["lora_alpha"] and not values["lora_rank"]:
        faults.append((("lora_alpha", "lora_rank"), "scales adapters; give lora_rank as well"))
    if values["scale_min"] > values["scale_max"]:
        reason = f"{values['scale_min']} is above scale_max={values['scale_max']}"
        faults.append((("scale_min", "scale_max"), reason))
    return faults
