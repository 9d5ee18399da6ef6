"""Shapes, padding, gradients and refusals of the whole network."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForUniversalSegmentation,
    DINOv3ConvNextConfig,
    SwinConfig,
)

import mask2former_dinov3.model
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.model.kernels.convolution import Conv2d
from mask2former_dinov3.model.padding import real_pixels
from support.models import HEAD, labels, padded_mask, small_model


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_conv2d__has_the_gradients_of_the_library(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours = Conv2d(5, 7, 3, padding=1)
    maps = torch.randn(2, 5, 9, 8).contiguous(memory_format=memory_format).requires_grad_()
    wanted = (maps, ours.weight)
    got = ours(maps)
    expected = F.conv2d(maps, ours.weight, padding=1)
    assert got.grad_fn is not None
    assert "Convolution" in got.grad_fn.name()
    assert torch.equal(got, expected)
    grad = torch.randn_like(got)
    for mine, theirs in zip(*(torch.autograd.grad(x, wanted, grad) for x in (got, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("neck", "stride"), [("pyramid", 4), ("plain", 16), ("none", 4), ("adapter", 4), ("seeds", 2)])
def test_forward__shapes(neck: str, stride: int) -> None:
    model = small_model(neck).eval()
    pixel_values = torch.randn(2, 3, 64, 96)
    maps = model.feature_maps(pixel_values)
    strides = {"plain": [16] * 4, "seeds": [2, 4, 8, 16, 32]}.get(neck, [4, 8, 16, 32])
    assert [tuple(x.shape[2:]) for x in maps] == [(64 // s, 96 // s) for s in strides]
    output = model(pixel_values, output_auxiliary_logits=True)
    assert model.config.mask_stride == stride
    assert output.class_queries_logits.shape == (2, 7, 4)
    assert output.masks_queries_logits.shape == (2, 7, 64 // stride, 96 // stride)
    assert len(output.auxiliary_logits) == 3
    from_head = model.head(maps)
    assert torch.equal(from_head.masks_queries_logits, output.masks_queries_logits)


def test_forward__a_convnext_is_tapped_at_four_stages() -> None:
    backbone = DINOv3ConvNextConfig(hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1])
    model = Mask2FormerDinov3ForInstanceSegmentation(
        Mask2FormerDinov3Config(backbone_config=backbone, neck="none", **HEAD)
    )
    maps = model.feature_maps(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [(32, 16, 24), (64, 8, 12), (96, 4, 6), (128, 2, 3)]
    model(torch.randn(1, 3, 64, 96), **labels([2])).loss.backward()
    assert not [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]


def test_forward__makes_dense_masks_in_training_only_on_request() -> None:
    model = small_model().train()
    pixel_values = torch.randn(1, 3, 64, 96)
    assert model(pixel_values, **labels([2])).masks_queries_logits is None
    assert model(pixel_values, **labels([2]), output_masks=True).masks_queries_logits is not None
    assert model.eval()(pixel_values, **labels([2])).masks_queries_logits is not None


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("counts", [[3, 2], [0, 2], [0, 0], [9, 1]], ids=["usual", "one-empty", "empty", "too-many"])
@pytest.mark.parametrize("neck", ["pyramid", "plain", "none", "seeds"])
def test_backward__every_trainable_parameter_learns(neck: str, counts: list[int], frozen: bool) -> None:
    model = small_model(neck).train()
    if frozen:
        model.freeze_backbone()
    loss = model(torch.randn(2, 3, 64, 96), **labels(counts), pixel_mask=padded_mask(2, 64, 96, (64, 64))).loss
    assert torch.isfinite(loss)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name}: no gradient"
            assert torch.isfinite(parameter.grad).all(), f"{name}: gradient not finite"
        else:
            assert parameter.grad is None, f"{name}: frozen, but has a gradient"
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert ("backbone" in trained) == (not frozen)
    if sum(counts):  # a gradient that is zero everywhere would also be "finite"
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        learned = gradients["head.transformer_decoder.mask_embedder.0.weight"]
        assert learned is not None
        assert learned.abs().sum() > 0


def test_construction__freezes_what_no_loss_reaches() -> None:
    def frozen(model: torch.nn.Module) -> set[str]:
        return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}

    normed = frozen(small_model())
    assert "backbone.embeddings.mask_token" in normed
    assert "backbone.norm.weight" not in normed
    assert any(name.startswith("backbone.model.layer.4.") for name in normed)
    assert {"backbone.norm.weight", "backbone.norm.bias"} <= frozen(small_model(backbone_norm=False))
    assert frozen(small_model("none")) == {"backbone.swin.layernorm.weight", "backbone.swin.layernorm.bias"}


def test_freeze_backbone__keeps_it_in_eval_and_without_graph() -> None:
    model = small_model()
    model.freeze_backbone()
    model.train()
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())
    pixel_values = torch.randn(1, 3, 64, 64)
    first, second = (model.feature_maps(pixel_values) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("neck", ["pyramid", "plain", "none", "seeds"])
@pytest.mark.parametrize("real", [(64, 40), (32, 96), (17, 33)])
def test_head__noise_in_the_padding_changes_no_real_pixel(neck: str, real: tuple[int, int]) -> None:
    model = small_model(neck).eval()
    pixel_mask = padded_mask(2, 64, 96, real)
    with torch.no_grad():
        maps = [x * 3 for x in model.feature_maps(torch.randn(2, 3, 64, 96))]
        noisy = []
        for feature_map in maps:
            padding = ~real_pixels(feature_map, pixel_mask)[:, None]
            assert padding.any()
            noisy.append(torch.where(padding, torch.randn_like(feature_map) * 100, feature_map))
        clean, disturbed = model.head(maps, pixel_mask), model.head(noisy, pixel_mask)
        unmasked = model.head(noisy)
    inside = real_pixels(clean.masks_queries_logits, pixel_mask)[:, None].expand_as(clean.masks_queries_logits)
    assert torch.equal(clean.class_queries_logits, disturbed.class_queries_logits)
    assert torch.equal(clean.masks_queries_logits[inside], disturbed.masks_queries_logits[inside])
    assert not torch.allclose(clean.class_queries_logits, unmasked.class_queries_logits)


def test_attention_mask__an_empty_query_looks_at_real_pixels_only() -> None:
    from mask2former_dinov3.model.transformer_decoder import attention_mask

    logits = torch.tensor([2.0, -2.0])[None, :, None].expand(1, 2, 6)  # one mask everywhere, one nowhere
    valid = torch.tensor([[[True, True, False], [True, True, False]]])
    allowed = attention_mask(logits, valid)
    assert allowed.tolist() == [[[True, True, False] * 2] * 2]


@pytest.mark.parametrize("neck", ["pyramid", "seeds"])
def test_save_and_load__gives_the_same_model(tmp_path: Path, neck: str) -> None:
    model = small_model(neck, id2label={0: "a", 1: "b", 2: "c"}, category_ids=[7, 2, 90]).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, Mask2FormerDinov3ForInstanceSegmentation)
    assert AutoConfig.from_pretrained(tmp_path).category_ids == [7, 2, 90]
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    pixel_values = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(pixel_values).masks_queries_logits, loaded(pixel_values).masks_queries_logits)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}


@pytest.mark.parametrize("neck", ["pyramid", "seeds"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast__loss_is_close_to_float32(dtype: torch.dtype, neck: str) -> None:
    model = small_model(neck).eval()
    pixel_values = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.manual_seed(1)
        full = model(pixel_values, **labels([3, 2])).loss
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype):
            half = model(pixel_values, **labels([3, 2])).loss
    assert half.dtype == torch.float32
    assert abs(half - full) / full < 0.02


def test_forward__refuses_bad_input() -> None:
    model = small_model().eval()
    with pytest.raises(ValueError, match="a height that is a multiple of 32, got 60; 32 and 64 are the nearest"):
        model(torch.randn(1, 3, 60, 64))
    with pytest.raises(ValueError, match="pixel_mask: expected shape"):
        model(torch.randn(1, 3, 64, 64), pixel_mask=torch.ones(1, 32, 32))
    with pytest.raises(ValueError, match="mask_labels, class_labels: expected both or neither, got one of them"):
        model(torch.randn(1, 3, 64, 96), mask_labels=labels([1])["mask_labels"])
    with pytest.raises(ValueError, match=r"mask_labels\[0\]: expected shape \(1, 64, 64\)"):
        model(torch.randn(1, 3, 64, 64), **labels([1]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"neck": "adaptor"}, "pyramid, adapter, plain, none, got 'adaptor'"),
        ({"neck": "none"}, "backbone of type dinov3_vit, got 'none'; use pyramid, adapter or plain"),
        ({"backbone_taps": [1, 2, 3]}, "four rising block numbers in 1..12"),
        ({"backbone_taps": [3, 6, 9, 13]}, "four rising block numbers in 1..12"),
        (
            {"hidden_dim": 100},
            r"hidden_dim: expected a multiple of 32 \(group norm\) and of num_attention_heads=8, got 100",
        ),
        ({"num_labels": 2, "category_ids": [1]}, "category_ids: expected 2"),
        (
            {"decoder_layers": 0},
            r"decoder_layers: expected 1 or more \(the initial prediction\), a whole number, got 0",
        ),
        ({"encoder_layers": -1}, "encoder_layers: expected 0 or more, a whole number, got -1"),
        ({"num_queries": -3}, "num_queries: expected 1 or more, a whole number, got -3"),
        ({"num_queries": 2.5}, "num_queries: expected 1 or more, a whole number, got 2.5"),
        ({"hidden_dim": "a"}, "hidden_dim: expected 1 or more, a whole number, got 'a'"),
        ({"hidden_dim": None}, "hidden_dim: expected 1 or more, a whole number, got None"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected 1 or more"),
        (
            {"num_labels": 3, "label_weights": [1, 2]},
            r"label_weights: expected 3 numbers above 0, one per label, got \[1, 2\]",
        ),
        (
            {"num_labels": 3, "label_weights": [1, 0, 2]},
            r"label_weights: expected 3 numbers above 0, one per label, got \[1, 0, 2\]",
        ),
        ({"class_weight": "a"}, "class_weight: expected a number of 0 or more, got 'a'"),
        ({"backbone_norm": "a"}, "backbone_norm: expected true or false, got 'a'"),
        ({"backbone_taps": 3}, "backbone_taps: expected a list of positive whole numbers, got 3"),
        ({"category_ids": ["a"], "num_labels": 1}, r"category_ids: expected a list of whole numbers, got \['a'\]"),
        ({"id2label": []}, r"id2label: expected an object of label numbers and names, got \[\]"),
        ({"id2label": {"a": "b"}}, "id2label: expected an object of label numbers and names"),
        ({"activation_function": "zz"}, "activation_function: expected the name of an activation in transformers"),
        ({"backbone_config": []}, r"backbone_config: expected an object, got \[\]"),
        ({"backbone_config": {"model_type": "zz"}}, "backbone_config: expected one of dinov3_vit, .*, got 'zz'"),
        (
            {"backbone_config": {"model_type": "dinov3_vit", "num_attention_heads": 0}},
            "backbone_config.num_attention_heads: expected at least 1, got 0",
        ),
        ({"query_init": "seed"}, "query_init: expected learned or seeds, got 'seed'"),
        ({"matching": "pixel"}, "matching: expected points or pixels, got 'pixel'"),
        ({"mask_loss": "boxes"}, "mask_loss: expected points or pixels, got 'boxes'"),
        ({"mask_stride": 8}, "mask_stride: expected 4 or 2 with neck='pyramid', got 8"),
        ({"backbone_config": {"model_type": "resnet"}}, "got 'resnet'"),
    ],
)
def test_config__refuses_by_name(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mask2FormerDinov3Config(**kwargs)


def test_from_pretrained__leaves_out_what_no_gradient_can_reach(model_folder: Path) -> None:
    """transformers makes new parameters of what it reads; several processes would wait for the gradient of these."""
    built = Mask2FormerDinov3ForInstanceSegmentation(Mask2FormerDinov3Config.from_pretrained(model_folder))
    alone = Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(model_folder)
    with_report, _ = Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(model_folder, output_loading_info=True)
    frozen = [{n for n, p in one.named_parameters() if not p.requires_grad} for one in (built, alone, with_report)]
    assert frozen == [{"backbone.embeddings.mask_token"}] * 3


@pytest.mark.parametrize(
    ("backbone", "neck"),
    [
        (None, "pyramid"),
        (SwinConfig(embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]), "none"),
        (DINOv3ConvNextConfig(hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1]), "none"),
    ],
)
def test_load_state_dict__takes_the_names_of_a_saved_file(backbone: Any, neck: str, tmp_path: Path) -> None:
    config = Mask2FormerDinov3Config.preset(
        "tiny", neck=neck, **({} if backbone is None else {"backbone_config": backbone})
    )
    first, second = Mask2FormerDinov3ForInstanceSegmentation(config), Mask2FormerDinov3ForInstanceSegmentation(config)
    first.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() != first.state_dict().keys()  # transformers renames when it saves
    second.load_state_dict(stored)
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in second.state_dict().items())
    second.load_state_dict(first.state_dict())
    missing = next(name for name in stored if name.startswith("head"))
    del stored[missing]
    with pytest.raises(RuntimeError, match=missing):
        second.load_state_dict(stored)


# Part of the room -> the parts that it may import; the rest are the modules beside `modeling`.
PARTS = {"kernels": {"kernels"}, "parts": {"kernels", "parts"}, "criterion": {"kernels", "parts", "criterion"}}


def test_modules__kernels_are_below_the_parts_and_the_criterion_above_them() -> None:
    room = Path(mask2former_dinov3.model.__file__).parent
    names = {"modeling": "modeling", "kernels": "kernels", "criterion": "criterion"}
    entered: dict[str, set[str]] = {part: set() for part in PARTS}
    for path in room.rglob("*.py"):
        part = names.get(path.parent.name, "parts") if path.parent != room else names.get(path.stem, "parts")
        if part == "modeling" or path == room / "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                own = path.parent.parts[: len(path.parent.parts) - node.level + 1]
                target = Path(*own, *(node.module or "").split(".")).relative_to(room)
                entered[part].add(names.get(target.parts[0], "parts"))
    assert entered == PARTS
