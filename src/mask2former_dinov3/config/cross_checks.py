"""Options that are each valid but do not fit together, and options that are allowed but probably not meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..errors import UserError, mismatch
from ..json_files import read_json_object
from ..version import MODEL_TYPE
from .presets import HUB_BACKBONES, PRESETS

if TYPE_CHECKING:
    from .train_config import TrainConfig

PLACEHOLDER = "path/to/"  # how the shipped JSON files begin a path that the user has to give

Conflict: TypeAlias = tuple[tuple[str, ...], str]
"""The options involved, the one to blame first, and the reason."""


def find_conflicts(config: TrainConfig, name: Callable[[str], str] = str) -> list[Conflict]:
    """The options of `config` that do not fit together. name: option -> the option as the user wrote it."""
    return [*_data_conflicts(config, name), *_network_conflicts(config, name), *_training_conflicts(config, name)]


def _data_conflicts(config: TrainConfig, name: Callable[[str], str]) -> Iterator[Conflict]:
    dataset = config.dataset_name
    if dataset is None and config.train_annotations is None:
        advice = f"give it, or {name('train_annotations')} and {name('train_images')}"
        yield ("dataset_name", "train_annotations"), mismatch("the folder of a COCO data set", "none", advice)
    if dataset is not None and dataset.startswith(PLACEHOLDER):
        advice = "change it, or add --dataset-name DIR to the command"
        yield ("dataset_name",), mismatch("the folder of your COCO data set", f'the placeholder "{dataset}"', advice)
    for split in ("train", "valid", "test"):
        annotations, images = f"{split}_annotations", f"{split}_images"
        if dataset is None and getattr(config, images) is not None and getattr(config, annotations) is None:
            yield (annotations, images), mismatch(f"a COCO JSON file, since {name(images)} is given", "none")


def _network_conflicts(config: TrainConfig, name: Callable[[str], str]) -> Iterator[Conflict]:
    if config.neck == "plain" and config.mask_stride is not None:
        expected = f"null with {name('neck')} plain, whose feature maps have stride 16"
        advice = f"set it to null, or {name('neck')} to pyramid"
        yield ("mask_stride", "neck"), mismatch(expected, config.mask_stride, advice)
    if config.neck == "none" and config.backbone_taps is not None:
        expected = f"null with {name('neck')} none: only a ViT has blocks to choose"
        yield ("backbone_taps", "neck"), mismatch(expected, config.backbone_taps)


def _training_conflicts(config: TrainConfig, name: Callable[[str], str]) -> Iterator[Conflict]:
    neutral = {"frozen_blocks": 0, "layer_decay": 1.0}  # without effect
    for option, value in neutral.items():
        got = getattr(config, option)
        if got != value and config.lora_rank:
            expected = f"{value:g} with {name('lora_rank')} {config.lora_rank}, which freezes the backbone's weights"
            yield (option, "lora_rank"), mismatch(expected, got, "use one of the two")
        elif got != value and config.freeze_backbone:
            expected = f"{value:g} with {name('freeze_backbone')} true, which freezes the whole backbone"
            advice = f"set {name('freeze_backbone')} to false or null"
            yield (option, "freeze_backbone"), mismatch(expected, got, advice)
    if config.lora_rank and config.freeze_backbone is False:
        expected = f"0 with {name('freeze_backbone')} false: adapters are trained on frozen weights"
        advice = f"set it to 0, or {name('freeze_backbone')} to null"
        yield ("lora_rank", "freeze_backbone"), mismatch(expected, config.lora_rank, advice)
    if config.lora_alpha and not config.lora_rank:
        expected = f"null without {name('lora_rank')}"
        advice = f"set {name('lora_rank')} as well"
        yield ("lora_alpha", "lora_rank"), mismatch(expected, config.lora_alpha, advice)
    if config.early_stopping_patience and config.checkpointing_steps is None:
        advice = f"set {name('checkpointing_steps')} to a number or epoch"
        expected = f"null with {name('checkpointing_steps')} null, which evaluates only at the end"
        yield (
            ("early_stopping_patience", "checkpointing_steps"),
            mismatch(expected, config.early_stopping_patience, advice),
        )
    if config.scale_min > config.scale_max:
        expected = f"at most the value of {name('scale_max')} ({config.scale_max})"
        yield ("scale_min", "scale_max"), mismatch(expected, config.scale_min)


def find_recorded_token(config: TrainConfig) -> str | None:
    """Why a hub token on the command line is refused, which trackers other than tensorboard record; None if it is not.

    It would stay in the process's arguments, too, where they read it.
    """
    if not config.with_tracking or config.report_to == "tensorboard":
        return None
    got = f"one on the command line, which {config.report_to} may record with the run"
    return mismatch("a token that no tracker sees", got, "set HF_TOKEN, or give it in the JSON file")


def advise(config: TrainConfig) -> list[str]:
    """Notes on what is allowed but probably not meant: random weights where pretrained ones exist, and their use."""
    chosen_later = config.recipe is not None and "backbone" not in config.model_fields_set
    if config.backbone not in PRESETS or _brings_backbone(config.head) or chosen_later:
        return []
    weights = HUB_BACKBONES.get(config.backbone)
    note = f"backbone: {config.backbone} starts from random weights"
    note += (
        f"; DINOv3's weights for it are {weights}"
        if weights
        else "; the recipe from-scratch is for them, docs/log.md says what they can learn"
    )
    notes = [note]
    if config.lora_rank:
        notes.append(
            f"lora_rank: {config.lora_rank} trains adapters only, so the random weights stay random; set it to 0"
        )
    elif config.freeze_backbone:
        notes.append("freeze_backbone: with true the random weights stay random; set it to false or null")
    return notes


def _brings_backbone(head: str | None) -> bool:
    """Whether `head` is a local folder with a whole model: of this package, or of the original project."""
    if head is None:
        return False
    try:
        model_type = read_json_object(Path(head) / "config.json").get("model_type")
    except UserError:
        return False  # the error is reported when the model is built
    return model_type == MODEL_TYPE or (Path(head) / "dinov3_backbone_config.json").is_file()
