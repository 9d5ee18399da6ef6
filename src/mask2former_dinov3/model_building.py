"""From a run's configuration and its data to a model and its image processor."""

from __future__ import annotations

import logging
from typing import Any

from transformers import AutoConfig, Mask2FormerForUniversalSegmentation

from .config import TrainConfig
from .data.coco import CocoData
from .errors import CheckpointError
from .image_processing import Mask2FormerDinov3ImageProcessor
from .model import Mask2FormerDinov3ForInstanceSegmentation
from .model.backbone import load_backbone, pixel_statistics
from .model.configuration import VIT_SHAPES, Mask2FormerDinov3Config

logger = logging.getLogger(__name__)
# fmt: off
NETWORK = (  # what both configurations call by the same name; null leaves it to the preset or the head
    "neck", "backbone_norm", "num_queries", "query_init", "matching", "mask_loss", "mask_stride",
    "encoder_layers", "decoder_layers", "mask_feature_size",
)
# fmt: on


def build_model(config: TrainConfig, data: CocoData) -> Mask2FormerDinov3ForInstanceSegmentation:
    """A model for the classes of `data`, its backbone frozen or not as `config` resolves to.

    Raises ValueError when backbone or head cannot be had.
    """
    names = {label: category.name for label, category in enumerate(data.categories)}
    fields: dict[str, Any] = {
        "id2label": names,
        "label2id": {name: label for label, name in names.items()},
        "category_ids": [category.id for category in data.categories],
        **{name: getattr(config, name) for name in NETWORK if getattr(config, name) is not None},
    }
    if config.head is None:
        model = Mask2FormerDinov3ForInstanceSegmentation.from_backbone(config.backbone, config.hub_token, **fields)
    else:
        model = _with_head(config.head, config, fields)
    pretrained = model.config.backbone_source is not None
    if config.freeze_backbone if config.freeze_backbone is not None else pretrained:
        model.freeze_backbone()
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        "model: %.1f M parameters, %.1f M trained; backbone %s (%s)",
        sum(p.numel() for p in model.parameters()) / 1e6,
        trained / 1e6,
        config.backbone,
        "pretrained" if pretrained else "random weights",
    )
    return model


def _with_head(head: str, config: TrainConfig, fields: dict[str, Any]) -> Mask2FormerDinov3ForInstanceSegmentation:
    """The head of a Hugging Face Mask2Former checkpoint on the configured backbone."""
    wanted = "expected a Hugging Face Mask2Former (hub id or local folder), or null for a head from random weights"
    try:
        kind = AutoConfig.from_pretrained(head, token=config.hub_token).model_type
        if kind != "mask2former":
            raise CheckpointError(f"head {head!r}: {wanted}; got a model of type {kind!r}")
        theirs, report = Mask2FormerForUniversalSegmentation.from_pretrained(
            head, token=config.hub_token, output_loading_info=True
        )
    except (OSError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"head {head!r}: cannot be loaded ({error}); {wanted}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(f"head {head!r}: {len(missing)} weights are missing, e.g. {', '.join(missing[:3])}")
    if config.backbone in VIT_SHAPES:
        backbone_config = Mask2FormerDinov3Config.preset(config.backbone).backbone_config
        return Mask2FormerDinov3ForInstanceSegmentation.from_mask2former(
            theirs, backbone_config=backbone_config, **fields
        )
    pretrained = load_backbone(config.backbone, config.hub_token)
    model = Mask2FormerDinov3ForInstanceSegmentation.from_mask2former(
        theirs, backbone_config=pretrained.config, backbone_source=config.backbone, **fields
    )
    model.backbone.load_state_dict(pretrained.state_dict())
    return model


def build_processor(
    config: TrainConfig, model: Mask2FormerDinov3ForInstanceSegmentation
) -> Mask2FormerDinov3ImageProcessor:
    """The processor of the training canvas, with the mean and std that belong to the backbone's weights."""
    mean, std = pixel_statistics(model.config.backbone_source, config.hub_token)
    return Mask2FormerDinov3ImageProcessor(
        size={"height": config.image_height, "width": config.image_width}, image_mean=mean, image_std=std
    )
