"""Every choice of a training run: one flat class, where key = flag = field.

`TrainConfig` holds name, type, default, check and a sentence of help for each option; `load_config` merges defaults <
JSON file < command line and reports all faults in one `ConfigError`. What defines the network is saved with the model
(`model/configuration.py`), what defines the run is here and in the run folder's `train_config.json`.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ..canvas import check_side
from ..errors import ConfigError
from .cross_checks import cross_faults
from .legacy_options import translate_old_options
from .parsing import complaint, read_flags, read_json
from .presets import HUB_BACKBONES

PRESETS = ("tiny", "smallplus", "large")

SPLIT_PATHS = tuple(f"{split}_{part}" for split in ("train", "valid", "test") for part in ("annotations", "images"))
PATHS = ("output_dir", "dataset_name", "backbone", "head", "resume_from_checkpoint", *SPLIT_PATHS)

PositiveInt = Annotated[int, Field(gt=0)]
NotNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ComparedOn = Literal["points", "pixels"]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
]  # the names of transformers' SchedulerType that need no arguments of their own
Metric = Literal[
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "boundary_AP", "box_AP"
]  # the keys of metrics.json in which more is better
Tracker = Literal[
    "all", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]  # accelerate's LoggerType


class TrainConfig(BaseModel):
    """The options of `train`, frozen. `load_config` is the usual way in.

    Constructed directly, faults raise pydantic's ValidationError (a ValueError) in place of ConfigError.
    `model_dump(mode="json")` can be fed back and leaves out the hub token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    # --- the run
    description: str = Field("", description="What this run is: hardware, hours, what to expect. For readers only.")
    output_dir: str = Field(
        min_length=1, description="Run folder: configuration, metrics, checkpoints, `best/` and `last/`."
    )
    seed: NotNegativeInt = Field(0, description="Seed of weights, order and augmentation.")
    # --- the data
    dataset_name: str | None = Field(
        None, description="Folder of a COCO data set; its layout is found (see docs/data.md)."
    )
    train_annotations: str | None = Field(None, description="COCO JSON to train on, for a layout of your own.")
    train_images: str | None = Field(None, description="Folder of the images of `train_annotations`; null: beside it.")
    valid_annotations: str | None = Field(None, description="COCO JSON to validate on.")
    valid_images: str | None = Field(None, description="Folder of the images of `valid_annotations`.")
    test_annotations: str | None = Field(None, description="COCO JSON of a test set.")
    test_images: str | None = Field(None, description="Folder of the images of `test_annotations`.")
    valid_split: Fraction = Field(
        0.1, description="Share of the images held out when there is no validation set; 0 trains without validation."
    )
    dataloader_num_workers: NotNegativeInt = Field(2, description="Processes that read images, per training process.")
    # --- the model
    backbone: str = Field(
        "smallplus",
        min_length=1,
        description="Preset with random weights (`tiny`, `smallplus`, `large`), or weights of a DINOv3 ViT, DINOv3 "
        "ConvNeXt or Swin: local folder, file of Meta or timm, or hub id such as "
        "`facebook/dinov3-vits16plus-pretrain-lvd1689m` (docs/weights.md).",
    )
    head: str | None = Field(
        None,
        description="Mask2Former checkpoint of Hugging Face (hub id or folder) to start the head from, or a model of "
        "ours or of the original project to start all from, backbone included; null starts the head at random.",
    )
    neck: Literal["pyramid", "adapter", "plain", "none"] = Field(
        "pyramid",
        description="`pyramid` makes strides 4, 8, 16, 32 of a ViT; `adapter` adds a convolutional stem beside it, for "
        "small objects; `plain` keeps stride 16; `none` for a backbone that is a pyramid itself.",
    )
    backbone_norm: bool = Field(True, description="The backbone's final norm on every tapped feature map.")
    backbone_taps: list[PositiveInt] | None = Field(
        None,
        description="Four block numbers, counted from 1, whose outputs a ViT gives to the neck, as a list or as "
        "`3,6,9,12`; null: the quarters of its depth.",
    )
    freeze_backbone: bool | None = Field(
        None,
        description="Keep the backbone as it is; null freezes pretrained weights, unless `frozen_blocks` or "
        "`layer_decay` says how they are trained, and trains random ones (see docs/finetuning.md).",
    )
    frozen_blocks: NotNegativeInt = Field(
        0, description="Blocks of the backbone that stay as they are, counted from its input; its embeddings with them."
    )
    lora_rank: NotNegativeInt = Field(
        0,
        description="Rank of low-rank adapters (LoRA, by peft) that are trained in the backbone, whose own weights "
        "then stay; 0: off.",
    )
    lora_alpha: PositiveInt | None = Field(
        None, description="The adapters' product is scaled by `lora_alpha` / `lora_rank`; null: 1, as peft's defaults."
    )
    lora_targets: str = Field(
        "q_proj,v_proj",
        description="Linear layers of the backbone that get adapters, by the last part of their names; in JSON also a "
        "list.",
    )
    num_queries: PositiveInt | Literal["auto"] = Field(
        100,
        description="Instances that the model can propose per image; `auto`: a quarter more than the fullest training "
        "image holds, at least 50.",
    )
    query_init: Literal["learned", "seeds"] = Field(
        "learned",
        description="`learned` queries, as published; `seeds`: queries start at the peaks of a dense score and know "
        "their place, which learns from few images.",
    )
    matching: ComparedOn = Field(
        "points",
        description="Where queries and instances are compared to match them: on random `points`, as published, or on "
        "all `pixels` of the mask map, which small objects need.",
    )
    mask_loss: ComparedOn = Field("points", description="Where the mask losses look: the same choice.")
    mask_stride: Literal[2, 4, "auto"] | None = Field(
        None,
        description="Pixels of the image per pixel of a mask's logits; null is 4 (plain neck: 16), as published; "
        "`auto`: 2 where masks of stride 4 cannot reach an AP of 0.8 on these instances and this canvas, otherwise 4.",
    )
    encoder_layers: NotNegativeInt | None = Field(
        None,
        description="Layers of the pixel decoder's encoder; null: the preset's or the head's, else the published 6.",
    )
    decoder_layers: PositiveInt | None = Field(
        None,
        description="Predictions of the transformer decoder, one more than its layers; null as for `encoder_layers`, "
        "else 10.",
    )
    mask_feature_size: PositiveInt | None = Field(
        None, description="Channels of the mask product; null as for `encoder_layers`, else 256."
    )
    # --- the image
    image_height: PositiveInt = Field(1024, description="Height of the training canvas, a multiple of 16.")
    image_width: PositiveInt = Field(1024, description="Width of the training canvas, a multiple of 16.")
    scale_min: PositiveFloat = Field(0.1, description="Smallest scale of the jitter, relative to the fit.")
    scale_max: PositiveFloat = Field(2.0, description="Largest scale of the jitter, relative to the fit.")
    flip: Literal["horizontal", "both", "all", "none"] = Field(
        "horizontal",
        description="Random flips; `both` suits images without an up and a down, `all` adds quarter turns to them.",
    )
    color_jitter: Fraction = Field(0.2, description="Strength of colour changes; 0 is off.")
    copy_paste: Share = Field(
        0.0, description="Share of pictures that get instances of another one laid over them; for opaque things."
    )
    # --- the optimisation
    num_train_epochs: PositiveInt = Field(50, description="Passes over the training images.")
    max_train_steps: PositiveInt | None = Field(None, description="Optimiser steps; given, it overrides the epochs.")
    per_device_train_batch_size: PositiveInt = Field(2, description="Images per process and forward pass.")
    gradient_accumulation_steps: PositiveInt = Field(1, description="Forward passes per optimiser step.")
    learning_rate: PositiveFloat = Field(1e-4, description="Peak learning rate of the head.")
    backbone_lr_multiplier: NotNegativeFloat = Field(
        0.1, description="The backbone's learning rate as a multiple of `learning_rate`, when it is trained."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Factor on the backbone's learning rate from each block to the one before it, for pretrained "
        "weights that are trained; 1: one rate for all.",
    )
    adam_beta1: Fraction = Field(0.9, description="AdamW's first beta.")
    adam_beta2: Fraction = Field(0.999, description="AdamW's second beta.")
    adam_epsilon: PositiveFloat = Field(1e-8, description="AdamW's epsilon.")
    weight_decay: NotNegativeFloat = Field(0.05, description="AdamW's decay; norms, biases and embeddings have none.")
    max_grad_norm: PositiveFloat | None = Field(
        0.01, description="Clip of the whole gradient's norm, as in every published Mask2Former recipe; null is off."
    )
    lr_scheduler_type: Scheduler = Field("polynomial", description="Course of the learning rate after the warm-up.")
    num_warmup_steps: NotNegativeInt = Field(0, description="Optimiser steps over which the rate rises from 0.")
    ema_decay: Fraction = Field(
        0.0,
        description="Decay of the averaged weights, which are evaluated and saved in place of the last step's; 0: off.",
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = Field(
        None, description="Precision of the forward pass; null leaves it to `accelerate launch`."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Compute every block a second time in the backward pass to store less: slower, with less memory.",
    )
    # --- evaluation, checkpoints, logs
    per_device_eval_batch_size: PositiveInt = Field(2, description="Images per process in evaluation.")
    max_detections: PositiveInt = Field(100, description="Instances kept per image; crowds need more than COCO's 100.")
    metric_for_best_model: Metric = Field("AP", description="Metric that decides what `best/` holds.")
    checkpointing_steps: PositiveInt | Literal["epoch"] | None = Field(
        "epoch", description="Evaluate and save every so many optimiser steps, or every `epoch`; null only at the end."
    )
    save_total_limit: PositiveInt | None = Field(2, description="Checkpoints kept; null keeps all.")
    resume_from_checkpoint: str | None = Field(
        None, description="A `checkpoint-*` folder to continue from, or `latest` of `output_dir`."
    )
    logging_steps: PositiveInt = Field(10, description="Optimiser steps between two lines of metrics.jsonl.")
    with_tracking: bool = Field(True, description="Also log to the tracker of `report_to`.")
    report_to: Tracker = Field("tensorboard", description="Tracker of accelerate; all but tensorboard are extras.")
    with_code: bool = Field(False, description="`best/` and `last/` carry their code, for `trust_remote_code`.")
    push_to_hub: bool = Field(False, description="Upload `best/` to the Hugging Face hub when the run is finished.")
    hub_model_id: str | None = Field(
        None, description="Repository for `push_to_hub`, `USER/NAME`; null: the name of `output_dir`, under your own."
    )
    hub_private_repo: bool = Field(False, description="Make that repository a private one.")
    hub_token: str | None = Field(
        None, description="Hub token; null: HF_TOKEN or `hf auth login`. Never written down.", exclude=True, repr=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: object, info: ValidationInfo) -> object:
        """JSON's true is not 1: pydantic would take `learning_rate: true` as 1.0."""
        if isinstance(value, bool) and "bool" not in str(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("expected a number or a string, not true or false")
        return value

    @field_validator(*PATHS, mode="before")
    @classmethod
    def _path(cls, value: object, info: ValidationInfo) -> object:
        """A shell does not expand `~` inside a JSON file; an empty path would silently be the current folder."""
        if value == "" and cls.model_fields[str(info.field_name)].default is None:
            return None
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value

    @field_validator("checkpointing_steps", "num_queries", "mask_stride", mode="before")
    @classmethod
    def _digits_are_a_number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.strip().isdecimal() else value

    @field_validator("backbone_taps", mode="before")
    @classmethod
    def _numbers_with_commas(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("backbone_taps")
    @classmethod
    def _four_rising(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and (len(value) != 4 or value != sorted(value)):
            raise ValueError(f"expected four rising block numbers, got {value}")
        return value

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _list_as_string(cls, value: object) -> object:
        """One form, so that flag, file and tracker agree."""
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"expected names of layers such as q_proj,v_proj, got {json.dumps(value, default=str)}")
        return ",".join(name.strip() for name in names)

    @field_validator("image_height", "image_width")
    @classmethod
    def _multiple_of_patch(cls, value: int, info: ValidationInfo) -> int:
        check_side(str(info.field_name), value)
        return value

    @model_validator(mode="after")
    def _options_fit_together(self, info: ValidationInfo) -> TrainConfig:
        if info.context != FIELDS_ONLY and (faults := cross_faults(dict(self))):
            raise ValueError("; ".join(f"{keys[0]}: {reason}" for keys, reason in faults))
        return self


FIELDS_ONLY = "check each field, not yet how they fit together"


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> tuple[TrainConfig, list[str]]:
    """The configuration of defaults < JSON file < overrides, and notes that should be said to the user.

    overrides: a mapping, or command-line words (`--key value`, `--key=value`, `--flag`; dashes serve as underscores).
    Raises ConfigError listing every fault at once, an unknown key with the nearest valid one.
    """
    notes: list[str] = []
    faults: list[str] = []
    in_file = read_json(Path(path)) if path is not None else {}
    is_line = not isinstance(overrides, Mapping)
    nullable = [name for name, field in TrainConfig.model_fields.items() if "None" in str(field.annotation)]
    given = dict(overrides) if isinstance(overrides, Mapping) else read_flags(overrides, nullable, faults)
    merged: dict[str, Any] = {}
    shown: dict[str, str] = {}  # the key as the user wrote it: in a file, or as a flag
    for source, prefix in ((in_file, ""), (given, "--" if is_line else "")):
        translated, said, wrong = translate_old_options(source)
        notes += said
        faults += [prefix + reason for reason in wrong]
        merged |= translated
        shown |= {key: prefix + key for key in translated}
    for key in [key for key in merged if key not in TrainConfig.model_fields]:
        faults.append(f"{shown[key]}: unknown key; {nearest_key(key)}")
        del merged[key]
    where = str(path) if path is not None else "the command line" if is_line else "the configuration"
    config = _validate(merged, shown, faults, where)
    return config, notes + _advice(config)


def nearest_key(key: str) -> str:
    """`nearest is NAME`, or where to look when nothing is near."""
    near = difflib.get_close_matches(key.lower(), list(TrainConfig.model_fields), n=1, cutoff=0.6)
    return f"nearest is {near[0]}" if near else "docs/configuration.md and `train --help` list all keys"


def _validate(values: dict[str, Any], shown: Mapping[str, str], faults: list[str], where: str) -> TrainConfig:
    """Field checks, then cross checks over the fields that are valid, so that one message holds all faults."""
    wrong: dict[str, str] = {}
    try:
        config = TrainConfig.model_validate(values, context=FIELDS_ONLY)
    except ValidationError as error:
        for item in error.errors():
            wrong.setdefault(str(item["loc"][0]), complaint(item))
        usable = {key: value for key, value in values.items() if key not in wrong}
        config = TrainConfig.model_validate({"output_dir": "unknown", **usable}, context=FIELDS_ONLY)
    faults += [f"{shown.get(key, key)}: {reason}" for key, reason in wrong.items()]
    crossed = [(keys, reason) for keys, reason in cross_faults(dict(config)) if not wrong.keys() & set(keys)]
    faults += [f"{shown.get(keys[0], keys[0])}: {reason}" for keys, reason in crossed]
    if faults:
        count = "1 error" if len(faults) == 1 else f"{len(faults)} errors"
        raise ConfigError("\n  ".join([f"{count} in {where}", *faults]))
    return config


def _advice(config: TrainConfig) -> list[str]:
    """What is allowed but probably not meant."""
    if config.backbone not in PRESETS or _brings_backbone(config.head):
        return []
    hub = HUB_BACKBONES.get(config.backbone)
    notes = [f"backbone: {config.backbone!r} starts from random weights" + (f"; DINOv3's are {hub}" if hub else "")]
    notes[0] += "" if hub else "; docs/log.md says what learns from them, sample/from_scratch_args.json is a recipe"
    if config.lora_rank:
        notes.append(f"lora_rank: {config.lora_rank} trains adapters on these random weights, which stay; set it to 0")
    elif config.freeze_backbone:
        notes.append("freeze_backbone: true keeps these random weights as they are; set it to false or null")
    return notes


def _brings_backbone(head: str | None) -> bool:
    """Whether `head` is a local folder with a whole model: one of ours, or of the original project."""
    if head is None:
        return False
    try:
        kind = json.loads((Path(head) / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # building the model will say what is wrong with it
    return kind == "mask2former_dinov3" or (Path(head) / "dinov3_backbone_config.json").is_file()
