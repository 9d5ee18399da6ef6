"""Deformable attention: by hand, and the CPU's body against the plain one, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mask2former_dinov3.model.kernels import deformable_cpu
from mask2former_dinov3.model.kernels.deformable_attention import (
    STEPS_PER_PIXEL,
    MultiScaleDeformableAttention,
    deformable_attention,
    gather_attention,
    plain_attention,
)
from mask2former_dinov3.model.pixel_decoder import reference_points

SHAPES = [(2, 3), (5, 4), (7, 9)]


def made_inputs(
    dtype: torch.dtype = torch.float64, spread: float = 4.0, tokens: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """value (2, S, 2, 3), positions (2, S, 2, 3, 2, 2) around the middle of each level, many outside, and weights."""
    generator = torch.Generator().manual_seed(0)
    count = sum(h * w for h, w in SHAPES)
    tokens = count if tokens is None else tokens
    value = torch.randn(2, count, 2, 3, generator=generator, dtype=dtype)
    middle = torch.tensor([[w / 2, h / 2] for h, w in SHAPES], dtype=dtype)[:, None]
    positions = middle + spread * torch.randn(2, tokens, 2, 3, 2, 2, generator=generator, dtype=dtype)
    weights = torch.rand(2, tokens, 2, 6, generator=generator, dtype=dtype).softmax(-1).view(2, tokens, 2, 3, 2)
    return value.requires_grad_(), positions.requires_grad_(), weights.requires_grad_()


@pytest.mark.parametrize("body", [plain_attention, deformable_attention])
def test_deformable_attention__by_hand(body: Callable[..., Tensor]) -> None:
    """One head, one point, weight 1: a sample at a pixel's centre is the pixel, between two their mean, outside 0."""
    value = torch.arange(6.0).view(1, 6, 1, 1)  # one level of 2 x 3: 0 1 2 / 3 4 5
    positions = torch.tensor([[1.5, 0.5], [1.0, 0.5], [6.0, 1.0], [0.0, 0.5]]).view(1, 4, 1, 1, 1, 2)
    output = body(value, [(2, 3)], positions, torch.ones(1, 4, 1, 1, 1))
    torch.testing.assert_close(output.flatten(), torch.tensor([1.0, 0.5, 0.0, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tokens", [None, 5], ids=["all-tokens", "few-queries"])
def test_gather_attention__equals_the_plain_form(tokens: int | None) -> None:
    """At positions in whole units, many of them outside."""
    value, positions, weights = made_inputs(tokens=tokens)
    whole = (positions * STEPS_PER_PIXEL).round().long()
    got = gather_attention(value, SHAPES, whole, weights)
    torch.testing.assert_close(
        got, plain_attention(value, SHAPES, whole.double() / STEPS_PER_PIXEL, weights), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("tokens", [None, 5], ids=["all-tokens", "few-queries"])
def test_bag_attention__equals_the_plain_form_with_its_gradients(
    tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deformable_cpu, "ATTENTION_TOKENS", 16)
    inputs = made_inputs(tokens=tokens)
    expected, got = (
        plain_attention(inputs[0], SHAPES, *inputs[1:]),
        deformable_attention(inputs[0], SHAPES, *inputs[1:]),
    )
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    grad = torch.randn_like(expected)
    theirs, ours = (torch.autograd.grad(output, inputs, grad) for output in (expected, got))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_bag_attention__gradcheck() -> None:
    value, positions, weights = made_inputs(tokens=4)
    with torch.no_grad():  # away from where the bilinear sample has a kink
        fraction = (positions - 0.5) % 1
        positions += (fraction < 0.05) * 0.1 - (fraction > 0.95) * 0.1
    assert torch.autograd.gradcheck(lambda v, p, w: deformable_attention(v, SHAPES, p, w), (value, positions, weights))


@pytest.mark.parametrize("places", ["far", "on-the-edge", "on-centres"])
def test_bag_attention__odd_places(places: str) -> None:
    value, positions, weights = made_inputs(torch.float32)
    with torch.no_grad():
        if places == "far":
            positions *= 1e6
        else:
            positions.copy_(positions.round() + (0.5 if places == "on-centres" else 0.0))
    expected = plain_attention(value, SHAPES, positions, weights)
    torch.testing.assert_close(deformable_attention(value, SHAPES, positions, weights), expected, atol=1e-5, rtol=0)


def test_bag_attention__not_a_number_stays_one() -> None:
    """A network that has diverged must reach the check of its loss, not an index out of range."""
    value, positions, weights = made_inputs(torch.float32)
    with torch.no_grad():
        positions[0, 0, 0, 0, 0, 0] = float("nan")
        positions[0, 1, 0, 0, 0, 1] = float("inf")
    output = deformable_attention(value, SHAPES, positions, weights)
    assert torch.isnan(output[0, 0, :3]).all()
    assert torch.isfinite(output[0, 2:]).all()
    output.nansum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bag_attention__half_precision_values_are_summed_in_float32(dtype: torch.dtype) -> None:
    value, positions, weights = (x.detach() for x in made_inputs(torch.float32))
    half = value.to(dtype)
    output = deformable_attention(half, SHAPES, positions, weights)
    assert output.dtype == dtype
    exact = plain_attention(half.float(), SHAPES, positions, weights)
    torch.testing.assert_close(output, exact.to(dtype), atol=1e-5, rtol=torch.finfo(dtype).eps)


def test_attention__an_export_holds_gathers_at_whole_positions() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = MultiScaleDeformableAttention(8, 2, len(SHAPES), 4)

        def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
            reference = reference_points(real, SHAPES, 2, 4)
            output: Tensor = self.attention(tokens, torch.zeros_like(tokens), reference, SHAPES, None)
            return output

    torch.manual_seed(0)
    module = Module().eval()
    torch.nn.init.normal_(module.attention.sampling_offsets.weight, std=2)
    tokens = torch.randn(2, sum(h * w for h, w in SHAPES), 8)
    real = torch.tensor([[[w, h] for h, w in SHAPES], [[2, 1], [3, 4], [6, 7]]])
    program = torch.export.export(module, (tokens, real))
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    operators = {str(node.target) for graph in graphs for node in graph.nodes}
    assert any("index_select" in name for name in operators)
    assert not any("grid_sampler" in name or "embedding" in name for name in operators)
    torch.testing.assert_close(program.module()(tokens, real), module(tokens, real), atol=2e-3, rtol=1e-3)
