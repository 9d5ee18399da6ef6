"""Where a trained head comes from: a model of ours, Hugging Face's Mask2Former, or one of the original project."""

from __future__ import annotations

from pathlib import Path

from transformers import Mask2FormerForUniversalSegmentation

from ..model.configuration import Mask2FormerDinov3Config
from .mask2former import ORIGINAL, Checkpoint, checkpoint_of
from ..model.modeling import Mask2FormerDinov3ForInstanceSegmentation
from .loading import load_config, load_pretrained, weights_file
from .files import read_weights, shapes_of

WANTED = "expected a Hugging Face Mask2Former or a model of ours (hub id or local folder)"


def load_checkpoint(source: str, token: str | None = None) -> Checkpoint:
    """A trained model from a folder or a hub id, in float32.

    Raises ValueError for another kind of model, for weights that are missing, and for what is not supported; OSError,
    KeyError or RuntimeError when it cannot be found or read.
    """
    config = load_config(source, token)
    if config.model_type not in ("mask2former", Mask2FormerDinov3Config.model_type):
        raise ValueError(f"{WANTED}; got a model of type {config.model_type!r}")
    file = weights_file(source, token)
    if config.model_type == "mask2former" and file is not None and is_original(file):
        return checkpoint_of(config, read_weights(file))
    kinds = {
        "mask2former": Mask2FormerForUniversalSegmentation,
        Mask2FormerDinov3Config.model_type: Mask2FormerDinov3ForInstanceSegmentation,
    }
    is_ours = config.model_type == Mask2FormerDinov3Config.model_type
    model = load_pretrained(kinds[config.model_type], source, config, token, whole=is_ours)
    if is_ours:
        return Checkpoint(model.config, model.state_dict())
    return checkpoint_of(model.config, model.state_dict())


def is_original(file: Path) -> bool:
    """Whether a file of weights is one of the original DINOv3 + Mask2Former project."""
    return any(key.startswith(ORIGINAL) for key in shapes_of(file))
