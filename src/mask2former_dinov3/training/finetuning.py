"""Which part of the backbone is trained: all of it, the blocks after the first ones, low-rank adapters, or nothing."""

from __future__ import annotations

import logging

from torch import nn

from ..config.train_config import TrainConfig
from ..errors import OptionError
from ..extras import require
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model.backbone import backbone_blocks
from ..weights.lora import ADAPTER

logger = logging.getLogger(__name__)


def choose_trained(model: Mask2FormerDinov3ForInstanceSegmentation, config: TrainConfig) -> None:
    """Freeze the backbone as `config` says, or add adapters to it, and log the choice.

    Raises OptionError for blocks or layers that the backbone does not have.
    """
    depth = len(backbone_blocks(model.backbone)) - 2
    if config.frozen_blocks > depth:
        raise OptionError("frozen_blocks", f"0 to {depth}, the number of the backbone's blocks", config.frozen_blocks)
    given = {"frozen_blocks": config.frozen_blocks > 0, "layer_decay": config.layer_decay < 1}
    reasons = [name for name, is_given in given.items() if is_given]  # options that imply a trained backbone
    is_pretrained = model.config.backbone_source is not None
    if config.lora_rank:
        count = add_adapters(model.backbone, config.lora_rank, config.lora_alpha, config.lora_targets.split(","))
        logger.info("backbone: frozen, with trained adapters of rank %d on %d of its layers", config.lora_rank, count)
    elif config.freeze_backbone or (config.freeze_backbone is None and is_pretrained and not reasons):
        model.freeze_backbone()
        logger.info("backbone: frozen")
    else:
        if config.frozen_blocks:
            model.freeze_backbone(config.frozen_blocks)
        why = f" because of {' and '.join(reasons)}" if reasons and config.freeze_backbone is None else ""
        logger.info("backbone: trained%s; %d of its %d blocks are frozen", why, config.frozen_blocks, depth)


def add_adapters(backbone: nn.Module, rank: int, alpha: int | None, targets: list[str]) -> int:
    """Freeze the backbone and add low-rank adapters to its linear layers of these names; returns their number.

    y = W x becomes y = W x + alpha / rank B A x. A (rank, in) is random and B (out, rank) zero at the start; both are
    trained (LoRA, arXiv:2106.09685, section 4.1). alpha: None for `rank`. targets: last parts of layer names, such as
    "q_proj". Layers that do not affect the loss get no adapter, since every trained weight must have a gradient.
    Raises OptionError for names of no layer, MissingExtraError without peft.
    """
    linear = {name: layer for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)}
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise OptionError(
            "lora_targets", f"names of linear layers of the backbone ({', '.join(known)})", ", ".join(unknown)
        )
    require("peft", "lora_rank", "peft")
    from peft import LoraConfig, inject_adapter_in_model

    chosen = [
        name for name, layer in linear.items() if name.rpartition(".")[2] in targets and layer.weight.requires_grad
    ]
    backbone.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=chosen), backbone, ADAPTER)
    return len(chosen)
