"""Names that several rooms share: presets, repositories on the hub, options that name a split."""

from __future__ import annotations

PRESETS = ("tiny", "smallplus", "large")  # backbones with random weights; their shapes are `model.VIT_SHAPES`
HUB_BACKBONES = {  # the pretrained weights of a preset
    "smallplus": "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    "large": "facebook/dinov3-vitl16-pretrain-lvd1689m",
}
SPLIT_OPTIONS = tuple(f"{split}_{part}" for split in ("train", "valid", "test") for part in ("annotations", "images"))
