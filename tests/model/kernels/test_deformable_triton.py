"""The Triton kernels against the plain form: in Triton's interpreter, through its compiler, and on a GPU."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former_dinov3.model.kernels.deformable_attention import plain_attention

pytest.importorskip("triton")

# B batch, S tokens of the value, T tokens that look, A heads, d channels, L levels, P points
SHAPES = [(5, 7), (3, 4), (2, 1)]  # (h, w) of each level
Shapes = list[tuple[int, int]]
Interpret = Callable[..., None]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def interpret() -> Iterator[Interpret]:
    """Runs a function of this file in a process whose kernels Triton interprets on CPU tensors.

    Triton decides that when a kernel is decorated, its own library's as it is imported: too late for this process.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        pool.submit(os.getpid).result()  # the process starts here
    with pool:
        yield lambda function, **arguments: pool.submit(function, **arguments).result()


def make_inputs(
    shapes: Shapes = SHAPES,
    *,
    batch: int = 2,
    tokens: int = 13,
    heads: int = 2,
    channels: int = 32,
    points: int = 2,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """Random value (B, S, A, d), positions (B, T, A, L, P, 2), some of them outside, and weights (B, T, A, L, P)."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, channels, generator=generator)
    levels = len(shapes)
    sizes = torch.tensor([[w, h] for h, w in shapes]).view(levels, 1, 2)
    positions = (torch.rand(batch, tokens, heads, levels, points, 2, generator=generator) * 1.4 - 0.2) * sizes
    cells = positions.floor()
    positions = cells + 0.55 + 0.9 * (positions - cells)  # off the lines between centres, where the slope jumps
    weights = torch.rand(batch, tokens, heads, levels * points, generator=generator).softmax(-1)
    weights = weights.view(batch, tokens, heads, levels, points)
    made = (value.to(device, dtype), positions.to(device), weights.to(device))
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2].requires_grad_()


def results(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], shapes: Shapes = SHAPES) -> list[Tensor]:
    """The output and the gradients of those inputs that want one."""
    value, positions, weights = inputs
    output = function(value, shapes, positions, weights)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [output, *torch.autograd.grad(output, [one for one in inputs if one.requires_grad], grad)]


def check_equal(**sizes: Any) -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    shapes = sizes.get("shapes", SHAPES)
    inputs = make_inputs(**sizes)
    found, expected = results(triton_attention, inputs, shapes), results(plain_attention, inputs, shapes)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:], expected[1:], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({}, id="three-levels"),
        pytest.param({"channels": 24}, id="channels-no-power-of-two"),
        pytest.param({"channels": 64, "tokens": 9, "batch": 1}, id="several-programs-of-tokens"),
        pytest.param({"shapes": [(4, 6)], "tokens": 24, "batch": 3, "heads": 1, "points": 1, "channels": 8}, id="ones"),
    ],
)
def test_triton_attention__equals_the_plain_form(interpret: Interpret, sizes: dict[str, Any]) -> None:
    interpret(check_equal, **sizes)


def check_outside() -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    value, positions, weights = make_inputs(channels=8)
    far = torch.tensor([-1e30, -1e6, -1.0, 40.0, 1e6, 1e30])
    for axis in (0, 1):
        out = positions.detach().clamp(0.6, 0.9)
        out[..., axis] = far[torch.arange(out[..., axis].numel()) % len(far)].view_as(out[..., axis])
        output, *grads = results(triton_attention, (value, out.requires_grad_(), weights))
        for tensor in (output, *grads):
            assert tensor.count_nonzero() == 0
    edge = torch.tensor([-0.5, -0.499, -0.1, 0.0, 0.3, 0.5])  # from the outer edge of the map inwards
    inside = positions.detach().clamp(0.6, 0.9)
    for side in (0, 1):
        for axis in (0, 1):
            near = inside.clone()
            along = edge[torch.arange(near[..., axis].numel()) % len(edge)].view_as(near[..., axis])
            size = torch.tensor([shape[1 - axis] for shape in SHAPES]).view(3, 1)
            near[..., axis] = size - along if side else along
            torch.testing.assert_close(
                triton_attention(value, SHAPES, near, weights), plain_attention(value, SHAPES, near, weights)
            )


def test_triton_attention__is_zero_outside_the_map(interpret: Interpret) -> None:
    interpret(check_outside)


def check_centres() -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    value, _, _ = make_inputs(batch=1, channels=8)
    start = 0
    for level, (h, w) in enumerate(SHAPES):
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centres = torch.stack((columns, rows), dim=-1).view(1, h * w, 1, 1, 1, 2) + 0.5
        weights = torch.zeros(1, h * w, 2, 3, 1)
        weights[:, :, :, level] = 1
        output = triton_attention(value, SHAPES, centres.expand(1, h * w, 2, 3, 1, 2), weights)
        assert torch.equal(output, value[:, start : start + h * w].flatten(2))
        start += h * w


def test_triton_attention__returns_the_pixel_at_its_centre(interpret: Interpret) -> None:
    interpret(check_centres)


def check_nan(device: str = "cpu") -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    value, positions, weights = make_inputs(channels=8, device=device)
    broken = positions.detach().clone()
    broken[1, 5, 0, 2, 1, 0] = torch.nan
    output = triton_attention(value, SHAPES, broken, weights).isnan().unflatten(2, (2, 8))
    assert output[1, 5, 0].all()
    assert output.count_nonzero() == 8


def test_triton_attention__a_nan_position_gives_nan_to_its_bag_alone(interpret: Interpret) -> None:
    interpret(check_nan)


def check_half(dtype: torch.dtype, tolerance: float) -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    value, positions, weights = make_inputs(dtype=dtype)
    whole = value.detach().float().requires_grad_()
    found = results(triton_attention, (value, positions, weights))
    output = plain_attention(whole, SHAPES, positions, weights)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype).float()
    expected = [output, *torch.autograd.grad(output, (whole, positions, weights), grad)]
    assert [one.dtype for one in found] == [dtype, dtype, torch.float32, torch.float32]
    torch.testing.assert_close([one.float() for one in found[:2]], expected[:2], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found[2:], expected[2:], atol=5e-5, rtol=1e-5)  # rounded nowhere on their way


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_triton_attention__sums_half_precision_in_float32(
    interpret: Interpret, dtype: torch.dtype, tolerance: float
) -> None:
    interpret(check_half, dtype=dtype, tolerance=tolerance)


def check_frozen() -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    inputs = make_inputs(channels=8)
    for wanted in ((1, 2), (0,), (1,), (2,)):
        some = tuple(one.detach().requires_grad_(place in wanted) for place, one in enumerate(inputs))
        found, expected = results(triton_attention, some), results(plain_attention, some)
        assert len(found) == 1 + len(wanted)
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)
    value, positions, weights = (one.detach() for one in inputs)
    assert not triton_attention(value, SHAPES, positions, weights).requires_grad


def test_triton_attention__computes_only_the_gradients_that_are_wanted(interpret: Interpret) -> None:
    interpret(check_frozen)


def check_compiled() -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    compiled = torch.compile(triton_attention, fullgraph=True, backend="aot_eager")
    inputs = make_inputs(channels=8)
    torch.testing.assert_close(results(compiled, inputs), results(plain_attention, inputs), atol=5e-5, rtol=1e-5)


def test_triton_attention__is_an_operator_within_a_graph(interpret: Interpret) -> None:
    interpret(check_compiled)


def check_strides() -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    inputs = make_inputs(channels=8)
    value, positions, weights = (
        one.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_() for one in inputs
    )
    assert not value.is_contiguous()
    output = triton_attention(value, SHAPES, positions, weights)
    grads = torch.autograd.grad(output.sum(), (value, positions, weights))  # the gradient of a sum is one number spread
    expected = plain_attention(*inputs[:1], SHAPES, *inputs[1:])
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), inputs), atol=5e-5, rtol=1e-5)


def test_triton_attention__takes_any_strides(interpret: Interpret) -> None:
    interpret(check_strides)


def check_slopes() -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    shapes = [(2, 3), (1, 2)]
    single = make_inputs(shapes, batch=1, tokens=2, heads=1, channels=2)
    inputs = tuple(one.detach().double().requires_grad_() for one in single)
    assert torch.autograd.gradcheck(lambda v, p, w: triton_attention(v, shapes, p, w), inputs)


def test_triton_attention__gradients_are_its_slopes(interpret: Interpret) -> None:
    interpret(check_slopes)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel"])
def test_kernels__compile_for_a_gpu(kernel: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes much that the compiler refuses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mask2former_dinov3.model.kernels import deformable_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(deformable_triton, kernel)
    constants = {"A": 8, "CHANNELS": 32, "D": 32, "L": 3, "P": 4, "N": 16}
    halves = ("value", "output", "grad_output")
    types = {name: f"*{dtype}" if name in halves else "*fp32" for name in function.arg_names}
    types |= dict.fromkeys(deformable_triton.SIZE_ARGUMENTS, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(function, types, {(function.arg_names.index(name),): n for name, n in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert f".entry {kernel}" in compiled.asm["ptx"]


IMAGE_256 = [(8, 8), (16, 16), (32, 32)]


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_triton_attention__equals_the_plain_form_on_a_gpu(dtype: torch.dtype, tolerance: float, compiled: bool) -> None:
    from mask2former_dinov3.model.kernels.deformable_triton import triton_attention

    sizes: dict[str, Any] = {"tokens": 1344, "heads": 8, "channels": 32, "points": 4}
    inputs = make_inputs(IMAGE_256, dtype=dtype, device="cuda", **sizes)
    function = torch.compile(triton_attention, fullgraph=True) if compiled else triton_attention
    found, expected = results(function, inputs, IMAGE_256), results(plain_attention, inputs, IMAGE_256)
    assert [one.dtype for one in found] == [dtype, dtype, torch.float32, torch.float32]
    torch.testing.assert_close(found[:2], expected[:2], atol=10 * tolerance, rtol=tolerance)
    torch.testing.assert_close(found[2:], expected[2:], atol=1e-4, rtol=1e-4)


@needs_gpu
@pytest.mark.gpu
def test_triton_attention__a_nan_position_gives_nan_on_a_gpu() -> None:
    check_nan("cuda")
