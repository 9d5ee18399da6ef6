"""The optimiser and its schedule: learning rate and weight decay of every trained parameter."""

from __future__ import annotations

import logging
from typing import TypedDict

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..config.train_config import TrainConfig
from ..model.backbone import backbone_blocks

logger = logging.getLogger(__name__)


class ParameterGroup(TypedDict):
    """Parameters that share a learning rate and a weight decay, in torch's names."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    backbone_lr_multiplier: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[ParameterGroup]:
    """The trained parameters in groups of one learning rate and weight decay: first the head's, then the backbone's.

    As in the Mask2Former recipe (arXiv:2112.01527, section 4.1) the backbone has its own rate, and norms, biases and
    embeddings (learned queries, level and token embeddings) have no weight decay. With `layer_decay` below 1 the rate
    of block i (see `backbone_blocks`; 0: the embeddings, depth + 1: the final norm) is the backbone's times
    layer_decay ** (depth + 1 - i), as in BEiT (arXiv:2106.08254) and ViTDet (arXiv:2203.16527). Low-rank adapters in
    the backbone are new weights and have the head's rate. Groups without parameters are left out.
    """
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    below_top: dict[int, int] = {}  # id of a parameter -> blocks between it and the backbone's end
    for distance, modules in enumerate(reversed(backbone_blocks(model.backbone)) if layer_decay < 1 else ()):
        below_top |= {id(parameter): distance for module in modules for parameter in module.parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_token = name.rsplit(".", 1)[-1].endswith(("_token", "_tokens", "level_embed"))
        decayed = parameter.dim() > 1 and id(parameter) not in embeddings and not is_token
        is_pretrained = name.startswith("backbone.") and ".lora_" not in name
        distance = below_top.get(id(parameter), 0) if is_pretrained else -1
        groups.setdefault((distance, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * (backbone_lr_multiplier * layer_decay**distance if distance >= 0 else 1.0),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (distance, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    groups = parameter_groups(
        model, config.learning_rate, config.backbone_lr_multiplier, config.weight_decay, config.layer_decay
    )
    return torch.optim.AdamW(
        [dict(group) for group in groups],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )


def build_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int) -> LambdaLR:
    """The learning rate over `num_steps` optimiser steps, by transformers' names of schedules.

    A warm-up as long as the run or longer is cut to a tenth of the run, with a warning. "polynomial" ends at 0.
    """
    warmup = warmup_steps(config, num_steps)
    if warmup != config.num_warmup_steps:
        logger.warning(
            "num_warmup_steps: %d is not below the %d steps of the run; using %d",
            config.num_warmup_steps,
            num_steps,
            warmup,
        )
    scheduler: LambdaLR = get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=num_steps,
        scheduler_specific_kwargs={"lr_end": 0.0} if config.lr_scheduler_type == "polynomial" else None,
    )
    return scheduler


def warmup_steps(config: TrainConfig, num_steps: int) -> int:
    """Steps of the warm-up in a run of `num_steps`."""
    return config.num_warmup_steps if config.num_warmup_steps < num_steps else num_steps // 10
