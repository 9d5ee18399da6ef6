"""Decide whether Meta's DINOv3 License binds a model, and hold its text."""

from __future__ import annotations

from pathlib import Path

from ..model import Mask2FormerDinov3Config

LICENCE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
LICENSE_FILE = "DINOV3_LICENSE.md"  # the text's name in every model folder that it binds
LICENCE_TEXT = Path(__file__).with_name(LICENSE_FILE)


def is_derived(config: Mask2FormerDinov3Config) -> bool:
    """Whether the model's weights derive from Meta's DINOv3, so that a copy of its licence must accompany them."""
    return bool(config.backbone_source) and str(config.backbone_config.model_type).startswith("dinov3")


def is_bound(config: Mask2FormerDinov3Config, folder: Path) -> bool:
    """Whether the DINOv3 License binds a model, by its configuration or because its folder holds the licence."""
    return is_derived(config) or (folder / LICENSE_FILE).is_file()
