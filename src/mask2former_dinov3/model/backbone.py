"""Build the backbone, and take four feature maps from it. `weights.backbones` loads its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, DINOv3ViTModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.dinov3_convnext.modeling_dinov3_convnext import DINOv3ConvNextLayer

from .configuration import VIT_PATCH_SIZE, Mask2FormerDinov3Config

# B batch, D width of the ViT, h = H/16, w = W/16


class CheckpointedConvNextLayer(GradientCheckpointingLayer, DINOv3ConvNextLayer):
    """A block that `activation_checkpointing_enable()` recognises; transformers' own ConvNeXt block is not one."""


def build_backbone(config: Mask2FormerDinov3Config) -> PreTrainedModel:
    """transformers' own class with random weights: `DINOv3ViTModel`, or the backbone class of a pyramid network."""
    backbone: PreTrainedModel
    if config.neck == "none":
        backbone = AutoBackbone.from_config(config.backbone_config)
        for module in backbone.modules():
            if type(module) is DINOv3ConvNextLayer:
                module.__class__ = CheckpointedConvNextLayer
    else:
        backbone = DINOv3ViTModel._from_config(config.backbone_config)
    return backbone


def unreachable_parameters(backbone: PreTrainedModel, config: Mask2FormerDinov3Config) -> list[nn.Parameter]:
    """Parameters that never get a gradient; distributed training would wait for it.

    These are DINOv3's mask token (used in pretraining only), its final norm if taps are not normed, blocks after the
    last tap, and the layer norm over Swin's last hidden state, which no map uses.
    """
    model_type = config.backbone_config.model_type
    if model_type == "swin":
        return list(backbone.swin.layernorm.parameters())
    if model_type != "dinov3_vit":
        return []
    parameters = [backbone.embeddings.mask_token]
    if not config.backbone_norm:
        parameters += backbone.norm.parameters()
    for block in backbone.model.layer[config.backbone_taps[-1] :]:
        parameters += block.parameters()
    return parameters


def tapped_maps(backbone: PreTrainedModel, config: Mask2FormerDinov3Config, pixel_values: Tensor) -> list[Tensor]:
    """Four feature maps of pixel_values (B, C, H, W), H and W multiples of 32.

    Of a ViT (B, D, h, w) after each tapped block, without class and register tokens, normed if `backbone_norm`; of a
    pyramid network its maps at strides 4, 8, 16, 32.
    """
    if config.neck == "none":
        return list(backbone(pixel_values).feature_maps)
    grid = (pixel_values.shape[2] // VIT_PATCH_SIZE, pixel_values.shape[3] // VIT_PATCH_SIZE)
    prefix = 1 + config.backbone_config.num_register_tokens
    taps = list(config.backbone_taps)
    # transformers' own forward keeps the outputs of all blocks by hooks: more memory, and several compiled graphs.
    hidden_states = backbone.embeddings(pixel_values.to(backbone.dtype))  # (B, 1+R+h*w, D)
    rotations = backbone.rope_embeddings(pixel_values)
    maps = []
    for number, block in enumerate(backbone.model.layer[: taps[-1]], start=1):
        hidden_states = block(hidden_states, position_embeddings=rotations)
        if number in taps:
            tokens = backbone.norm(hidden_states) if config.backbone_norm else hidden_states
            feature_map = tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)  # (B, D, h, w), channels last
            maps += [feature_map] * taps.count(number)
    return maps


def is_frozen(backbone: PreTrainedModel) -> bool:
    """Whether no parameter of the backbone is trained (LoRA adapters in it count as trained)."""
    return not any(parameter.requires_grad for parameter in backbone.parameters())


def grad_mode(backbone: PreTrainedModel) -> torch.set_grad_enabled:
    """Context that records no graph and stores no activations if the backbone is frozen."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and not is_frozen(backbone))


def backbone_blocks(backbone: PreTrainedModel) -> list[list[nn.Module]]:
    """Modules of the embeddings, of every block, and of the final norms: depth + 2 lists.

    Every parameter of the backbone is in exactly one list. Embeddings are all modules before the first block (of a ViT
    also the position embedding, of a ConvNeXt the stem). In a pyramid, blocks are counted through the stages, and the
    downsampling between two stages belongs to the block after it. A ConvNeXt has no final norm, a Swin one per map.
    """
    model_type = backbone.config.model_type
    if model_type == "dinov3_vit":
        return [
            [backbone.embeddings, backbone.rope_embeddings],
            *([block] for block in backbone.model.layer),
            [backbone.norm],
        ]
    if model_type == "dinov3_convnext":
        stages = [(stage.downsample_layers, stage.layers) for stage in backbone.model.stages]
        norms = []
    else:
        layers = backbone.swin.encoder.layers
        reductions = [backbone.swin.embeddings, *(layer.downsample for layer in layers[:-1])]
        stages = [(reduction, layer.blocks) for reduction, layer in zip(reductions, layers, strict=True)]
        norms = [backbone.swin.layernorm, backbone.hidden_states_norms]
    parts = [[stages[0][0]]]
    for number, (reduction, blocks) in enumerate(stages):
        first, *others = blocks
        parts += [[reduction, first] if number else [first], *([block] for block in others)]
    return [*parts, norms]
