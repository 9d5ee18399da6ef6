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
from pydantic_core import ErrorDetails

from .errors import ConfigError
from .old_options import HUB_BACKBONES, translate_old_options

PATCH_SIZE = 16
PLACEHOLDER = "path/to/"  # how the shipped JSON files begin a path that the user has to give
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
        description="Preset with random weights (`tiny`, `smallplus`, `large`), local folder, or hub id such as "
        "`facebook/dinov3-vits16plus-pretrain-lvd1689m`.",
    )
    head: str | None = Field(
        None,
        description="Mask2Former checkpoint of Hugging Face (hub id or folder) to start the head from, or a model of "
        "ours to start all from, backbone included; null starts the head at random.",
    )
    neck: Literal["pyramid", "adapter", "plain", "none"] = Field(
        "pyramid",
        description="`pyramid` makes strides 4, 8, 16, 32 of a ViT; `adapter` adds a convolutional stem beside it, for "
        "small objects; `plain` keeps stride 16; `none` for a backbone that is a pyramid itself.",
    )
    backbone_norm: bool = Field(True, description="The backbone's final norm on every tapped feature map.")
    freeze_backbone: bool | None = Field(
        None, description="Keep the backbone as it is; null freezes pretrained weights and trains random ones."
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
    push_to_hub: bool = Field(False, description="Not available yet; accepted as false.")
    hub_model_id: str | None = Field(None, description="Repository for `push_to_hub`.")
    hub_token: str | None = Field(
        None, description="Token for `push_to_hub`; never written to the run folder.", exclude=True, repr=False
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

    @field_validator("image_height", "image_width")
    @classmethod
    def _multiple_of_patch(cls, value: int) -> int:
        if value % PATCH_SIZE:
            below, above = value // PATCH_SIZE * PATCH_SIZE, -(-value // PATCH_SIZE) * PATCH_SIZE
            nearest = f"{below} and {above}" if below else str(above)
            raise ValueError(f"{value} is not a multiple of the patch size {PATCH_SIZE}; nearest are {nearest}")
        return value

    @field_validator("push_to_hub")
    @classmethod
    def _not_yet(cls, value: bool) -> bool:
        if value:
            raise ValueError("uploading is not available yet; set it to false and upload the folder `best/` yourself")
        return value

    @model_validator(mode="after")
    def _options_fit_together(self, info: ValidationInfo) -> TrainConfig:
        if info.context != FIELDS_ONLY and (faults := cross_faults(self)):
            raise ValueError("; ".join(f"{keys[0]}: {reason}" for keys, reason in faults))
        return self


FIELDS_ONLY = "check each field, not yet how they fit together"
Fault = tuple[tuple[str, ...], str]


def cross_faults(config: TrainConfig) -> list[Fault]:
    """What is wrong between options that are each valid: (the keys involved, the reason)."""
    values = {name: getattr(config, name) for name in TrainConfig.model_fields}
    faults: list[Fault] = []
    dataset = values["dataset_name"]
    if dataset is None and values["train_annotations"] is None:
        reason = "required; the folder of a COCO data set (or train_annotations and train_images)"
        faults.append((("dataset_name", "train_annotations"), reason))
    if dataset is not None and dataset.startswith(PLACEHOLDER):
        reason = f"{dataset!r} stands for your own data; write the folder of a COCO data set or add --dataset_name DIR"
        faults.append((("dataset_name",), reason))
    for split in ("train", "valid", "test"):
        annotations, images = f"{split}_annotations", f"{split}_images"
        if dataset is None and values[images] is not None and values[annotations] is None:
            faults.append(((annotations, images), f"required, since {images} is given"))
    if values["neck"] == "plain" and values["mask_stride"] is not None:
        reason = f"{values['mask_stride']} needs maps finer than those of neck=plain; set it to null, or use pyramid"
        faults.append((("mask_stride", "neck"), reason))
    if values["scale_min"] > values["scale_max"]:
        reason = f"{values['scale_min']} is above scale_max={values['scale_max']}"
        faults.append((("scale_min", "scale_max"), reason))
    return faults


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> tuple[TrainConfig, list[str]]:
    """The configuration of defaults < JSON file < overrides, and notes that should be said to the user.

    overrides: a mapping, or command-line words (`--key value`, `--key=value`, `--flag`; dashes serve as underscores).
    Raises ConfigError listing every fault at once, an unknown key with the nearest valid one.
    """
    notes: list[str] = []
    faults: list[str] = []
    in_file = _read_json(Path(path)) if path is not None else {}
    is_line = not isinstance(overrides, Mapping)
    given = dict(overrides) if isinstance(overrides, Mapping) else _read_flags(overrides, faults)
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
            wrong.setdefault(str(item["loc"][0]), _reason(item))
        usable = {key: value for key, value in values.items() if key not in wrong}
        config = TrainConfig.model_validate({"output_dir": "unknown", **usable}, context=FIELDS_ONLY)
    faults += [f"{shown.get(key, key)}: {reason}" for key, reason in wrong.items()]
    faults += [f"{shown.get(k[0], k[0])}: {reason}" for k, reason in cross_faults(config) if not wrong.keys() & set(k)]
    if faults:
        count = "1 error" if len(faults) == 1 else f"{len(faults)} errors"
        raise ConfigError("\n  ".join([f"{count} in {where}", *faults]))
    return config


_EITHER = {
    "checkpointing_steps": 'a number of steps above 0, "epoch", or null',
    "num_queries": 'a number above 0 or "auto"',
}
_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a string"}


def _reason(item: ErrorDetails) -> str:
    """pydantic's complaint in the words of a JSON file."""
    kind, got, context = item["type"], item["input"], item.get("ctx", {})
    if item["loc"][0] in _EITHER:
        return f"expected {_EITHER[str(item['loc'][0])]}, got {json.dumps(got, default=str)}"
    if kind == "missing":
        return "required; the folder that the run is written to"  # output_dir is the only field without a default
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"expected one of {context['expected']}, got {json.dumps(got, default=str)}"
    expected = _EXPECTED.get(kind.split("_")[0], item["msg"].removeprefix("Input should be ").lower())
    return f"expected {expected}, got {json.dumps(got, default=str)}"


def _read_json(path: Path) -> dict[str, Any]:
    """A flat JSON object; every way in which it can fail to be one is a ConfigError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = sorted({key for key, _ in pairs if [other for other, _ in pairs].count(key) > 1})
        if twice:
            raise ConfigError(f"{path}: given twice: {', '.join(twice)}; keep one of each")
        return dict(pairs)

    try:
        found: object = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: no valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no text in UTF-8 ({error.reason}); expected a JSON file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a JSON file with --config") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object of options, got a {type(found).__name__}")
    return found


def _read_flags(words: Sequence[str], faults: list[str]) -> dict[str, Any]:
    """Command-line words as options; a flag without a value is true, `none` and `null` clear what can be null."""
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            faults.append(f"{word}: expected --key value")
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals and rest and not rest[0].startswith("--"):
            value, equals = rest.pop(0), "="
        field = TrainConfig.model_fields.get(key)
        clears = field is not None and "None" in str(field.annotation) and value.lower() in ("none", "null")
        given[key] = None if clears else value if equals else True
    return given


def _advice(config: TrainConfig) -> list[str]:
    """What is allowed but probably not meant."""
    if config.backbone not in PRESETS or _is_our_model(config.head):
        return []
    hub = HUB_BACKBONES.get(config.backbone)
    notes = [f"backbone: {config.backbone!r} starts from random weights" + (f"; DINOv3's are {hub}" if hub else "")]
    if config.freeze_backbone:
        notes.append("freeze_backbone: true keeps these random weights as they are; set it to false or null")
    return notes


def _is_our_model(head: str | None) -> bool:
    """Whether `head` is a local folder with a model of ours, which brings its own backbone."""
    file = Path(head or "") / "config.json"
    try:
        return head is not None and json.loads(file.read_text(encoding="utf-8"))["model_type"] == "mask2former_dinov3"
    except (OSError, ValueError, KeyError, TypeError):
        return False  # building the model will say what is wrong with it
