"""From a run's configuration and its data to a model and its image processor."""

from __future__ import annotations

import logging
from typing import Any

from ..config.train_config import TrainConfig
from ..data.achievable_ap import mask_ceilings
from ..data.coco import CocoData
from ..data.statistics import statistics_of
from ..errors import CheckpointError
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model.configuration import VIT_SHAPES, Mask2FormerDinov3Config
from ..weights.backbones import from_backbone, load_backbone, pixel_statistics
from ..weights.mask2former import load_trained_model, rebuild
from .finetuning import choose_trained

logger = logging.getLogger(__name__)
# fmt: off
NETWORK = (  # what both configurations call by the same name; null leaves it to the preset or the head
    "neck", "backbone_norm", "backbone_taps", "num_queries", "query_init", "matching", "mask_loss", "mask_stride",
    "encoder_layers", "decoder_layers", "mask_feature_size",
)
# fmt: on
SIZES = ("encoder_layers", "decoder_layers", "mask_feature_size")  # of a published head
ENOUGH = 0.8  # AP that masks of stride 4 must be able to reach
LABELS = ("id2label", "label2id", "category_ids")
FREE = ("num_queries", "matching", "mask_loss")  # what may change when a model of ours is trained on


def fitted_to(config: TrainConfig, data: CocoData) -> TrainConfig:
    """The same with numbers in place of every "auto".

    num_queries: a quarter more than the fullest image holds, by the 25 and at least 50. mask_stride: 2 where masks of
    stride 4 cannot reach an AP of 0.8 on this canvas, otherwise the usual 4; a head brings its own.
    """
    found: dict[str, int | None] = {}
    if config.num_queries == "auto":
        most = statistics_of(data).instances_per_image_most
        found["num_queries"] = number = max(50, 25 * -(-most * 5 // 100))
        logger.info("num_queries: %d, since an image holds %d instances at most", number, most)
    if config.mask_stride == "auto" and config.head is not None:
        found["mask_stride"] = None
    elif config.mask_stride == "auto":
        reached = mask_ceilings(data, (config.image_height, config.image_width), [4]).get(4, 1.0)
        found["mask_stride"] = stride = 4 if reached >= ENOUGH else 2
        logger.info("mask_stride: %d, since masks of stride 4 can reach an AP of %.2f on the canvas", stride, reached)
    return config.model_copy(update=found)


def build_model(config: TrainConfig, data: CocoData) -> Mask2FormerDinov3ForInstanceSegmentation:
    """A model for the classes of `data`, as much of its backbone trained as `config` resolves to.

    Raises ValueError when backbone or head cannot be had, or not trained in this way.
    """
    names = {label: category.name for label, category in enumerate(data.categories)}
    fields: dict[str, Any] = {
        "id2label": names,
        "label2id": {name: label for label, name in names.items()},
        "category_ids": [category.id for category in data.categories],
        **{name: getattr(config, name) for name in NETWORK if getattr(config, name) is not None},
    }
    if config.head is None:
        model = from_backbone(config.backbone, config.hub_token, **fields)
    else:
        model = _with_head(config.head, config, fields)
    pretrained = model.config.backbone_source is not None
    choose_trained(model, config)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if config.head is None and model.config.neck != config.neck:
        kind = model.config.backbone_config.model_type
        logger.info("neck: %s in place of %s, since a %s is a pyramid itself", model.config.neck, config.neck, kind)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        "model: %.1f M parameters, %.1f M trained; backbone %s (%s)",
        sum(p.numel() for p in model.parameters()) / 1e6,
        trained / 1e6,
        model.config.backbone_source or (f"of {model.name_or_path}" if model.name_or_path else config.backbone),
        "pretrained" if pretrained else "no weights of DINOv3",
    )
    return model


def _with_head(head: str, config: TrainConfig, fields: dict[str, Any]) -> Mask2FormerDinov3ForInstanceSegmentation:
    """The head of a published Mask2Former on the configured backbone, or a whole model that was trained on DINOv3.

    Classes of the same name keep their weights, and so do the first learned queries; the rest starts at random.
    """
    try:
        found = load_trained_model(head, config.hub_token)
    except CheckpointError as error:
        raise CheckpointError(f"head: {error}") from error
    own, pretrained = found.config, None
    if not found.published:
        _refuse(head, fields, {name: getattr(own, name) for name in NETWORK if name not in FREE})
        free = {name: value for name, value in _given(fields).items() if name in FREE}
        changes = {name: fields[name] for name in LABELS} | free
    else:
        published = {"query_init": "learned", "mask_stride": 4, **{n: getattr(own, n) for n in SIZES}}
        _refuse(head, fields, published)
        if config.backbone in VIT_SHAPES:
            changes = {**fields, "backbone_config": Mask2FormerDinov3Config.preset(config.backbone).backbone_config}
        else:
            pretrained = load_backbone(config.backbone, config.hub_token)
            changes = {**fields, "backbone_config": pretrained.config, "backbone_source": config.backbone}
            if pretrained.config.model_type != "dinov3_vit":
                changes["neck"] = "none"
    try:
        model, table = rebuild(found, **changes)
    except ValueError as error:
        raise CheckpointError(f"head {head!r}: {error}") from error
    if pretrained is not None:
        model.backbone.load_state_dict(pretrained.state_dict())
    model.name_or_path = "" if found.published else head
    logger.info("weights of %s:\n%s", head, table)
    return model


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Those of `NETWORK` that were chosen: a default is no choice, and a model has its own."""
    defaults = {name: TrainConfig.model_fields[name].default for name in NETWORK}
    return {name: fields[name] for name in NETWORK if name in fields and fields[name] != defaults[name]}


def _refuse(head: str, fields: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise CheckpointError for parts of the network that `head` decides, where the options want others."""
    given = _given(fields)
    wrong = [
        f"{name} is {own[name]} there, {given[name]} here"
        for name in given
        if own.get(name, given[name]) != given[name]
    ]
    if wrong:
        raise CheckpointError(
            f"head {head!r} is another network: {'; '.join(wrong)}. Leave these options out, or set head to null"
        )


def build_processor(
    config: TrainConfig, model: Mask2FormerDinov3ForInstanceSegmentation
) -> Mask2FormerDinov3ImageProcessor:
    """The processor of the training canvas, with the mean and std that belong to the backbone's weights."""
    # A model of ours that is trained on carries them itself: the hub of its backbone is not asked.
    mean, std = pixel_statistics(model.name_or_path or model.config.backbone_source, config.hub_token)
    return Mask2FormerDinov3ImageProcessor(
        size={"height": config.image_height, "width": config.image_width}, image_mean=mean, image_std=std
    )
