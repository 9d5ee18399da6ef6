"""Weights for RGB widened for images of other channels: the rule, and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DINOv3ConvNextBackbone, DINOv3ViTModel, PreTrainedModel, SwinBackbone, SwinConfig

from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.weights import from_backbone, from_mask2former
from mask2former_dinov3.weights.input_channels import (
    FIRST_FILTERS,
    widen_backbone,
    widen_filters,
    widen_trained,
    with_channels,
)
from mask2former_dinov3.weights.mask2former import TrainedModel, rebuild
from support.models import hf_mask2former, small_convnext, small_model, small_vit

FILTERS = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def adapt_input_conv(channels: int, weight: torch.Tensor) -> torch.Tensor:
    """timm's rule (timm/models/_manipulate.py, v1.0), for a first convolution of three channels."""
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    if channels == 3:
        return weight
    repeat = -(-channels // 3)
    return weight.repeat(1, repeat, 1, 1)[:, :channels] * (3 / channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_widen_filters__keeps_the_response_to_equal_channels(channels: int) -> None:
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = torch.nn.functional.conv2d(grey.expand(-1, 3, -1, -1), FILTERS)
    after = torch.nn.functional.conv2d(grey.expand(-1, channels, -1, -1), widen_filters(FILTERS, channels))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_widen_filters__is_timms_rule_but_for_the_filters_of_further_channels() -> None:
    """The same for one and for three channels; for more, the first three and the sum over all of the mean."""
    assert torch.equal(widen_filters(FILTERS, 3), FILTERS)
    torch.testing.assert_close(widen_filters(FILTERS, 1), adapt_input_conv(1, FILTERS))
    for channels in (4, 5, 6):
        ours, theirs = widen_filters(FILTERS, channels), adapt_input_conv(channels, FILTERS)
        torch.testing.assert_close(ours[:, :3], theirs[:, :3])
        mean = (FILTERS.mean(1, keepdim=True) * 3 / channels).expand(-1, channels - 3, -1, -1)
        torch.testing.assert_close(ours[:, 3:], mean)
    torch.testing.assert_close(widen_filters(FILTERS, 6).sum(1), adapt_input_conv(6, FILTERS).sum(1))


def small_swin() -> SwinConfig:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return SwinConfig(embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, out_features=stages)


def backbones() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    convnext = small_convnext()
    convnext.out_features = ["stage1", "stage2", "stage3", "stage4"]
    return [DINOv3ViTModel(small_vit()), DINOv3ConvNextBackbone(convnext), SwinBackbone(small_swin())]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["vit", "convnext", "swin"])
def test_widen_backbone__gives_the_same_features_for_equal_channels(kind: int) -> None:
    """Every kind of backbone: one filter is widened, and it is the one that takes the image."""
    before = backbones()[kind].eval()
    after = widen_backbone(before, 5).eval()
    changed = [name for name, tensor in after.state_dict().items() if tensor.shape != before.state_dict()[name].shape]
    assert changed == [FIRST_FILTERS[kind]]
    assert after.config.num_channels == 5
    assert before.config.num_channels == 3
    grey = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = before(grey.expand(-1, 3, -1, -1)), after(grey.expand(-1, 5, -1, -1))
    torch.testing.assert_close(
        other[0] if kind == 0 else other.feature_maps[-1],
        one[0] if kind == 0 else one.feature_maps[-1],
        rtol=1e-4,
        atol=1e-4,
    )
    assert widen_backbone(before, 3) is before
    with pytest.raises(OptionError, match="backbone: expected one for images of 4 channels, or of 3, which is widened"):
        widen_backbone(after, 4)


def test_from_backbone__widens_pretrained_weights(tmp_path: Path) -> None:
    vit = backbones()[0]
    vit.save_pretrained(tmp_path)
    model = from_backbone(str(tmp_path), num_channels=4, num_labels=2)
    assert model.config.num_channels == 4
    expected = widen_filters(vit.state_dict()[FIRST_FILTERS[0]], 4)
    assert torch.equal(model.state_dict()[f"backbone.{FIRST_FILTERS[0]}"], expected)
    assert from_backbone("tiny", num_channels=7, num_labels=2).config.num_channels == 7


@pytest.mark.parametrize("neck", ["seeds", "none"])
def test_widen_trained__gives_the_same_logits_for_equal_channels(neck: str) -> None:
    """A whole model: the stem of the adapter takes the image as the backbone does."""
    model = small_model(neck).eval()
    found = TrainedModel(model.config, dict(model.state_dict()))
    wide = rebuild(widen_trained(found, 6))[0].eval()
    grey = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = (net(grey.expand(-1, count, -1, -1)) for net, count in ((model, 3), (wide, 6)))
    torch.testing.assert_close(other.class_queries_logits, one.class_queries_logits, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="pixel_values: expected 6 channels, got 3"):
        wide(torch.zeros(1, 3, 64, 64))
    with pytest.raises(OptionError, match="head: expected one for images of 5 channels"):
        widen_trained(TrainedModel(wide.config, {}), 5)


def test_from_mask2former__takes_a_backbone_of_more_channels() -> None:
    config: Any = with_channels(small_swin(), 5)
    model = from_mask2former(hf_mask2former(), backbone_config=config, neck="none").eval()
    with torch.no_grad():
        assert model(torch.randn(1, 5, 64, 64)).class_queries_logits.shape[0] == 1
