"""Give a run the options of its recipe: chosen by the data and the machine where it is `auto`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..config.cross_checks import find_conflicts
from ..config.presets import AUTO_BATCH, FEW, FROM_SCRATCH, PRESETS
from ..config.recipe_files import read_recipe
from ..config.train_config import FIELDS_ONLY, TrainConfig
from ..data.coco import CocoData
from ..errors import HubError
from ..weights.access import check_access
from ..weights.loading import FOLDER_ADVICE, is_path
from .build_model import NETWORK
from .distributed import run_on_main
from .recipe import SEEN_ON_CPU, SEEN_ON_GPU, Recipe, memory_of_gpu, suggest_recipe

logger = logging.getLogger(__name__)
BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
_NOT_OPTIONS = ("description", "output_dir", "dataset_name", "valid_split")  # of a file; a run has its own


def apply_recipe(config: TrainConfig, data: CocoData, accelerator: Accelerator) -> TrainConfig:
    """The configuration with the options of its recipe wherever none was given; every process must call this.

    data: the training split. The main process chooses, and says what and why. A choice that does not fit the given
    options is left out, and so are the network's options with a `head`, which has its own. A `head` that the hub does
    not give is left out where the backbone is random as well.
    Raises ConfigError for given options that do not fit together, DatasetError for data without objects, HubError for a
    head that cannot be had on a pretrained backbone.
    """
    if config.recipe is None and config.head is None:
        return config

    def choose() -> TrainConfig:
        return _without_missing_head(config if config.recipe is None else _choose(config, data))

    shared = [run_on_main(accelerator, choose)]
    broadcast_object_list(shared)
    return shared[0] or config


def _without_missing_head(config: TrainConfig) -> TrainConfig:
    """The configuration, without a head of the hub that cannot be had if the backbone starts from random weights.

    On a pretrained backbone a missing head is an error: who counts on it would find out after the night.
    """
    head = config.head
    if head is None or is_path(head) or config.resume_from_checkpoint is not None:
        return config
    try:
        check_access(head, config.hub_token)
    except HubError as error:
        reason = str(error).removesuffix(f", {FOLDER_ADVICE}")  # of backbones
        if config.backbone not in PRESETS:
            advice = "give head that folder, or null to start the head from random weights"
            raise HubError(f"head: {reason}, {advice}") from None
        logger.warning("head: not used, it starts from random weights as %s does: %s", config.backbone, reason)
        return config.model_copy(update={"head": None})
    return config


def _choose(config: TrainConfig, data: CocoData) -> TrainConfig:
    """Choose, and log the choice."""
    name: str | None = config.recipe
    reason = ""
    if name == "auto":
        name, reason = _usable_recipe(config)
    recipe = suggest_recipe(data, config, name=name)
    given = {option: getattr(config, option) for option in config.model_fields_set}
    chosen = {key: value for key, value in recipe.options.items() if key not in given and key not in _NOT_OPTIONS}
    if config.per_device_train_batch_size == AUTO_BATCH and ACCUMULATION not in given:  # images per step, see there
        chosen[ACCUMULATION] = math.prod(int(str(recipe.options.get(one, 1))) for one in (BATCH, ACCUMULATION))
    if config.head is not None:
        chosen = {key: value for key, value in chosen.items() if key not in (*NETWORK, "backbone")}
    while True:
        resolved = TrainConfig.model_validate({**chosen, **given, "recipe": recipe.name}, context=FIELDS_ONLY)
        unfit = {key for keys, _ in find_conflicts(resolved) for key in keys if key in chosen}
        if not unfit:
            break
        chosen = {key: value for key, value in chosen.items() if key not in unfit}
    logger.info("%s", _describe(recipe, reason, chosen, given))
    return resolved


def _usable_recipe(config: TrainConfig) -> tuple[str | None, str]:
    """The recipe to start from if the number of images does not decide, and why.

    A backbone that was named is used. Without a GPU, or where DINOv3's weights cannot be had, the small network is
    trained from random weights.
    """
    if "backbone" in config.model_fields_set:
        if config.backbone in PRESETS:
            return FROM_SCRATCH, f"{config.backbone} has random weights"
        return FEW if memory_of_gpu() is None else None, f"the weights {config.backbone} were named"
    if memory_of_gpu() is None:
        return None, ""
    source = str(read_recipe(FEW)["backbone"])
    try:
        check_access(source, config.hub_token)
    except HubError as error:
        return FROM_SCRATCH, f"DINOv3's weights cannot be had: {error}"
    return None, ""


def _describe(recipe: Recipe, reason: str, chosen: dict[str, object], given: dict[str, object]) -> str:
    """What was chosen and why, one line an option, and how to change it."""
    lines = [f"recipe: {recipe.name}" + (f" ({reason})" if reason else "")]
    reasons = {one.option: one.reason for one in recipe.choices}
    for option, value in chosen.items():
        if option in reasons:
            lines.append(f"  {option}: {json.dumps(value, ensure_ascii=False)}: {reasons[option]}")
    others = {option: value for option, value in chosen.items() if option not in reasons}
    if others:
        lines.append("  " + ", ".join(f"{key} {json.dumps(value)}" for key, value in others.items()))
    lines.append("change one with its flag, such as --image-height 512 --image-width 512, or --recipe NAME for another")
    return "\n".join(lines)


def judge_length(config: TrainConfig, last_step: int, step_size: int) -> Iterator[str]:
    """A sentence if the run sees far fewer images than runs of its kind needed in docs/log.md.

    last_step: optimiser steps of the run. step_size: images per step, in all processes.
    """
    if config.head is not None:  # continues a trained model
        return
    needed = SEEN_ON_CPU if config.backbone == "tiny" else SEEN_ON_GPU
    if last_step * step_size < needed / 2:
        steps = -(-needed // step_size)
        yield (
            f"{last_step:,} steps of {step_size} images are {last_step * step_size:,} images; runs of this kind needed "
            f"about {needed:,} (docs/log.md): set --max-train-steps {steps}"
        )
