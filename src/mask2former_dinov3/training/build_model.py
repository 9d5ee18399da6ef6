"""From the options of a run and its data to a model and its image processor."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..config.train_config import TrainConfig
from ..data.achievable_ap import mask_ceilings
from ..data.channel_statistics import count_channels_of, measure_channels
from ..data.coco import CocoData
from ..data.crops import crop_counts
from ..errors import CheckpointError, ConfigError, OptionError, mismatch
from ..evaluation.threshold_choice import NOT_STORED
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..json_files import read_json_object
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model.backbone import backbone_blocks
from ..model.configuration import VIT_SHAPES, Mask2FormerDinov3Config
from ..read_options import FIT
from ..weights.backbones import from_backbone, load_backbone, pixel_statistics
from ..weights.input_channels import widen_backbone, widen_trained, with_channels
from ..weights.loading import is_path, load_network_config
from ..weights.mask2former import load_trained_model, rebuild
from .checkpoint import find_checkpoint
from .finetuning import choose_trained
from .imbalance import label_weights_of, resolve_class_weights

logger = logging.getLogger(__name__)
# fmt: off
NETWORK = (  # options with the same name in the model's configuration; null: the preset or the head decides
    "neck", "backbone_norm", "backbone_taps", "num_queries", "query_init", "matching", "mask_loss", "mask_stride",
    "encoder_layers", "decoder_layers", "mask_feature_size",
)
# fmt: on
HEAD_SIZES = ("encoder_layers", "decoder_layers", "mask_feature_size")  # what a published head decides
STRIDE_4_AP = 0.8  # least AP that masks of stride 4 must be able to reach, or else the stride becomes 2
LABEL_FIELDS = ("id2label", "label2id", "category_ids", "class_map", "label_weights")
CHANGEABLE = (
    "num_queries",
    "matching",
    "mask_loss",
)  # options that may change when training continues from a whole model


def resolve_auto(config: TrainConfig, data: CocoData) -> TrainConfig:
    """The configuration with a number instead of each "auto". data: the training split.

    num_queries: a quarter more than the largest number of instances in an image, or in a crop of one that keeps its own
    scale, rounded up to a multiple of 25, at least 50. mask_stride: 2 where masks of stride 4 cannot reach an AP of 0.8
    on this canvas, otherwise 4; None with a `head`, which has its own. class_weights: see `automatic_class_weights`;
    names that are no class raise OptionError.
    """
    resolved: dict[str, object] = {"class_weights": resolve_class_weights(config, data)}
    if config.num_queries == "auto":
        most, what = most_instances(data, config), "an image" if config.image_scale == FIT else "a crop"
        resolved["num_queries"] = number = queries_for(most)
        logger.info("num_queries: %d, because %s has up to %d instances", number, what, most)
    if config.mask_stride == "auto" and config.head is not None:
        resolved["mask_stride"] = None
    elif config.mask_stride == "auto":
        canvas = (config.image_height, config.image_width)
        reached = mask_ceilings(data, canvas, [4], factor=config.read_options.factor).get(4, 1.0)
        resolved["mask_stride"] = stride = 4 if reached >= STRIDE_4_AP else 2
        logger.info("mask_stride: %d, because masks of stride 4 can reach an AP of %.2f here", stride, reached)
    return config.model_copy(update=resolved)


def most_instances(data: CocoData, config: TrainConfig) -> int:
    """The largest number of instances that a network sees at once: of a whole image, or of a crop in training."""
    canvas, factor = (config.image_height, config.image_width), config.read_options.factor
    return int(crop_counts(data.images, canvas, factor, min(config.scale_min, 1.0)).max(initial=0))


def queries_for(most: int) -> int:
    """The number of queries that `auto` means. most: instances in the image with the most."""
    return max(50, 25 * -(-most * 5 // 100))


def build_model(
    config: TrainConfig, data: CocoData, checkpoint: Path | None = None
) -> Mask2FormerDinov3ForInstanceSegmentation:
    """A model for classes and channels of `data`, with the part of its backbone trainable that `config` says.

    checkpoint: the one that its weights will be loaded from; then neither backbone nor head are read.
    Raises UserError when backbone or head cannot be loaded, or do not fit the options.
    """
    channels, _ = count_channels_of(data.images, config.read_options)
    names = {label: category.name for label, category in enumerate(data.categories)}
    fields: dict[str, Any] = {
        "id2label": names,
        "label2id": {name: label for label, name in names.items()},
        "category_ids": [category.id for category in data.categories],
        "class_map": config.classes,
        "label_weights": label_weights_of(config, data),
        **NOT_STORED,
        **{name: getattr(config, name) for name in NETWORK if getattr(config, name) is not None},
    }
    if checkpoint is not None:
        model = _build_from_checkpoint(checkpoint, fields)
    elif config.head is None:
        model = from_backbone(config.backbone, config.hub_token, channels, **fields)
    else:
        model = _build_from_head(config.head, config, fields, channels)
    model.config.value_range, model.config.image_scale = config.value_range, config.image_scale
    choose_trained(model, config)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if checkpoint is None and config.head is None and model.config.neck != config.neck:
        kind = model.config.backbone_config.model_type
        logger.info("neck: %s instead of %s, because a %s is a pyramid itself", model.config.neck, config.neck, kind)
    pretrained = model.config.backbone_source is not None
    if channels != 3:
        _say_channels(model, channels, config)
    logger.info(
        "model: %.1f M parameters, %.1f M trained; backbone %s (%s)",
        sum(p.numel() for p in model.parameters()) / 1e6,
        sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6,
        model.config.backbone_source or (f"of {model.name_or_path}" if model.name_or_path else config.backbone),
        "pretrained" if pretrained else "no weights of DINOv3",
    )
    return model


def _say_channels(model: Mask2FormerDinov3ForInstanceSegmentation, channels: int, config: TrainConfig) -> None:
    """Log what became of the first convolution, which takes other than three channels."""
    first = backbone_blocks(model.backbone)[0]
    frozen = not any(parameter.requires_grad for module in first for parameter in module.parameters())
    widened = config.head is not None or config.backbone not in VIT_SHAPES
    logger.info(
        "num_channels: %d, as the images have%s%s",
        channels,
        "; where weights are for RGB, further channels start from the mean of the RGB filters" * widened,
        ". They are frozen: freeze_backbone false trains them" * (widened and frozen),
    )


def _build_from_checkpoint(checkpoint: Path, fields: dict[str, Any]) -> Mask2FormerDinov3ForInstanceSegmentation:
    """The network that a checkpoint describes, with random weights, for today's category ids."""
    stored = load_network_config(str(checkpoint))
    if not isinstance(stored, Mask2FormerDinov3Config):
        got = f"one of the type {stored.model_type!r}"
        raise CheckpointError(f"{checkpoint / 'config.json'}: {mismatch('a model of this package', got)}")
    stored.update({name: fields[name] for name in LABEL_FIELDS})
    model = Mask2FormerDinov3ForInstanceSegmentation(stored)
    model.name_or_path = str(checkpoint)
    return model


def _build_from_head(
    head: str, config: TrainConfig, fields: dict[str, Any], channels: int
) -> Mask2FormerDinov3ForInstanceSegmentation:
    """The head of a published Mask2Former on the configured backbone, or a whole model that was trained on DINOv3.

    Classes of the same name keep their weights, and so do the first learned queries; all others start at random.
    channels: of the images; weights for RGB are widened for others.
    """
    _check_head(head)
    found = load_trained_model(head, config.hub_token)
    found = found if found.published else widen_trained(found, channels)
    own, pretrained = found.config, None
    if not found.published:
        _check_backbone(head, config.backbone, own.backbone_config)
        _check_options(head, fields, {name: getattr(own, name) for name in NETWORK if name not in CHANGEABLE})
        changed = {name: value for name, value in _chosen_options(fields).items() if name in CHANGEABLE}
        changes = {name: fields[name] for name in (*LABEL_FIELDS, *NOT_STORED)} | changed
    else:
        published = {"query_init": "learned", "mask_stride": 4, **{n: getattr(own, n) for n in HEAD_SIZES}}
        _check_options(head, fields, published)
        if config.backbone in VIT_SHAPES:
            preset = Mask2FormerDinov3Config.preset(config.backbone).backbone_config
            changes = {**fields, "backbone_config": with_channels(preset, channels)}
        else:
            pretrained = widen_backbone(load_backbone(config.backbone, config.hub_token), channels)
            changes = {**fields, "backbone_config": pretrained.config, "backbone_source": config.backbone}
            if pretrained.config.model_type != "dinov3_vit":
                changes["neck"] = "none"
    if not found.published and own.value_range != config.value_range:
        logger.warning("value_range: %s, but %s was trained with %s", config.value_range, head, own.value_range)
    if not found.published and own.image_scale != config.image_scale:
        logger.info("image_scale: %s, while %s was trained with %s", config.image_scale, head, own.image_scale)
    model, table = rebuild(found, **changes)
    if pretrained is not None:
        model.backbone.load_state_dict(pretrained.state_dict())
    model.name_or_path = "" if found.published else head
    logger.info("weights of %s:\n%s", head, table)
    return model


def _check_head(head: str) -> None:
    """Raise OptionError when `head` is a path that leads to no model folder."""
    path, expected = Path(head), "a model folder (with config.json) or a hub id, USER/NAME"
    if path.is_dir() and not (path / "config.json").is_file():
        raise OptionError("head", expected, f"the folder {head} without config.json")
    if path.is_file():
        raise OptionError("head", expected, f"the file {head}")
    if is_path(head) and not path.exists():
        raise OptionError("head", expected, f"{head}, which does not exist", "check the path")


def _chosen_options(fields: Mapping[str, object]) -> dict[str, object]:
    """The options of `NETWORK` that differ from their defaults: a head decides those left at their default."""
    defaults = {name: TrainConfig.model_fields[name].default for name in NETWORK}
    return {name: fields[name] for name in NETWORK if name in fields and fields[name] != defaults[name]}


def _check_backbone(head: str, backbone: str, own: PreTrainedConfig) -> None:
    """Raise ConfigError for an option `backbone` of another size than `own`, that of the model to start from.

    Compared are presets and local folders; the default says nothing.
    """
    if backbone == TrainConfig.model_fields["backbone"].default:
        return
    file = Path(backbone) / "config.json"
    known = read_json_object(file, raises=ConfigError) if file.is_file() else VIT_SHAPES.get(backbone, {})
    for name in ("hidden_size", "num_hidden_layers"):
        if name in known and known[name] != getattr(own, name, known[name]):
            expected = f"none, or one with {name} {getattr(own, name)}, that of head {head}"
            got = f"{backbone} with {known[name]}"
            raise ConfigError(f"backbone: {mismatch(expected, got, 'leave out one of the two')}")


def _check_options(head: str, fields: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Raise ConfigError for options that differ from what `head` decides. own: the values of the head."""
    chosen = _chosen_options(fields)
    wrong = [
        f"\n  {name}: {mismatch(str(own[name]), value)}"
        for name, value in chosen.items()
        if own.get(name, value) != value
    ]
    if wrong:
        raise ConfigError(
            f"head {head} has other values for {len(wrong)} of the options; leave these out, or set head to null:"
            + "".join(wrong)
        )


def build_processor(
    config: TrainConfig, model: Mask2FormerDinov3ForInstanceSegmentation, data: CocoData | None = None
) -> Mask2FormerDinov3ImageProcessor:
    """The image processor of the training canvas, with the mean and std that belong to the model's weights.

    Weights of RGB backbones say nothing of images with other channels: mean and std are then measured on `data`, the
    training split, at the start of a run; a checkpoint and a model for these channels have them.
    """
    resumed = config.resume_from_checkpoint
    checkpoint = None if resumed is None else find_checkpoint(resumed, Path(config.output_dir))
    # A model folder has them, so the hub of its backbone is not asked.
    source = str(checkpoint) if checkpoint else model.name_or_path or model.config.backbone_source
    mean, std = pixel_statistics(source, config.hub_token)
    extra_channels = 0 if data is None else count_channels_of(data.images, config.read_options)[1]
    if len(mean) != model.config.num_channels and data is not None:
        mean, std = _measure(config, data)
    processor = Mask2FormerDinov3ImageProcessor(
        size={"height": config.image_height, "width": config.image_width},
        image_mean=mean,
        image_std=std,
        value_range=config.value_range,
        page=config.page,
        channels=config.channels,
        extra_channels=extra_channels,
        image_scale=config.image_scale,
    )
    processor.read_options = config.read_options  # with the place of the second files
    return processor


def _measure(config: TrainConfig, data: CocoData) -> tuple[list[float], list[float]]:
    """Mean and std of the channels of the training images; what was measured is logged."""
    found = measure_channels(data.images, config.read_options)
    pairs = ", ".join(f"{mean:.4f} ({std:.4f})" for mean, std in zip(found.mean, found.std, strict=True))
    logger.info("mean (std) of the %d channels, 0..1, from %d images: %s", len(found.mean), found.images, pairs)
    for channel in found.constant:
        logger.warning("channel %d has one value in all %d measured images: it carries nothing", channel, found.images)
    return found.mean, found.std
