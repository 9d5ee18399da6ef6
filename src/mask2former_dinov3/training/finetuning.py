"""How much of the backbone is trained: nothing, low-rank adapters, the blocks behind the first ones, or all of it."""

from __future__ import annotations

import logging

from torch import nn

from ..config.train_config import TrainConfig
from ..errors import ConfigError, UserError
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model.backbone import backbone_blocks
from ..weights.lora import ADAPTER

logger = logging.getLogger(__name__)


def choose_trained(model: Mask2FormerDinov3ForInstanceSegmentation, config: TrainConfig) -> None:
    """Freeze the backbone, a part of it or nothing, or give it adapters, as `config` resolves to; and say so.

    Raises ConfigError or ValueError for blocks or layers that the backbone does not have.
    """
    depth = len(backbone_blocks(model.backbone)) - 2
    given = {"frozen_blocks": config.frozen_blocks > 0, "layer_decay": config.layer_decay < 1}
    asks = [name for name, is_given in given.items() if is_given]
    is_pretrained = model.config.backbone_source is not None
    if config.lora_rank:
        count = add_adapters(model.backbone, config.lora_rank, config.lora_alpha, config.lora_targets.split(","))
        logger.info("backbone: frozen, adapters of rank %d on %d of its layers are trained", config.lora_rank, count)
    elif config.freeze_backbone or (config.freeze_backbone is None and is_pretrained and not asks):
        model.freeze_backbone()
        logger.info("backbone: frozen")
    else:
        if config.frozen_blocks:
            model.freeze_backbone(config.frozen_blocks)
        why = f", as asked by {' and '.join(asks)}" if asks and config.freeze_backbone is None else ""
        logger.info("backbone: trained%s; %d of its %d blocks are frozen", why, config.frozen_blocks, depth)


def add_adapters(backbone: nn.Module, rank: int, alpha: int | None, targets: list[str]) -> int:
    """Freeze the backbone and give its linear layers of these names low-rank adapters; returns their number.

    y = W x becomes y = W x + alpha / rank B A x, with random A (rank, in) and B (out, rank) of zeros, which are trained
    (LoRA, arXiv:2106.09685, section 4.1). Layers that no loss reaches get none: every trained weight must have a
    gradient. Raises ConfigError for names of no layer, UserError without peft.
    """
    linear = {name: layer for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)}
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise ConfigError(
            f"lora_targets: the backbone has no linear layer named {', '.join(unknown)}; it has {', '.join(known)}"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora_rank: needs peft; pip install 'mask2former-dinov3[peft]'") from error
    chosen = [
        name for name, layer in linear.items() if name.rpartition(".")[2] in targets and layer.weight.requires_grad
    ]
    backbone.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=chosen), backbone, ADAPTER)
    return len(chosen)
