"""What several modules share: presets, repositories on the hub, options that name a split, the largest number."""

from __future__ import annotations

LARGEST_QUERIES = 100_000  # matching is quadratic in them, and memory is finite
PRESETS = ("tiny", "smallplus", "large")  # backbones with random weights; their shapes are `model.VIT_SHAPES`
HUB_BACKBONES = {  # the pretrained weights of a preset
    "smallplus": "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    "large": "facebook/dinov3-vitl16-pretrain-lvd1689m",
}
LARGEST = 10**9  # of an option: no sensible value is near it, and products of two still fit float32 and int64
PUBLISHED, FEW, FROM_SCRATCH = "published", "few-images", "from-scratch"
RECIPES = (PUBLISHED, FEW, "frozen", "full", FROM_SCRATCH)  # files of `recipes/`
DATASET_FORMATS = ("auto", "coco", "yolo", "label-maps", "labelme", "voc", "cvat", "label-studio", "datasets")
SPLIT_OPTIONS = tuple(f"{split}_{part}" for split in ("train", "valid", "test") for part in ("annotations", "images"))
AUTO_BATCH = "auto"  # of `per_device_train_batch_size`
DEFAULT_BATCH = 2
