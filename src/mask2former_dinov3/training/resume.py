"""Continue a run at a checkpoint, bit for bit: compare the options, restore weights, optimiser and random states."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from ..config.presets import PRESETS
from ..config.train_config import TrainConfig
from ..data.transforms import AUGMENTATIONS
from ..errors import CheckpointError, ConfigError, OptionError, mismatch
from ..json_files import is_number, read_json_object
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..weights.loading import is_path
from .build_model import NETWORK
from .checkpoint import OptimizationState, RngState, RunState, load_checkpoint, read_state
from .ema import AveragedWeights
from .time_budget import resumed_position

logger = logging.getLogger(__name__)

# These options may change on resume: they affect the optimiser only. Those of FIXED change the model or the data, so
# resuming with other values is refused. All other options do not change the numbers.
OPTIMIZATION = (
    *("learning_rate", "backbone_lr_multiplier", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "lr_scheduler_type", "num_warmup_steps", "num_train_epochs", "max_train_steps"),
    *("max_hours", "ema_decay"),
)
FIXED = (
    *("backbone", "head", "seed", "valid_split", "dataset_format", "classes", "crowd", "incomplete_images", *NETWORK),
    *("freeze_backbone", "frozen_blocks", "layer_decay", "lora_rank", "lora_alpha", "lora_targets"),
    *("image_height", "image_width", *AUGMENTATIONS, "repeat_factor", "class_weights"),
    *("value_range", "page", "channels", "image_scale"),  # not extra_images, whose folder may have moved
)
SOURCES_OF_WEIGHTS = ("backbone", "head")  # what a checkpoint replaces
LONGER = "raise --max-train-steps or --num-train-epochs to train longer"
RATES = ("initial_lr", "weight_decay", "betas", "eps")  # keys of a parameter group that the options decide


def get_rng_state() -> RngState:
    """The states of torch's generators. Data need none: their randomness comes from seed, epoch and image."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: RngState) -> None:
    """Set torch's generators to what `get_rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def load_progress(
    config: TrainConfig,
    accelerator: Accelerator,
    model: Mask2FormerDinov3ForInstanceSegmentation,
    start: RunState,
    last_step: int,
    path: Path,
) -> tuple[RunState, OptimizationState]:
    """Load the weights of the checkpoint at `path` into `model`, and set the random states.

    start: the state of this run at step 0. last_step: the run's number of optimiser steps. Returns the state at the
    checkpoint, and what `restore_optimization` needs. Raises OptionError when it is behind the end of the run,
    ConfigError when this run would see other images or train another model, CheckpointError when the checkpoint is
    damaged.
    """
    state, options = read_state(path)
    compare_options(config, path, options)
    optimization, rng_states = load_checkpoint(path, model)
    for what, then, now in (
        ("images per optimiser step (batch size x accumulation x processes)", state.step_size, start.step_size),
        ("training images", state.num_images, start.num_images),
    ):
        if then != now:
            raise ConfigError(
                f"{path}: made with {then} {what}, this run has {now}; make them equal or start a new run"
            )
    if state.step > last_step:
        expected = f"a checkpoint up to step {last_step}, the end of the run"
        got = f"{path} at step {state.step}"
        raise OptionError("resume_from_checkpoint", expected, got, LONGER)
    if len(rng_states) == accelerator.num_processes:
        set_rng_state(rng_states[accelerator.process_index])
    else:
        logger.warning("the number of processes has changed: the random points of the losses will differ")
    logger.info("resuming from %s: step %d of %d", path, state.step, last_step)
    return state, optimization


def class_order(path: Path, names: Sequence[str]) -> list[str] | None:
    """The classes of a checkpoint in their order, where it differs from that of `names`, those of the data.

    Labels follow the order of the category ids, which an export may give out again. None where both agree. Raises
    ConfigError when the classes are others.
    """
    file = path / "config.json"
    stored = read_json_object(file, "the configuration of a model (JSON)", raises=CheckpointError).get("id2label")
    if not isinstance(stored, dict):
        return None  # the model is refused when it is loaded
    trained = [str(stored[key]) for key in sorted(stored, key=lambda key: int(key) if key.isdecimal() else -1)]
    if trained == list(names):
        return None
    if sorted(trained) == sorted(names) and len(set(trained)) == len(trained):
        logger.warning("classes: the category ids are given out in another order than before; names decide")
        return trained
    got = f"others\n  checkpoint: {', '.join(trained)}\n  data:       {', '.join(names)}\n  "
    raise ConfigError(f"{path}: {mismatch('the classes of the checkpoint', got + 'rename them or start a new run')}")


def _has_moved(then: object, now: object) -> bool:
    """Whether one of two paths is not there (any more), so that they do not name two different weights."""
    paths = [one for one in (then, now) if isinstance(one, str) and one not in PRESETS and is_path(one)]
    return len(paths) == 2 and not all(Path(path).exists() for path in paths)


def compare_options(config: TrainConfig, path: Path, then: Mapping[str, object]) -> None:
    """Warn of options in OPTIMIZATION that differ from `then`, the options of the checkpoint at `path`.

    Raises ConfigError that lists the options in FIXED that differ.
    """
    now = config.model_dump(mode="json")
    changed = [name for name in (*FIXED, *OPTIMIZATION) if name in then and then[name] != now[name]]
    for name in [name for name in changed if name in SOURCES_OF_WEIGHTS and _has_moved(then[name], now[name])]:
        logger.warning("%s: was %s, now %s; the checkpoint holds all weights", name, then[name], now[name])
        changed.remove(name)
    texts = {name: f"{name}: was {then[name]}, now {now[name]}" for name in changed}
    fixed = [f"\n  {texts[name]}" for name in changed if name in FIXED]
    if fixed:
        raise ConfigError(f"{path}: made with other options; set them back or start a new run:{''.join(fixed)}")
    for name in changed:
        logger.warning("resuming with another %s", texts[name])


def keep_place_in_schedule(
    config: TrainConfig, saved: OptimizationState, state: RunState, last_step: int, path: Path
) -> None:
    """Move the schedule in `saved` where other hours than those of the checkpoint ask for it (see `time_budget`)."""
    then = read_state(path)[1].get("max_hours")
    hours = (float(then) if is_number(then) else None), config.max_hours
    place = float(saved["scheduler"]["last_epoch"])
    if hours[0] == hours[1]:
        moved = float(last_step) if state.finished and config.max_hours is not None else place
    else:
        moved = resumed_position(place, state.step, last_step, state.seconds, hours)
    saved["scheduler"]["last_epoch"] = int(moved) if moved.is_integer() else moved


def restore_optimization(
    saved: OptimizationState,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    averaged: AveragedWeights | None,
) -> None:
    """Restore optimiser, schedule, gradient scaler and EMA, but keep the rates and decays that are configured now."""
    configured = [{key: group[key] for key in RATES} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict({**saved["scheduler"], "base_lrs": scheduler.base_lrs})
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    for group, values, factor in zip(optimizer.param_groups, configured, factors, strict=True):
        group.update(values, lr=values["initial_lr"] * factor)
    if accelerator.scaler is not None and saved["scaler"]:
        accelerator.scaler.load_state_dict(saved["scaler"])
    averages = saved.get("averaged")
    if averaged and averages:  # a run without EMA so far starts it from the weights of the checkpoint
        averaged.load_state_dict(averages)
