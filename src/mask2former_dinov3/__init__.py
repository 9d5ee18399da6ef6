"""Mask2Former instance segmentation on DINOv3 backbones, for COCO data.

The public names below are loaded when they are first used, so that `import mask2former_dinov3` and the command line's
`--help` load neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .config.train_config import TrainConfig
    from .evaluation.coco_ap import evaluate_coco
    from .inference.image_processing import Mask2FormerDinov3ImageProcessor
    from .inference.predictor import Predictor
    from .instances import Instances
    from .model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
    from .training.train import train

__all__ = [
    "Instances",
    "Mask2FormerDinov3Config",
    "Mask2FormerDinov3ForInstanceSegmentation",
    "Mask2FormerDinov3ImageProcessor",
    "Predictor",
    "TrainConfig",
    "__version__",
    "evaluate_coco",
    "train",
]

_MODULE_OF = {
    "Instances": "instances",
    "Mask2FormerDinov3Config": "model",
    "Mask2FormerDinov3ForInstanceSegmentation": "model",
    "Mask2FormerDinov3ImageProcessor": "inference.image_processing",
    "Predictor": "inference.predictor",
    "TrainConfig": "config.train_config",
    "evaluate_coco": "evaluation.coco_ap",
    "train": "training.train",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
