"""Where a trained head comes from: a model of ours, Hugging Face's Mask2Former, or one of the original project."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, Mask2FormerForUniversalSegmentation
from transformers.utils import cached_file

from .configuration import Mask2FormerDinov3Config
from .convert import ORIGINAL, Checkpoint, checkpoint_of
from .modeling import Mask2FormerDinov3ForInstanceSegmentation
from .weight_files import read_weights, shapes_in

WANTED = "expected a Hugging Face Mask2Former or a model of ours (hub id or local folder)"


def load_checkpoint(source: str, token: str | None = None) -> Checkpoint:
    """A trained model from a folder or a hub id, in float32.

    Raises ValueError for another kind of model, for weights that are missing, and for what is not supported; OSError,
    KeyError or RuntimeError when it cannot be found or read.
    """
    config = AutoConfig.from_pretrained(source, token=token)
    if config.model_type not in ("mask2former", Mask2FormerDinov3Config.model_type):
        raise ValueError(f"{WANTED}; got a model of type {config.model_type!r}")
    file = _weights(source, token)
    if config.model_type == "mask2former" and file is not None and is_original(file):
        return checkpoint_of(config, read_weights(file))
    kinds = {
        "mask2former": Mask2FormerForUniversalSegmentation,
        Mask2FormerDinov3Config.model_type: Mask2FormerDinov3ForInstanceSegmentation,
    }
    kind = kinds[config.model_type]
    model, report = kind.from_pretrained(source, token=token, output_loading_info=True, dtype=torch.float32)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, e.g. {', '.join(missing[:3])}")
    if isinstance(model, Mask2FormerDinov3ForInstanceSegmentation):
        return Checkpoint(model.config, model.state_dict())
    return checkpoint_of(model.config, model.state_dict())


def is_original(file: Path) -> bool:
    """Whether a file of weights is one of the original DINOv3 + Mask2Former project."""
    keys = shapes_in(file) if file.suffix == ".safetensors" else read_weights(file)
    return any(key.startswith(ORIGINAL) for key in keys)


def _weights(source: str, token: str | None) -> Path | None:
    """The one file of weights, None where there are several or none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        found = cached_file(source, name, token=token, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return Path(found)
    return None
