"""The metadata of an exported file: those that its model gives, and whether a file still has them."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import mismatch
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..inference.onnx_model import FORMAT_VERSION, OnnxMetadata
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.licence import LICENCE, LICENCE_TEXT, is_bound
from ..version import __version__

# Fields that do not change what is predicted, and those of the file: a canvas may be chosen with --size.
_MAY_DIFFER = frozenset({"format_version", "producer", "precision", "licence", "canvas", "score_threshold_source"})


def build_metadata(
    network: Mask2FormerDinov3ForInstanceSegmentation, processor: Mask2FormerDinov3ImageProcessor, folder: Path
) -> OnnxMetadata:
    """The metadata of an fp32 file of this model. folder: the model folder, which may hold Meta's licence."""
    config = network.config
    licence = {"code": "MIT", "weights": "not stated; ask whoever trained the model"}
    if is_bound(config, folder):
        text = LICENCE_TEXT.read_text(encoding="utf-8")
        licence |= {"weights": f"DINOv3 License, {LICENCE}", "weights_text": text}
    return OnnxMetadata(
        format_version=FORMAT_VERSION,
        producer={"mask2former-dinov3": __version__, "torch": torch.__version__},
        classes=[str(config.id2label[label]) for label in range(config.num_labels)],
        category_ids=[int(id_) for id_ in config.category_ids or ()],
        mean=processor.image_mean,
        std=processor.image_std,
        canvas=[processor.size["height"], processor.size["width"]],
        precision="fp32",
        mask_stride=int(config.mask_stride),
        num_queries=config.num_queries,
        licence=licence,
        value_range=processor.value_range,
        page=processor.page,
        channels=processor.channels,
        extra_channels=processor.extra_channels,
        image_scale=processor.image_scale,
        class_map=config.class_map,
        score_threshold=config.score_threshold,
        score_threshold_source=config.score_threshold_source,
        copy_overlap=config.copy_overlap,
        score_calibration=config.score_calibration,
    )


def set_metadata(path: Path, metadata: OnnxMetadata) -> None:
    """Write metadata into an existing file, whose weights may be in a file beside it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, metadata.to_properties())
    onnx.save(model, path)


def compare_metadata(expected: OnnxMetadata, got: OnnxMetadata) -> list[str]:
    """What a file says about its model that is not so, one sentence per field. expected: `build_metadata` of the model.

    Such a file gives other results although its network is the same: other names, thresholds, or pixel values.
    """
    wanted, found = expected.to_properties(), got.to_properties()
    return [
        f"{name}: {mismatch(f'{_short(value)} as in the model', _short(found[name]))}"
        for name, value in wanted.items()
        if name not in _MAY_DIFFER and found[name] != value
    ]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
