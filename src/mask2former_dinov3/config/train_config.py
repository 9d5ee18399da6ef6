"""Options of a training run: one flat class; a field is a key of the JSON file and a flag of the command line.

`TrainConfig` defines name, type, default, check and help sentence of each option. `load_config` merges defaults <
JSON file < command line and reports all faults in one ConfigError. Options of the network are saved with the model
(`model/configuration.py`); options of the run are defined here and saved in its `train_config.json`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ..canvas import check_side
from ..errors import mismatch
from ..json_files import describe
from ..read_options import ReadOptions, as_channels
from . import augmentation_options as changes
from .cross_checks import advise, find_conflicts, find_recorded_token
from .option_types import (
    DIGITS,
    Channels,
    ClassNames,
    ClassWeights,
    ComparedOn,
    DatasetFormat,
    Fraction,
    LayerNames,
    Metric,
    NotNegativeFloat,
    NotNegativeInt,
    PositiveFloat,
    PositiveInt,
    QueryCount,
    RecipeName,
    RepeatFactor,
    Scale,
    Scheduler,
    Seed,
    Side,
    Taps,
    Tracker,
    ValueRange,
)
from .parsing import GivenOptions, explain_fault, keep_images_per_step
from .presets import DEFAULT_BATCH, SPLIT_OPTIONS

PATHS = ("output_dir", "dataset_name", "backbone", "head", "resume_from_checkpoint", "extra_images", *SPLIT_OPTIONS)


class TrainConfig(BaseModel):
    """The options of `train` (docs/configuration.md), immutable. Use `load_config` to read them from a file and flags.

    The constructor raises pydantic's ValidationError (a ValueError) instead of ConfigError. `model_dump(mode="json")`
    leaves out the hub token and can be read again by `load_config`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    # --- the run
    description: str = Field("", description="Notes for readers: hardware, hours, expected AP. Not used by the run.")
    output_dir: str = Field(min_length=1, description="Folder of the run: metrics, checkpoints, `best/` and `last/`.")
    recipe: RecipeName | None = Field(
        None,
        description="Recipe for the options that are not given (see docs/recipes.md). `auto`: one of the others, by "
        "the data and this machine; null: the defaults of this list. `train` without `config`, `head` and "
        "`resume_from_checkpoint` uses `auto`.",
    )
    seed: Seed = Field(0, description="Seed of random weights, of the order of the images, and of augmentation.")
    # --- the data
    dataset_name: str | None = Field(None, description="Folder of a data set (see docs/data.md and docs/formats.md).")
    dataset_format: DatasetFormat = Field(
        "auto",
        description="Format of the data set; `auto`: recognised by its files (see docs/formats.md). More than one that "
        "fits is an error.",
    )
    classes: ClassNames | None = Field(
        None,
        description="Classes to rename and merge, as a JSON object of old and new names; null leaves a class out, as "
        'background: `{"crack": "defect", "scratch": "defect", "dust": null}`. The key `*` stands for all others.',
    )
    train_annotations: str | None = Field(None, description="COCO JSON file of the training images, if not detected.")
    train_images: str | None = Field(
        None, description="Folder with the images of `train_annotations`; null: beside it."
    )
    valid_annotations: str | None = Field(None, description="COCO JSON file of the validation images.")
    valid_images: str | None = Field(None, description="Folder with the images of `valid_annotations`.")
    test_annotations: str | None = Field(None, description="COCO JSON file of the test images.")
    test_images: str | None = Field(None, description="Folder with the images of `test_annotations`.")
    valid_split: Fraction = Field(
        0.1,
        description="Fraction of the training images used for validation if the data set has no validation split; "
        "0 trains without validation.",
    )
    crowd: Literal["ignore", "instances"] = Field(
        "ignore",
        description="Meaning of `iscrowd` 1. `ignore`, as in COCO: a region of many objects, no training target and "
        "ignored in AP. `instances`: a single object like others, for files of tools that mark every mask so.",
    )
    incomplete_images: Literal["keep", "drop"] = Field(
        "keep",
        description="Images with an object that has no usable mask. `keep`: the object counts as background. `drop`: "
        "the image is left out of training and evaluation.",
    )
    repeat_factor: RepeatFactor = None
    dataloader_num_workers: NotNegativeInt = Field(2, description="Processes that read images, per training process.")
    max_bad_images: Fraction = Field(
        0.001,
        description="Fraction of a split's images, rounded up, that may be unreadable: they are named and, in "
        "training, replaced by others. One more ends the run; 0: the first does.",
    )
    # --- the model
    backbone: str = Field(
        "smallplus",
        min_length=1,
        description="A preset with random weights (`tiny`, `smallplus`, `large`), or the weights of a DINOv3 ViT, "
        "DINOv3 ConvNeXt or Swin: a local folder, a file from Meta or timm, or a hub id such as "
        "`facebook/dinov3-vits16plus-pretrain-lvd1689m` (see docs/weights.md).",
    )
    head: str | None = Field(
        None,
        description="Model to start from. A Mask2Former of Hugging Face (hub id or folder) gives the head; a model of "
        "this project or of the original project gives the head and the backbone; null: a head with random weights.",
    )
    neck: Literal["pyramid", "adapter", "plain", "none"] = Field(
        "pyramid",
        description="Module that turns the backbone's output into four feature maps. `pyramid` computes strides 4, 8, "
        "16 and 32 from a ViT; `adapter` adds a convolutional stem to it, for small objects; `plain` keeps stride 16; "
        "`none` is for a Swin or ConvNeXt, which already have these strides.",
    )
    backbone_norm: bool = Field(True, description="Apply the backbone's final norm to each feature map it returns.")
    backbone_taps: Taps | None = Field(
        None,
        description="The four blocks of a ViT whose outputs go to the neck, counted from 1, as a list or as "
        "`3,6,9,12`; null: the last block of each quarter of the depth.",
    )
    freeze_backbone: bool | None = Field(
        None,
        description="Do not train the backbone; null freezes pretrained weights and trains random ones. With "
        "`frozen_blocks` or `layer_decay`, null trains pretrained weights too (see docs/finetuning.md).",
    )
    frozen_blocks: NotNegativeInt = Field(
        0, description="Number of blocks that are not trained, counted from the input; the embeddings are then frozen."
    )
    lora_rank: NotNegativeInt = Field(
        0,
        description="Rank of the low-rank adapters (LoRA, by peft) that are trained in the backbone, whose own "
        "weights stay frozen; 0: no adapters.",
    )
    lora_alpha: PositiveInt | None = Field(
        None, description="The output of the adapters is multiplied by `lora_alpha` / `lora_rank`; null: by 1."
    )
    lora_targets: LayerNames = Field(
        "q_proj,v_proj",
        description="Linear layers of the backbone that get adapters, by the last part of their names, separated by "
        "commas; a list in JSON.",
    )
    num_queries: Annotated[QueryCount | Literal["auto"], DIGITS] = Field(
        100,
        description="Number of queries: the maximum number of instances that the model proposes per image. `auto`: "
        "1.25 times the largest number of instances in a training image, at least 50.",
    )
    query_init: Literal["learned", "seeds"] = Field(
        "learned",
        description="Initial values of the queries. `learned`: parameters, as published; `seeds`: features at the "
        "peaks of a predicted heat map, with their positions, which needs fewer training images.",
    )
    matching: ComparedOn = Field(
        "points",
        description="Where the masks of queries and instances are compared to match them: at random `points`, as "
        "published, or at all `pixels` of the mask logits, better for small objects.",
    )
    mask_loss: ComparedOn = Field(
        "points", description="Where the mask losses are computed: at random `points` or at all `pixels`."
    )
    mask_stride: Annotated[Literal[2, 4, "auto"] | None, DIGITS] = Field(
        None,
        description="Pixels of the image per pixel of the mask logits; null: 4, as published (16 with the plain "
        "neck). `auto`: 2 if masks of stride 4 cannot reach an AP of 0.8 on the training instances, otherwise 4.",
    )
    class_weights: ClassWeights = None
    encoder_layers: NotNegativeInt | None = Field(
        None, description="Number of layers of the pixel decoder; null: as in the head or the preset, otherwise 6."
    )
    decoder_layers: PositiveInt | None = Field(
        None,
        description="Number of predictions of the transformer decoder, one more than its layers; null: as in the "
        "head or the preset, otherwise 10.",
    )
    mask_feature_size: PositiveInt | None = Field(
        None,
        description="Channels of the features that masks are computed from; null: as in the head or the preset, "
        "otherwise 256.",
    )
    # --- the image
    image_height: Side = Field(1024, description="Height of the training canvas in pixels, a multiple of 16.")
    image_width: Side = Field(1024, description="Width of the training canvas in pixels, a multiple of 16.")
    image_scale: Scale = Field(
        "fit",
        description="Scale of the images. `fit`: each is fitted into the canvas; `native`: each keeps its own scale, "
        "training takes crops of the canvas' size, and larger images are predicted in tiles; a number: as `native`, "
        "enlarged by this factor. Saved with the model.",
    )
    scale_min: changes.ScaleMin = 0.1
    scale_max: changes.ScaleMax = 2.0
    flip: changes.Flip = "horizontal"
    rotation: changes.Rotation = 0.0
    color_jitter: changes.ColorJitter = 0.2
    gamma_jitter: changes.GammaJitter = 0.0
    invert: changes.Invert = 0.0
    blur: changes.Blur = 0.0
    noise: changes.Noise = 0.0
    jpeg_quality: changes.JpegQuality = None
    copy_paste: changes.CopyPaste = 0.0
    value_range: ValueRange = Field(
        "full",
        description="Values that become black and white, in images of more than 8 bits per channel. `full`: the range "
        "of the type; `percentile`: 0.1 and 99.9 percent of each image; `LOW,HIGH`, such as `0,4095`. Saved with the "
        "model.",
    )
    page: PositiveInt = Field(1, description="Page or frame that is read of files with several. Saved with the model.")
    channels: Channels | None = Field(
        None,
        description="Channels that are read, counted from 1, as a list or as `3,2,1`: one (grey), three (red, green, "
        "blue) or more; `all`: all but alpha; null: grey or RGB, as the file has it. Saved with the model.",
    )
    extra_images: str | None = Field(
        None,
        description="Where the second file of each image is, such as its depth, whose channels follow the image's: a "
        "folder with files of the same names but for the ending, or a pattern such as `{folder}/../depth/{stem}.png`.",
    )
    # --- the optimisation
    num_train_epochs: PositiveInt = Field(50, description="Number of passes over the training images.")
    max_train_steps: PositiveInt | None = Field(
        None, description="Number of optimiser steps; null: as many as `num_train_epochs` takes."
    )
    max_hours: PositiveFloat | None = Field(
        None,
        description="Hours after which the run has ended, with evaluation and saving: the number of steps follows the "
        "measured speed, and the learning rate ends with it. Hours before a resume count. null: no limit.",
    )
    per_device_train_batch_size: Annotated[PositiveInt | Literal["auto"], DIGITS] = Field(
        DEFAULT_BATCH,
        description="Images per forward pass in training, in each process. `auto`: as many as fit into memory, tried "
        "on the fullest images (see docs/recipes.md); `gradient_accumulation_steps` is then the images per step.",
    )
    gradient_accumulation_steps: PositiveInt = Field(
        1, description="Number of forward and backward passes per optimiser step."
    )
    learning_rate: PositiveFloat = Field(1e-4, description="Highest learning rate of the head.")
    backbone_lr_multiplier: NotNegativeFloat = Field(
        0.1, description="Learning rate of the backbone divided by `learning_rate`, if the backbone is trained."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Learning rate of a block of the backbone divided by that of the next block, for pretrained "
        "weights that are trained; 1: the same rate for all blocks.",
    )
    adam_beta1: Fraction = Field(0.9, description="First beta of AdamW.")
    adam_beta2: Fraction = Field(0.999, description="Second beta of AdamW.")
    adam_epsilon: PositiveFloat = Field(1e-8, description="Epsilon of AdamW.")
    weight_decay: NotNegativeFloat = Field(
        0.05, description="Weight decay of AdamW; not applied to norms, biases and embeddings."
    )
    max_grad_norm: PositiveFloat | None = Field(
        0.01,
        description="Maximum norm of the whole gradient, which is clipped to it; 0.01 in every published Mask2Former "
        "recipe; null: no clipping.",
    )
    lr_scheduler_type: Scheduler = Field("polynomial", description="How the learning rate falls after the warm-up.")
    num_warmup_steps: NotNegativeInt = Field(
        0, description="Number of optimiser steps in which the learning rate rises from 0."
    )
    ema_decay: Fraction = Field(
        0.0,
        description="Decay of the moving average of the weights, which is evaluated and saved instead of the last "
        "weights; 0: no average.",
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = Field(
        None, description="Number format of the forward pass; null: as set by `accelerate launch`."
    )
    process_group_timeout: PositiveInt = Field(
        1800,
        description="Seconds after which a process that does not answer is given up, in a run of several. One of them "
        "scores an evaluation while the others wait.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute each block again in the backward pass: less memory, slower."
    )
    torch_compile: bool = Field(False, description="Compile the network first (also `--compile`): faster steps.")
    # --- evaluation, checkpoints, logs
    per_device_eval_batch_size: PositiveInt = Field(
        2, description="Images per forward pass in evaluation, in each process."
    )
    max_detections: PositiveInt = Field(
        100, description="Maximum number of detections per image in evaluation; 100 in COCO, more for crowded images."
    )
    metric_for_best_model: Metric = Field("AP", description="Metric by which the model in `best/` is chosen.")
    early_stopping_patience: PositiveInt | None = Field(
        None, description="Evaluations without a better `metric_for_best_model` after which the run ends; null: none."
    )
    checkpointing_steps: Annotated[PositiveInt | Literal["epoch"] | None, DIGITS] = Field(
        "epoch",
        description="Number of optimiser steps between two evaluations, each with a checkpoint; `epoch`: after every "
        "epoch; null: only at the end.",
    )
    save_total_limit: PositiveInt | None = Field(2, description="Maximum number of checkpoints kept; null: all.")
    resume_from_checkpoint: str | None = Field(
        None, description="A `checkpoint-*` folder to resume from, or `latest` for the newest one in `output_dir`."
    )
    logging_steps: PositiveInt = Field(10, description="Number of optimiser steps between two lines of metrics.jsonl.")
    with_tracking: bool = Field(True, description="Also log to the tracker named by `report_to`.")
    report_to: Tracker = Field(
        "tensorboard", description="Tracker of accelerate; all but tensorboard must be installed separately."
    )
    with_code: bool = Field(
        False, description="Save the code with the models in `best/` and `last/`, for `trust_remote_code`."
    )
    push_to_hub: bool = Field(False, description="Upload `best/` to the Hugging Face hub at the end of the run.")
    hub_model_id: str | None = Field(
        None,
        description="Repository for `push_to_hub`, as `USER/NAME`; null: the name of `output_dir` under your account.",
    )
    hub_private_repo: bool = Field(False, description="Make that repository private.")
    hub_token: str | None = Field(
        None,
        description="Token for the hub; null: HF_TOKEN or that of `hf auth login`. Never written to a file.",
        exclude=True,
        repr=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse JSON's true for a number: pydantic would read `learning_rate: true` as 1.0."""
        if isinstance(value, bool) and "bool" not in str(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(mismatch("a number or a string", describe(value)))
        return value

    @field_validator(*PATHS, mode="before")
    @classmethod
    def _path(cls, value: object, info: ValidationInfo) -> object:
        """Expand `~`, which no shell does inside a JSON file; an empty path would mean the current folder."""
        if value == "" and cls.model_fields[str(info.field_name)].default is None:
            return None
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value

    @field_validator("image_height", "image_width")
    @classmethod
    def _multiple_of_patch(cls, value: int, info: ValidationInfo) -> int:
        check_side(str(info.field_name), value)
        return value

    @property
    def read_options(self) -> ReadOptions:
        """How image files are read."""
        channels = as_channels(self.channels)
        return ReadOptions(self.value_range, self.page, channels, self.extra_images, image_scale=self.image_scale)

    @model_validator(mode="after")
    def _options_fit_together(self, info: ValidationInfo) -> TrainConfig:
        if info.context != FIELDS_ONLY and (conflicts := find_conflicts(self)):
            raise ValueError("; ".join(f"{keys[0]}: {reason}" for keys, reason in conflicts))
        return self


FIELDS_ONLY = "validate each field, but not how they fit together"


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, object] | Sequence[str] = ()
) -> tuple[TrainConfig, list[str]]:
    """The configuration of defaults < JSON file < overrides, and notes for the user.

    overrides: a mapping, or words of a command line (`--key value`, `--key=value`, `--key`, with dashes or
    underscores). Raises ConfigError with all faults, one line each: an option of the file by its key, a flag as typed.
    """
    given = GivenOptions(TrainConfig.model_fields, path, overrides)
    keep_images_per_step(given)
    wrong: set[str] = set()
    try:
        config = TrainConfig.model_validate(given.values, context=FIELDS_ONLY)
    except ValidationError as error:
        for item in error.errors():
            key = str(item["loc"][0])
            if key not in wrong:
                given.add_fault(key, explain_fault(item, TrainConfig.model_fields[key].annotation))
            wrong.add(key)
        usable = {key: value for key, value in given.values.items() if key not in wrong}
        config = TrainConfig.model_validate({"output_dir": "unknown", **usable}, context=FIELDS_ONLY)
    for keys, reason in find_conflicts(config, given.name):
        if not wrong & set(keys):
            given.add_fault(keys[0], reason)
    if given.is_flag("hub_token") and (recorded := find_recorded_token(config)):
        given.add_fault("hub_token", recorded)
    given.raise_faults()
    return config, given.notes + advise(config)
