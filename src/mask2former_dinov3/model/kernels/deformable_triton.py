"""Deformable attention on a CUDA device by two Triton kernels; the backward kernel reads the corners again.

A bilinear sample is a sum of four rows of `value`: 0 upper left, 1 upper right, 2 lower left, 3 lower right. A corner
outside the map is zero and gets no gradient. Only `deformable_attention` imports this module, if triton is installed.
"""

# Triton publishes no types, so its decorator has none either.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

try:  # of bundled code, transformers requires every package that is imported outside of `try`
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the kernels for CUDA need triton: pip install triton") from error

# B batch, S tokens of `value`, T tokens that attend, A attention heads, d channels of a head, D its next power of two,
# L levels, P points per head and level, N tokens of one program
#
# A program computes N neighbouring tokens of one head: they attend to similar places, so a corner read for one may
# still be in the multiprocessor's cache for the next. N is such that each thread reads its part of a corner's rows in a
# single access of 16 bytes: all threads of a row compute its place, so they should be few, but longer parts would take
# registers from other warps, which hide the latency of scattered reads. For compute capability 9.0, d = 32 and
# bfloat16 the compiler reports 48 registers forward, so 40 of 64 warps fit, and 62 backward, so 32. At 1024 x 1024 an
# image is 5,376 programs forward and 43,008 backward. Nothing is tuned at run time: that compiles every candidate.
FORWARD_WARPS = 4
BACKWARD_WARPS = 1  # then sums over channels stay within a warp, and stores per token need no barrier
MAX_LEVELS = 4
NAMESPACE = __name__.replace(".", "_")  # of torch's operators; this file may be loaded twice, also as bundled code
SIZE_ARGUMENTS = ["source_tokens", "tokens", *(f"{side}{level}" for level in range(MAX_LEVELS) for side in "hw")]


def triton_attention(
    value: Tensor, spatial_shapes: list[tuple[int, int]], positions: Tensor, attention_weights: Tensor
) -> Tensor:
    """As `deformable_attention.deformable_attention`; positions and weights in the same dtype."""
    _, source_tokens, heads, channels = value.shape
    _, tokens, _, levels, points, _ = positions.shape
    assert levels == len(spatial_shapes) <= MAX_LEVELS
    assert positions.dtype == attention_weights.dtype
    largest = max(source_tokens, tokens) * heads * max(channels, 2 * levels * points)
    assert largest < 2**31, "within one image the kernels count in 32 bits"
    sides = [side for shape in spatial_shapes for side in shape]
    output: Tensor = _attend(value.contiguous(), positions.contiguous(), attention_weights.contiguous(), sides)
    return output


# As torch operators the kernels are opaque to torch.compile. If it analyses them itself, it may conclude that they
# write to tensors they only read, and then copies those (or fails if an input is a parameter).
@torch.library.custom_op(
    f"{NAMESPACE}::deformable_attention",
    mutates_args=(),
    schema="(Tensor value, Tensor positions, Tensor weights, int[] sides) -> Tensor",
)
def _attend(value: Tensor, positions: Tensor, weights: Tensor, sides: list[int]) -> Tensor:
    """Contiguous value (B, S, A, d), positions (B, T, A, L, P, 2) and weights (B, T, A, L, P); sides: h and w of each
    level -> (B, T, A * d).
    """
    batch, _, heads, channels = value.shape
    tokens = positions.shape[1]
    output = value.new_empty(batch, tokens, heads * channels)
    block = _block(channels, FORWARD_WARPS, 16 // value.element_size())
    grid = (-(-tokens // block), heads, batch)
    arguments = _arguments(value, positions, sides)
    with torch.cuda.device_of(value):  # a kernel is launched on the current device, wherever its tensors are
        _forward_kernel[grid](value, positions, weights, output, **arguments, N=block, num_warps=FORWARD_WARPS)
    return output


@torch.library.custom_op(
    f"{NAMESPACE}::deformable_attention_backward",
    mutates_args=(),
    schema="(Tensor grad_output, Tensor value, Tensor positions, Tensor weights, int[] sides, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor)",
)
def _gradients(
    grad_output: Tensor, value: Tensor, positions: Tensor, weights: Tensor, sides: list[int], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `_attend`'s three tensors; those that are not wanted are empty."""
    # Hundreds of samples may be added to one row: in bfloat16 most of them would be rounded away.
    grads = [
        torch.zeros_like(value, dtype=weights.dtype) if wanted[0] else None,
        torch.empty_like(positions) if wanted[1] else None,
        torch.empty_like(weights) if wanted[2] else None,
    ]
    _, _, heads, channels = value.shape
    batch, tokens = positions.shape[:2]
    # 16 bytes of float32 are the longest atomic addition; values are read in the same parts, so no data is rearranged.
    block = _block(channels, BACKWARD_WARPS, 4)
    grid = (-(-tokens // block), heads, batch)
    tensors = (value, positions, weights, grad_output.contiguous(), *grads)
    arguments = _arguments(value, positions, sides)
    with torch.cuda.device_of(value):
        _backward_kernel[grid](*tensors, **arguments, N=block, num_warps=BACKWARD_WARPS)
    grad_value, grad_positions, grad_weights = (value.new_empty(0) if grad is None else grad for grad in grads)
    return grad_value.to(value.dtype), grad_positions, grad_weights


@_attend.register_fake
def _(value: Tensor, positions: Tensor, weights: Tensor, sides: list[int]) -> Tensor:
    return value.new_empty(value.shape[0], positions.shape[1], value.shape[2] * value.shape[3])


@_gradients.register_fake
def _(
    grad_output: Tensor, value: Tensor, positions: Tensor, weights: Tensor, sides: list[int], wanted: list[bool]
) -> tuple[Tensor, ...]:
    tensors = zip((value, positions, weights), wanted, strict=True)
    return tuple(torch.empty_like(one) if want else value.new_empty(0) for one, want in tensors)


class _Context(FunctionCtx):
    """What the forward pass keeps for the backward pass."""

    sides: list[int]
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, Tensor, Tensor]


def _save(ctx: _Context, inputs: tuple[Tensor, Tensor, Tensor, list[int]], output: Tensor) -> None:
    value, positions, weights, ctx.sides = inputs
    ctx.save_for_backward(value, positions, weights)


def _backward(ctx: _Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    grads = _gradients(grad_output, *ctx.saved_tensors, ctx.sides, wanted)
    return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None


_attend.register_autograd(_backward, setup_context=_save)


def _block(channels: int, warps: int, channels_of_a_thread: int) -> int:
    """N, a power of two."""
    return max(1, 32 * warps * channels_of_a_thread // _padded(channels))


def _padded(channels: int) -> int:
    """D: lengths in a kernel must be powers of two."""
    return 1 << (channels - 1).bit_length()


def _arguments(value: Tensor, positions: Tensor, sides: list[int]) -> dict[str, int]:
    """Arguments of both kernels after their tensors. Sizes are not constants, so a new image size compiles nothing."""
    _, source_tokens, heads, channels = value.shape
    _, tokens, _, levels, points, _ = positions.shape
    sizes = dict(zip(SIZE_ARGUMENTS, [source_tokens, tokens, *sides, *[0] * (2 * (MAX_LEVELS - levels))], strict=True))
    return {**sizes, "A": heads, "CHANNELS": channels, "D": _padded(channels), "L": levels, "P": points}


@triton.jit(do_not_specialize=SIZE_ARGUMENTS)
def _forward_kernel(
    value: tl.tensor,
    positions: tl.tensor,
    weights: tl.tensor,
    output: tl.tensor,
    source_tokens: int,
    tokens: int,
    h0: int,
    w0: int,
    h1: int,
    w1: int,
    h2: int,
    w2: int,
    h3: int,
    w3: int,
    A: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """Grid (T / N, A, B). Sums are computed in the dtype of `weights`."""
    bag, live, first_bag, first_row = _bags(source_tokens, tokens, A, N)
    channel = tl.arange(0, D)
    heights, widths = (h0, h1, h2, h3), (w0, w1, w2, w3)
    total = tl.full((N, D), 0.0, weights.dtype.element_ty)
    for level in tl.static_range(L):
        h, w = heights[level], widths[level]
        for point in range(P):
            sample = first_bag * (L * P) + bag * (L * P) + (level * P + point)
            column, row, x, y = _cell(positions + 2 * sample, live, h, w)
            at, inside = _corners(column, row, h, w, channel, A, CHANNELS)
            row0, row1, row2, row3 = _rows(value + first_row * CHANNELS, at, inside)
            weight = tl.load(weights + sample, mask=live, other=0.0)
            upper, lower = weight * (1 - y), weight * y
            total += (upper * (1 - x))[:, None] * row0.to(total.dtype)
            total += (upper * x)[:, None] * row1.to(total.dtype)
            total += (lower * (1 - x))[:, None] * row2.to(total.dtype)
            total += (lower * x)[:, None] * row3.to(total.dtype)
        first_row += h * w * A
    place, mask = bag[:, None] * CHANNELS + channel[None, :], live[:, None] & (channel < CHANNELS)[None, :]
    tl.store(output + first_bag * CHANNELS + place, total.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZE_ARGUMENTS)
def _backward_kernel(
    value: tl.tensor,
    positions: tl.tensor,
    weights: tl.tensor,
    grad_output: tl.tensor,
    grad_value: tl.tensor,
    grad_positions: tl.tensor,
    grad_weights: tl.tensor,
    source_tokens: int,
    tokens: int,
    h0: int,
    w0: int,
    h1: int,
    w1: int,
    h2: int,
    w2: int,
    h3: int,
    w3: int,
    A: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """Grid (T / N, A, B). `grad_value` must be zeros; a gradient that is None is not computed."""
    bag, live, first_bag, first_row = _bags(source_tokens, tokens, A, N)
    channel = tl.arange(0, D)
    place, mask = bag[:, None] * CHANNELS + channel[None, :], live[:, None] & (channel < CHANNELS)[None, :]
    grad = tl.load(grad_output + first_bag * CHANNELS + place, mask=mask, other=0.0).to(weights.dtype.element_ty)
    heights, widths = (h0, h1, h2, h3), (w0, w1, w2, w3)
    for level in tl.static_range(L):
        h, w = heights[level], widths[level]
        for point in range(P):
            sample = first_bag * (L * P) + bag * (L * P) + (level * P + point)
            column, row, x, y = _cell(positions + 2 * sample, live, h, w)
            at, inside = _corners(column, row, h, w, channel, A, CHANNELS)
            weight = tl.load(weights + sample, mask=live, other=0.0)
            if grad_positions is not None or grad_weights is not None:
                row0, row1, row2, row3 = _rows(value + first_row * CHANNELS, at, inside)
                dot0 = tl.sum(grad * row0.to(grad.dtype), axis=1)
                dot1 = tl.sum(grad * row1.to(grad.dtype), axis=1)
                dot2 = tl.sum(grad * row2.to(grad.dtype), axis=1)
                dot3 = tl.sum(grad * row3.to(grad.dtype), axis=1)
                upper, lower = dot0 + x * (dot1 - dot0), dot2 + x * (dot3 - dot2)
                if grad_weights is not None:
                    tl.store(grad_weights + sample, upper + y * (lower - upper), mask=live)
                if grad_positions is not None:
                    along_x = (1 - y) * (dot1 - dot0) + y * (dot3 - dot2)
                    tl.store(grad_positions + 2 * sample, weight * along_x, mask=live)
                    tl.store(grad_positions + 2 * sample + 1, weight * (lower - upper), mask=live)
            if grad_value is not None:
                _add_rows(grad_value + first_row * CHANNELS, at, inside, x, y, weight, grad)
        first_row += h * w * A


@triton.jit
def _bags(source_tokens: int, tokens: int, A: tl.constexpr, N: tl.constexpr) -> tl.tuple:
    """The bags (token, head) of this program within its image, and which of them exist, (N,) each; then, in 64 bits,
    the first bag of the image and its first row of `value` for this head."""
    token = tl.program_id(0) * N + tl.arange(0, N)
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    return token * A + head, token < tokens, image * tokens * A, image * source_tokens * A + head


@triton.jit
def _cell(position: tl.tensor, live: tl.tensor, h: int, w: int) -> tl.tuple:
    """Column and row of the upper left corner of positions, and the distance to it right and down; (N,) each.

    position: address of each x, followed by its y.
    """
    x = tl.load(position, mask=live, other=-2.0)
    y = tl.load(position + 1, mask=live, other=-2.0)
    # Two pixels outside no corner is in the map: the clamp only prevents integer overflow.
    x = tl.clamp(x - 0.5, -2.0, w + 1.0, propagate_nan=tl.PropagateNan.ALL)
    y = tl.clamp(y - 0.5, -2.0, h + 1.0, propagate_nan=tl.PropagateNan.ALL)
    left, top = (
        tl.floor(x),
        tl.floor(y),
    )  # a network gone NaN gives NaN: whatever NaN is as an integer, the ways are NaN
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def _corners(
    column: tl.tensor, row: tl.tensor, h: int, w: int, channel: tl.tensor, A: tl.constexpr, CHANNELS: tl.constexpr
) -> tl.tuple:
    """Offsets of the four corners' rows from the level's first, and which of them are in the map; (N, D) each."""
    at = ((row * w + column) * (A * CHANNELS))[:, None] + channel[None, :]
    below = at + w * (A * CHANNELS)
    left, right = (column >= 0) & (column < w), (column >= -1) & (column < w - 1)
    upper, lower = (row >= 0) & (row < h), (row >= -1) & (row < h - 1)
    real = (channel < CHANNELS)[None, :]
    in0, in1 = (upper & left)[:, None] & real, (upper & right)[:, None] & real
    in2, in3 = (lower & left)[:, None] & real, (lower & right)[:, None] & real
    return (at, at + A * CHANNELS, below, below + A * CHANNELS), (in0, in1, in2, in3)


@triton.jit
def _rows(source: tl.tensor, at: tl.tuple, inside: tl.tuple) -> tl.tuple:
    """Load the rows of the four corners, (N, D) each; all loads are issued before the first is used."""
    row0 = tl.load(source + at[0], mask=inside[0], other=0.0)
    row1 = tl.load(source + at[1], mask=inside[1], other=0.0)
    row2 = tl.load(source + at[2], mask=inside[2], other=0.0)
    row3 = tl.load(source + at[3], mask=inside[3], other=0.0)
    return row0, row1, row2, row3


@triton.jit
def _add_rows(
    target: tl.tensor, at: tl.tuple, inside: tl.tuple, x: tl.tensor, y: tl.tensor, weight: tl.tensor, grad: tl.tensor
) -> None:
    """Add the parts of grad (N, D) to the rows of the four corners."""
    upper, lower = weight * (1 - y), weight * y
    tl.atomic_add(target + at[0], (upper * (1 - x))[:, None] * grad, mask=inside[0], sem="relaxed")
    tl.atomic_add(target + at[1], (upper * x)[:, None] * grad, mask=inside[1], sem="relaxed")
    tl.atomic_add(target + at[2], (lower * (1 - x))[:, None] * grad, mask=inside[2], sem="relaxed")
    tl.atomic_add(target + at[3], (lower * x)[:, None] * grad, mask=inside[3], sem="relaxed")
