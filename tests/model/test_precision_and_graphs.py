"""Mixed precision over many steps, one graph for torch.compile, gradient checkpointing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.training.build_model import build_model
from support.models import labels, mean_of_50_losses, padded_mask, saved_bytes, small_model


@pytest.mark.long
def test_mixed_precision__trains_50_steps_close_to_float32() -> None:
    full = mean_of_50_losses(None)
    for dtype in (torch.bfloat16, torch.float16):
        assert abs(mean_of_50_losses(dtype) - full) / full < 0.02, dtype


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, within torch
@pytest.mark.parametrize("neck", ["pyramid", "seeds"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_compile__pixels_to_predictions_are_one_graph(train: bool, neck: str) -> None:
    # Every layer is compiled again: two blocks, and a layer of the decoder for each of the three feature maps.
    model = small_model(neck, encoder_layers=1, decoder_layers=3, backbone_taps=[1, 1, 2, 2])
    model.double()  # sums of squares have gradients in the thousands: float32 would only show rounding
    model.freeze_backbone()  # in train mode DINOv3 jitters its positions, and two calls would differ
    model.train(train)

    def predict(pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        predictions = model.head.predict(model.feature_maps(pixel_values), pixel_mask)
        return tuple(x for x in predictions if x is not None)

    inputs = torch.randn(2, 3, 64, 96, dtype=torch.float64), padded_mask(2, 64, 96, (64, 80))
    compiled = torch.compile(predict, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(train):
        for got, expected in zip(compiled(*inputs), predict(*inputs), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    if train:
        gradients = []
        for function in (compiled, predict):
            model.zero_grad()
            torch.stack([x.square().sum() for x in function(*inputs) if x.requires_grad]).sum().backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], atol=1e-8, rtol=1e-8)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile__a_trained_backbone_is_in_the_graph() -> None:
    model = small_model(encoder_layers=1, decoder_layers=1, backbone_taps=[1, 1, 1, 1]).train()
    compiled = torch.compile(
        lambda pixels: tuple(model.head.predict(model.feature_maps(pixels))[:3]), fullgraph=True, backend="aot_eager"
    )
    torch.stack([output.square().sum() for output in compiled(torch.randn(1, 3, 64, 64))]).sum().backward()
    gradient = model.backbone.model.layer[0].mlp.up_proj.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile__training_makes_one_graph_for_all_numbers_of_instances() -> None:
    model = small_model()
    model.freeze_backbone()
    model.train()
    large = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal large
        large += len(graph.graph.nodes) > 100
        return graph

    compiled: Any = torch.compile(model, backend=backend)
    pixel_values = torch.randn(2, 3, 64, 96)
    for counts in ([3, 2], [1, 4], [0, 0], [2, 9]):
        batch = labels(counts)
        losses = []
        for network in (model, compiled):
            torch.manual_seed(0)
            losses.append(network(pixel_values, **batch).loss)
        torch.testing.assert_close(*losses)
    assert large == 1


def test_gradient_checkpointing__same_gradients_from_less_memory() -> None:
    model = small_model().train()
    inputs = {"pixel_values": torch.randn(2, 3, 64, 96), **labels([3, 2])}
    plain, gradients = saved_bytes(model, **inputs)
    model.activation_checkpointing_enable()
    for part in (model.backbone, model.head.pixel_decoder, model.head.transformer_decoder):
        assert any(getattr(module, "gradient_checkpointing", False) for module in part.modules())
    less, again = saved_bytes(model, **inputs)
    assert less < 0.8 * plain
    assert gradients.keys() == again.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-5, rtol=1e-4)


def test_frozen_backbone__keeps_nothing_of_it() -> None:
    model = small_model().train()
    inputs = {"pixel_values": torch.randn(2, 3, 64, 96), **labels([3, 2])}
    trained, _ = saved_bytes(model, **inputs)
    model.freeze_backbone()
    frozen, gradients = saved_bytes(model, **inputs)
    assert frozen < 0.8 * trained
    assert not any(name.startswith("backbone.") for name in gradients)


def test_criterion__what_is_kept_grows_with_matched_instances() -> None:
    """Not with queries times layers: twice the queries change nothing, twice the instances at most double it."""

    def kept(queries: int, instances: int) -> int:
        model = small_model(num_queries=queries).train()
        pixel_values, batch = torch.randn(1, 3, 64, 96), labels([instances])
        found = model.head.predict(model.feature_maps(pixel_values))
        predictions = [tensor.detach().requires_grad_() for tensor in found[:3]]
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if all(tensor is not own for own in predictions) and tensor.shape[:1] == (instances,):
                sizes[id(tensor)] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.criterion(type(found)(*predictions), batch["mask_labels"], batch["class_labels"])
        return sum(sizes.values())

    base = kept(20, 5)
    assert base > 0
    assert kept(40, 5) == base
    assert kept(20, 10) == 2 * base


def test_build_model__the_option_switches_checkpointing_on(toy_dataset: Any) -> None:
    splits, _ = find_splits(toy_dataset)
    data = read_coco(splits["train"])
    for value in (False, True):
        config, _ = load_config(
            None,
            {
                "dataset_name": str(toy_dataset),
                "backbone": "tiny",
                "output_dir": "out",
                "gradient_checkpointing": value,
            },
        )
        model = build_model(config, data)
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) == value


def test_keep_freed_memory__is_had_on_linux_and_harmless_elsewhere() -> None:
    code = (
        "import sys, mask2former_dinov3.allocator as memory; kept = memory.keep_freed_memory();"
        "memory.sys = type('Sys', (), {'platform': 'win32'}); assert not memory.keep_freed_memory(); print(kept)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("True", "False")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("neck", ["pyramid", "plain", "seeds"])
def test_mask_features__are_channels_last_so_that_points_are_read_without_a_copy(neck: str, batch: int) -> None:
    """Convolutions and `sample_features` are far slower on anything else; one careless operation is enough."""
    model = small_model(neck)
    predictions = model.head.predict(model.feature_maps(torch.randn(batch, 3, 64, 96)))
    strides = predictions.mask_features.stride()
    assert strides[1] == 1
    assert strides[3] == predictions.mask_features.shape[1]
