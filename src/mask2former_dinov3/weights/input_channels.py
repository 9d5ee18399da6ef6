"""Networks trained on RGB for images of another number of channels: their first convolutions, widened by one rule.

The rule: the first three channels keep the filters of red, green and blue, every further channel gets the mean of the
three, and all are multiplied by 3 / C. An image with the same values in all channels, as grey is in RGB, then gives
exactly the response that it gave before, so the layers behind see what they were trained on. Fewer than three channels
all get the mean, also times 3 / C.

The rule follows timm's `adapt_input_conv` (timm/models/_manipulate.py): the same factor 3 / C, and for one channel the
same result, the sum. timm repeats red, green and blue in turn for further channels instead; that keeps the response to
grey for multiples of three only, and gives the fourth channel the filters of red, although nothing says that infrared
or depth is more like red than like blue.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import OptionError
from .mask2former import TrainedModel

RGB = 3
FIRST_FILTERS = (
    "embeddings.patch_embeddings.weight",  # DINOv3 ViT
    "model.stages.0.downsample_layers.0.weight",  # DINOv3 ConvNeXt
    "swin.embeddings.patch_embeddings.projection.weight",  # Swin
)
"""Names, in a backbone, of the weights (O, C, h, w) that take the image."""
STEM_FILTERS = "neck.stem.0.0.weight"  # of the adapter neck, which takes the image, too

_Config = TypeVar("_Config", bound=PreTrainedConfig)


def widen_filters(filters: Tensor, channels: int) -> Tensor:
    """Filters for RGB (O, 3, h, w) as filters (O, channels, h, w), by the rule above; unchanged for three channels.

    Computed in float64, so that rounding does not depend on the number of channels.
    """
    if channels == RGB:
        return filters
    exact = filters.double()
    mean = exact.mean(1, keepdim=True)
    kept = exact if channels > RGB else exact[:, :0]
    widened = torch.cat([kept, mean.expand(-1, channels - kept.shape[1], -1, -1)], 1) * (RGB / channels)
    return widened.to(filters.dtype).contiguous()


def with_channels(config: _Config, channels: int) -> _Config:
    """The configuration of a backbone for so many channels; the same object if it has them."""
    if config.num_channels == channels:
        return config
    changed = copy.deepcopy(config)
    changed.num_channels = channels
    return changed


def widen_state(state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """A state dict for RGB, of a backbone or a whole model, for so many channels."""
    names = {*FIRST_FILTERS, *(f"backbone.{name}" for name in FIRST_FILTERS), STEM_FILTERS}
    return {key: widen_filters(tensor, channels) if key in names else tensor for key, tensor in state.items()}


def widen_backbone(backbone: PreTrainedModel, channels: int) -> PreTrainedModel:
    """A backbone trained on RGB for so many channels; the same object if it takes them already.

    Raises OptionError for a backbone that was made for another number of channels than these and three.
    """
    own = int(backbone.config.num_channels)
    if own == channels:
        return backbone
    _check_rgb("backbone", own, channels)
    widened: PreTrainedModel = type(backbone)._from_config(with_channels(backbone.config, channels))
    widened.load_state_dict(widen_state(backbone.state_dict(), channels))
    return widened


def widen_trained(found: TrainedModel, channels: int) -> TrainedModel:
    """A trained model for so many channels; the same object if it takes them already. Raises as `widen_backbone`."""
    own = found.config.num_channels
    if own == channels:
        return found
    _check_rgb("head", own, channels)
    config = copy.deepcopy(found.config)
    config.backbone_config.num_channels = channels
    return replace(found, config=config, state=widen_state(found.state, channels))


def _check_rgb(option: str, own: int, channels: int) -> None:
    if own != RGB:
        expected = f"one for images of {channels} channels, or of 3, which is widened"
        raise OptionError(option, expected, f"one for {own} channels", "choose the same channels")
