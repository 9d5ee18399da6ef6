"""The backbone's blocks in the order in which an image passes them: what can be frozen and what has its own rate."""

from __future__ import annotations

from typing import Any

from torch import nn


def backbone_blocks(backbone: Any) -> list[list[nn.Module]]:
    """The modules of the embeddings, of every block, and of the final norms: depth + 2 lists for a depth of blocks.

    Every parameter of the backbone is in exactly one of them. Embeddings are all that comes before the first block
    (for a ViT also the position embedding, for a ConvNeXt its stem). In a pyramid, blocks are counted through the
    stages, and the reduction between two stages belongs to the block behind it. A ConvNeXt has no final norm, a Swin
    one for each of its maps.
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
