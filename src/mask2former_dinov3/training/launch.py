"""Choose devices, processes and precision; refuse what does not work here, before anything is read."""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, str_to_bool

from ..config.train_config import TrainConfig
from ..errors import ConfigError, OptionError, mark_shared, mismatch
from ..extras import require
from ..inference.predictor import cpu_has_bf16

logger = logging.getLogger(__name__)
SHARDING = {  # variables by which `accelerate launch` passes the settings of other ways to train on several GPUs
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Choose devices, processes and precision.

    Raises ConfigError for a precision, a tracker or a way to share the work that is not available. accelerate itself
    would continue in float32, without a tracker, or with several processes that know nothing of each other.
    """
    if config.with_tracking and config.report_to in ("trackio", "wandb"):
        require("trackers", f"report_to={config.report_to}", config.report_to)
    refuse_sharding()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no supported trackers")  # an error below
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=config.report_to if config.with_tracking else None,
            project_dir=config.output_dir,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_group_timeout))],
        )
    error = find_unavailable(config, accelerator)
    if error is not None:
        AcceleratorState._reset_state(reset_partial_state=True)
        raise mark_shared(error)
    if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu" and not cpu_has_bf16():
        logger.warning(
            "mixed_precision: this CPU has no instructions for bf16, which makes it many times slower than float32; "
            "--mixed-precision no is faster here"
        )
    return accelerator


def refuse_sharding() -> None:
    """Raise ConfigError for settings of accelerate that this package does not train with."""
    for variable, name in SHARDING.items():
        if str_to_bool(os.environ.get(variable) or "false"):
            advice = "choose multi-GPU without it in `accelerate config`, or start with torchrun (docs/scale.md)"
            expected = "data parallelism (DDP), the only way in which this package trains on several GPUs"
            raise mark_shared(ConfigError(f"accelerate: {mismatch(expected, f'settings for {name}', advice)}"))


def find_unavailable(config: TrainConfig, accelerator: Accelerator) -> ConfigError | None:
    """The error for processes, a precision or a tracker that are not available here, None if all are."""
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started != accelerator.num_processes:
        got = f"{accelerator.num_processes}, which would each train alone into one folder: torch sees no GPU"
        advice = "set ACCELERATE_USE_CPU=true to train on CPUs, or repair the driver (nvidia-smi)"
        return ConfigError(
            f"WORLD_SIZE: {mismatch(f'the {started} processes of the launcher as one group', got, advice)}"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        return OptionError("mixed_precision", "bf16 or no on a CPU", "fp16", "fp16 needs a GPU")
    if config.with_tracking and not accelerator.log_with:
        advice = f"install {config.report_to}, or use tensorboard, which is always installed"
        return OptionError("report_to", "a tracker that is installed here", config.report_to, advice)
    return None
