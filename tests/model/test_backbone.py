"""Taps equal transformers' hidden states; presets, and models on a backbone from a folder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import DINOv3ViTModel, SwinBackbone, SwinConfig

from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.model.backbone import CheckpointedConvNextLayer, tapped_maps
from mask2former_dinov3.weights import from_backbone
from support.models import randomised, small_convnext, small_vit


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_taps__equal_dinov3_hidden_states(size: tuple[int, int], norm: bool) -> None:
    vit = randomised(DINOv3ViTModel(small_vit()))
    config = Mask2FormerDinov3Config(backbone_config=vit.config, backbone_norm=norm)
    assert config.backbone_taps == [2, 4, 6, 8]
    pixel_values = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = tapped_maps(vit, config, pixel_values)
        # The reference: block after block by hand, and the model's own last state.
        tokens = vit.embeddings(pixel_values)
        position = vit.rope_embeddings(pixel_values)
        expected = []
        for number, block in enumerate(vit.model.layer, start=1):
            tokens = block(tokens, position_embeddings=position)
            if number in (2, 4, 6, 8):
                expected.append(vit.norm(tokens) if norm else tokens)
        last = vit(pixel_values).last_hidden_state
    h, w = size[0] // 16, size[1] // 16
    for got, want in zip(maps, expected, strict=True):
        assert got.shape == (2, 64, h, w)
        torch.testing.assert_close(got.flatten(2).transpose(1, 2), want[:, 5:], atol=1e-5, rtol=0)
    if norm:
        torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), last[:, 5:], atol=1e-5, rtol=0)


def test_presets__have_the_shapes_of_the_paper() -> None:
    for name, width, depth, heads in (("smallplus", 384, 12, 6), ("large", 1024, 24, 16), ("tiny", 192, 4, 3)):
        backbone = Mask2FormerDinov3Config.preset(name).backbone_config
        assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (width, depth, heads)
        assert backbone.num_register_tokens == 4
    assert Mask2FormerDinov3Config.preset("smallplus").backbone_config.use_gated_mlp
    assert Mask2FormerDinov3Config.preset("large").backbone_taps == [6, 12, 18, 24]
    with pytest.raises(ValueError, match="tiny, smallplus, large"):
        Mask2FormerDinov3Config.preset("huge")


def test_tiny_preset__fits_in_16_mb_of_fp16() -> None:
    model = Mask2FormerDinov3ForInstanceSegmentation(Mask2FormerDinov3Config.preset("tiny"))
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 <= 16e6


def test_from_backbone__takes_the_weights_of_a_local_folder(tmp_path: Path) -> None:
    vit = randomised(DINOv3ViTModel(small_vit()))
    vit.save_pretrained(tmp_path / "vit")
    model = from_backbone(str(tmp_path / "vit"), num_labels=3)
    assert model.config.backbone_source == str(tmp_path / "vit")
    assert model.config.num_labels == 3
    for name, tensor in vit.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name


def test_from_backbone__makes_swin_a_pyramid(tmp_path: Path) -> None:
    swin = SwinBackbone(SwinConfig(embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4))
    swin.save_pretrained(tmp_path)
    model = from_backbone(str(tmp_path), num_labels=2).eval()
    assert model.config.neck == "none"
    assert model(torch.randn(1, 3, 64, 64)).masks_queries_logits.shape == (1, 100, 16, 16)


def test_convnext__recomputes_its_blocks_when_asked_and_gives_the_same_gradients() -> None:
    """transformers' ConvNeXt has no checkpointing of its own."""
    torch.manual_seed(0)
    config = Mask2FormerDinov3Config(backbone_config=small_convnext(), neck="none", num_queries=8, encoder_layers=1)
    model = Mask2FormerDinov3ForInstanceSegmentation(config).train()
    labels = {"mask_labels": [torch.ones(1, 64, 64, dtype=torch.uint8)], "class_labels": [torch.tensor([0])]}
    pixel_values = torch.randn(1, 3, 64, 64)

    def gradients() -> tuple[int, dict[str, torch.Tensor]]:
        counted = 0

        def count(*_: object) -> None:
            nonlocal counted
            counted += 1

        layers = [m for m in model.backbone.modules() if isinstance(m, CheckpointedConvNextLayer)]
        assert len(layers) == 5
        hooks = [layer.depthwise_conv.register_forward_hook(count) for layer in layers]
        model.zero_grad()
        torch.manual_seed(1)  # of the random points
        model(pixel_values, **labels).loss.backward()
        for hook in hooks:
            hook.remove()
        return counted, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    once, plain = gradients()
    model.activation_checkpointing_enable()
    twice, checkpointed = gradients()
    assert (once, twice) == (5, 10)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4)
    copy.deepcopy(model)  # as for averaged weights
