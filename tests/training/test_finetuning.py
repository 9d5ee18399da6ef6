"""Which weights move and at which rate, in a ViT, a ConvNeXt and a Swin; adapters merged, saved and taken up again."""

from __future__ import annotations

import copy
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DINOv3ConvNextConfig, DINOv3ViTConfig, SwinConfig

from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.errors import MissingExtraError, OptionError
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.model.backbone import backbone_blocks
from mask2former_dinov3.model_folder.folder import save_model_folder
from mask2former_dinov3.training.ema import AveragedWeights
from mask2former_dinov3.training.finetuning import choose_trained
from mask2former_dinov3.training.optimizer import build_optimizer
from mask2former_dinov3.weights.lora import adapter_state, merged_state, unmerged_state
from support.models import HEAD, labels, saved_bytes

FAMILIES = ("vit", "convnext", "swin")
# Where each weight is: 0 the embeddings, then the blocks as an image passes them, last the norms.
BLOCKS = {
    "vit": {"embeddings.": 0, **{f"model.layer.{i}.": i + 1 for i in range(5)}, "norm.": 6},
    "convnext": {
        "model.stages.0.downsample_layers.": 0,
        "model.stages.0.layers.0.": 1,
        "model.stages.1.downsample_layers.": 2,
        "model.stages.1.layers.0.": 2,
        "model.stages.2.downsample_layers.": 3,
        "model.stages.2.layers.0.": 3,
        "model.stages.2.layers.1.": 4,
        "model.stages.3.downsample_layers.": 5,
        "model.stages.3.layers.0.": 5,
    },
    "swin": {
        "swin.embeddings.": 0,
        "swin.encoder.layers.0.blocks.0.": 1,
        "swin.encoder.layers.0.downsample.": 2,
        "swin.encoder.layers.1.blocks.0.": 2,
        "swin.encoder.layers.1.downsample.": 3,
        "swin.encoder.layers.2.blocks.0.": 3,
        "swin.encoder.layers.2.blocks.1.": 4,
        "swin.encoder.layers.2.downsample.": 5,
        "swin.encoder.layers.3.blocks.0.": 5,
        "swin.layernorm.": 6,
        "hidden_states_norms.": 6,
    },
}
TARGETS = {
    "vit": {f"model.layer.{i}.attention.{name}" for i in range(4) for name in ("q_proj", "v_proj")},  # 5: no tap
    "convnext": {f"model.stages.{stage}.pointwise_conv2" for stage in ("0.layers.0", "1.layers.0")}
    | {f"model.stages.{stage}.pointwise_conv2" for stage in ("2.layers.0", "2.layers.1", "3.layers.0")},
    "swin": {f"swin.encoder.layers.{stage}.attention.v_proj" for stage in ("0.blocks.0", "1.blocks.0", "2.blocks.0")}
    | {"swin.encoder.layers.2.blocks.1.attention.v_proj", "swin.encoder.layers.3.blocks.0.attention.v_proj"}
    | {f"swin.encoder.layers.{stage}.downsample.reduction" for stage in range(3)},
}
LORA = {"vit": "q_proj,v_proj", "convnext": "pointwise_conv2", "swin": ["v_proj", "reduction"]}


def family_model(family: str, drop_path: float = 0.0) -> Mask2FormerDinov3ForInstanceSegmentation:
    """Five blocks each; the ViT's last one is behind the last tap."""
    torch.manual_seed(0)
    stages = {"depths": [1, 1, 2, 1], "drop_path_rate": drop_path}
    backbone: DINOv3ViTConfig | DINOv3ConvNextConfig | SwinConfig
    options: dict[str, Any] = {"neck": "none"}
    if family == "vit":
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 2}
        backbone = DINOv3ViTConfig(**sizes, num_register_tokens=4, drop_path_rate=drop_path)
        options = {"backbone_taps": [1, 2, 3, 4]}
    elif family == "convnext":
        backbone = DINOv3ConvNextConfig(hidden_sizes=[32, 64, 96, 128], layer_scale_init_value=0.5, **stages)
    else:
        backbone = SwinConfig(embed_dim=32, num_heads=[1, 2, 4, 8], window_size=4, **stages)
    config = Mask2FormerDinov3Config(backbone_config=backbone, **{**HEAD, **options})
    return Mask2FormerDinov3ForInstanceSegmentation(config)


def config_of(**options: Any) -> TrainConfig:
    fixed = {"dataset_name": "x", "output_dir": "y", "weight_decay": 0.0, "adam_epsilon": 1e-17}
    return load_config(None, {**fixed, "learning_rate": 1e-2, **options})[0]


def tuned(family: str, **options: Any) -> tuple[Mask2FormerDinov3ForInstanceSegmentation, TrainConfig]:
    model, config = family_model(family), config_of(**options)
    choose_trained(model, config)
    return model.train(), config


def moved(model: Mask2FormerDinov3ForInstanceSegmentation, config: TrainConfig) -> dict[str, float]:
    """Name -> how far a weight's fastest element has moved after one step of AdamW, which is the rate."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    model(torch.randn(2, 3, 64, 96), **labels([3, 2])).loss.backward()
    optimizer.step()
    distances = {name: float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters()}
    return {name: distance for name, distance in distances.items() if distance}


def block_of(family: str, name: str) -> int:
    (found,) = {number for start, number in BLOCKS[family].items() if name.startswith(f"backbone.{start}")}
    return found


def reachable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def randomise_adapters(model: nn.Module) -> None:
    """Half of their weights start at zero, and the other half then has no gradient."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn_like(parameter))


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_blocks__every_weight_is_in_one_in_the_order_of_an_image(family: str) -> None:
    backbone = family_model(family).backbone
    names = {id(parameter): f"backbone.{name}" for name, parameter in backbone.named_parameters()}
    parts = [[names[id(p)] for module in part for p in module.parameters()] for part in backbone_blocks(backbone)]
    assert sorted(name for part in parts for name in part) == sorted(names.values())
    assert len(parts) == 7
    for number, part in enumerate(parts):
        assert {block_of(family, name) for name in part} <= {number}


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_decay__each_block_moves_at_its_rate(family: str) -> None:
    model, config = tuned(family, layer_decay=0.5, backbone_lr_multiplier=0.5)
    expected = {
        name: 1e-2 * 0.5 * 0.5 ** (6 - block_of(family, name)) if name.startswith("backbone.") else 1e-2
        for name in reachable(model)
    }
    found = moved(model, config)
    assert found == pytest.approx(expected, rel=0.01)
    assert {block_of(family, name) for name in found if name.startswith("backbone.")} >= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_blocks__the_others_move_at_one_rate(family: str) -> None:
    every = reachable(family_model(family))
    model, config = tuned(family, frozen_blocks=2)
    expected = {
        name: 1e-3 if name.startswith("backbone.") else 1e-2
        for name in every
        if not name.startswith("backbone.") or block_of(family, name) > 2
    }
    assert moved(model, config) == pytest.approx(expected, rel=0.01)
    assert {block_of(family, name) for name in every - expected.keys()} == {0, 1, 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_blocks__drop_no_path_and_store_nothing(family: str) -> None:
    """What leaves the last frozen block depends neither on the mode nor on chance, and has no graph."""

    def states(frozen: int) -> list[Tensor]:
        model = family_model(family, drop_path=0.7)
        model.freeze_backbone(frozen) if frozen else None
        found: list[Tensor] = []
        for part in backbone_blocks(model.backbone)[3:5]:
            part[-1].register_forward_hook(lambda *call: found.append(call[2][0] if family == "swin" else call[2]))
        for mode in (True, True, False):
            model.train(mode).feature_maps(pixel_values)
        return found

    pixel_values = torch.randn(4, 3, 64, 64)
    first, behind, second, _, evaluated, _ = states(3)
    assert torch.equal(first, second)
    assert torch.equal(first, evaluated)
    assert not first.requires_grad
    assert behind.requires_grad
    first, _, second, _, _, _ = states(0)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_blocks__less_is_kept_for_the_backward_pass(family: str) -> None:
    inputs = {"pixel_values": torch.randn(2, 3, 64, 96), **labels([3, 2])}
    kept = [saved_bytes(tuned(family, frozen_blocks=blocks)[0], **inputs)[0] for blocks in (0, 1, 3)]
    assert kept == sorted(set(kept), reverse=True)


def test_frozen_blocks__are_computed_once_where_others_are_computed_twice() -> None:
    model, _ = tuned("vit", frozen_blocks=2)
    model.activation_checkpointing_enable()
    calls: list[int] = []
    for number, block in enumerate(model.backbone.model.layer[:4], start=1):
        block.norm1.register_forward_hook(lambda *call, number=number: calls.append(number))
    model(torch.randn(2, 3, 64, 96), **labels([3, 2])).loss.backward()
    assert calls == [1, 2, 3, 4, 4, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_lora__adapters_move_at_the_heads_rate_and_nothing_else_of_the_backbone(family: str) -> None:
    head = {name for name in reachable(family_model(family)) if not name.startswith("backbone.")}
    model, config = tuned(family, lora_rank=4, lora_targets=LORA[family])
    randomise_adapters(model)
    adapters = {f"backbone.{layer}.lora_{part}.default.weight" for layer in TARGETS[family] for part in "AB"}
    assert moved(model, config) == pytest.approx(dict.fromkeys(head | adapters, 1e-2), rel=0.01)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if ".base_layer." in name)


def test_lora__starts_as_the_model_without_and_scales_by_alpha() -> None:
    pixel_values = torch.randn(1, 3, 64, 64)
    plain = family_model("vit").eval()
    for alpha, scale in ((None, 1.0), (6, 1.5)):
        model, _ = tuned("vit", lora_rank=4, lora_alpha=alpha)
        before = model.eval()(pixel_values).class_queries_logits
        torch.testing.assert_close(before, plain(pixel_values).class_queries_logits, atol=0, rtol=0)
        randomise_adapters(model)
        name = "backbone.model.layer.0.attention.q_proj"
        low, high = (model.get_parameter(f"{name}.lora_{part}.default.weight") for part in "AB")
        weight = merged_state(model)[f"{name}.weight"]
        torch.testing.assert_close(weight, plain.get_parameter(f"{name}.weight") + scale * high @ low)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_save_model_folder__merges_adapters_and_leaves_the_model_as_it_is(
    family: str, averaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tuned(family, lora_rank=4, lora_targets=LORA[family])
    average = AveragedWeights(model, 0.5)
    randomise_adapters(model)
    average.update(100)
    if averaged:
        model = average.model
    before = copy.deepcopy(model.state_dict())
    pixel_values = torch.randn(1, 3, 64, 96)
    expected = model.eval()(pixel_values)
    save_model_folder(model, Mask2FormerDinov3ImageProcessor({"height": 64, "width": 64}), tmp_path / "best", {})
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    plain = family_model(family)
    plain.save_pretrained(tmp_path / "plain")
    saved, usual = (load_file(tmp_path / name / "model.safetensors") for name in ("best", "plain"))
    assert saved.keys() == usual.keys()
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails
    loaded = Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(tmp_path / "best").eval()
    found = loaded(pixel_values)
    torch.testing.assert_close(found.class_queries_logits, expected.class_queries_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.masks_queries_logits, expected.masks_queries_logits, atol=1e-4, rtol=1e-5)
    untrained = plain.eval()(pixel_values).class_queries_logits
    assert not torch.allclose(found.class_queries_logits, untrained, atol=1e-4, rtol=0)


def test_unmerged_state__is_the_state_before() -> None:
    model, _ = tuned("vit", lora_rank=2)
    randomise_adapters(model)
    again = unmerged_state(merged_state(model), adapter_state(model))
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    plain = family_model("vit")
    assert merged_state(plain).keys() == plain.state_dict().keys()
    assert adapter_state(plain) == {}


def test_lora__in_bf16_with_checkpointing_has_the_gradients_of_without() -> None:
    inputs = {"pixel_values": torch.randn(2, 3, 64, 96), **labels([3, 2])}
    kept = []
    for checkpointing in (False, True):
        model, _ = tuned("vit", lora_rank=4)
        randomise_adapters(model)
        if checkpointing:
            model.activation_checkpointing_enable()
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
        kept.append(saved_bytes(model, **inputs))
    (plain, gradients), (less, again) = kept
    assert less < 0.8 * plain
    assert gradients.keys() == again.keys() == reachable(model)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "pretrained", "trained", "said"),
    [
        ({}, True, False, "backbone: frozen"),
        ({}, False, True, "backbone: trained; 0 of its 5 blocks are frozen"),
        ({"freeze_backbone": True}, False, False, "backbone: frozen"),
        ({"frozen_blocks": 2}, True, True, "trained because of frozen_blocks; 2 of its 5 blocks are frozen"),
        ({"layer_decay": 0.8}, True, True, "trained because of layer_decay; 0 of its 5"),
        ({"layer_decay": 0.8, "frozen_blocks": 1}, True, True, "because of frozen_blocks and layer_decay; 1 of"),
        ({"frozen_blocks": 2, "freeze_backbone": False}, True, True, "backbone: trained; 2 of its 5"),
        ({"lora_rank": 2}, True, True, "backbone: frozen, with trained adapters of rank 2 on 8 of its layers"),
        ({"lora_rank": 2, "freeze_backbone": True}, True, True, "adapters of rank 2 on 8"),
    ],
)
def test_choose_trained__resolves_null_and_says_so(
    options: dict[str, Any], pretrained: bool, trained: bool, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = family_model("vit")
    model.config.backbone_source = "somewhere" if pretrained else None
    with caplog.at_level(logging.INFO):
        choose_trained(model, config_of(**options))
    assert any(parameter.requires_grad for parameter in model.backbone.parameters()) == trained
    assert said in caplog.text


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("vit", {"frozen_blocks": 6}, "frozen_blocks: expected 0 to 5, the number of the backbone's blocks, got 6"),
        ("swin", {"frozen_blocks": 99}, "frozen_blocks: expected 0 to 5, the number of the backbone's blocks, got 99"),
        (
            "vit",
            {"lora_rank": 2, "lora_targets": "q_proj,qkv"},
            "lora_targets: expected names of linear layers of the backbone "
            "(down_proj, k_proj, o_proj, q_proj, up_proj, v_proj), got qkv",
        ),
        (
            "vit",
            {"lora_rank": 2, "lora_targets": "norm1"},
            "lora_targets: expected names of linear layers of the backbone "
            "(down_proj, k_proj, o_proj, q_proj, up_proj, v_proj), got norm1",
        ),
        (
            "convnext",
            {"lora_rank": 2},
            "lora_targets: expected names of linear layers of the backbone "
            "(pointwise_conv1, pointwise_conv2), got q_proj, v_proj",
        ),
    ],
)
def test_choose_trained__refuses_what_the_backbone_does_not_have(
    family: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        tuned(family, **options)


def test_lora__says_how_to_install_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"lora_rank needs peft.*pip install 'mask2former-dinov3\[peft\]'"):
        tuned("vit", lora_rank=2)
