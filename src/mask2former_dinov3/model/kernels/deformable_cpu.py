"""Deformable attention on a CPU by torch's embedding_bag: every output is a weighted sum of rows of the values.

A bilinear sample is a sum of four rows of the value table (upper left, upper right, lower left, lower right), each
weighted by two fractions and the attention weight. The table has a border of zeros around each level, so positions
outside the map need no test: clamped to the border, they read zeros and have no gradient.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .weighted_bags import TransposedBags, sum_bags

# B batch, S tokens, A heads, d channels of a head, L levels, P points, K = A * L * P columns of one token,
# R cells of the table, n tokens of one chunk
# Tokens per chunk; bounds the memory, since about twenty arrays (n, K) are alive at a time.
ATTENTION_TOKENS = 8192


def bag_attention(value: Tensor, spatial_shapes: list[tuple[int, int]], positions: Tensor, weights: Tensor) -> Tensor:
    """As `deformable_attention.deformable_attention`."""
    heads, points = value.shape[2], positions.shape[4]
    table = _table(spatial_shapes, heads, points, positions)
    output: Tensor = _BagAttention.apply(  # type: ignore[no-untyped-call]
        value.to(weights.dtype), table, positions, weights
    )
    return output.to(value.dtype)


class _Table(NamedTuple):
    """Layout of the levels in the table; tensors (K,) have an entry for each column of a token."""

    shapes: list[tuple[int, int]]  # (h, w)
    starts: list[int]  # first cell of each level
    cells: int  # R
    heads: int
    head: Tensor  # int32
    pitch: Tensor  # cells from one row of the level to the next
    origin: Tensor  # cell of pixel (0, 0)
    width: Tensor
    height: Tensor
    below: Tensor  # int32, table rows from a cell to the one below it


def _table(shapes: list[tuple[int, int]], heads: int, points: int, like: Tensor) -> _Table:
    """A level of h x w becomes h + 4 rows of w + 2 cells: two rows of zeros above and below, one zero at both ends.

    A cell further left (right) is the end of the row above (the start of the row below), which is zero as well; one
    more cell before the first level and after the last makes that true everywhere.
    """
    starts = [1]
    for h, w in shapes:
        starts.append(starts[-1] + (h + 4) * (w + 2))
    assert starts[-1] < 2**24, "cells are counted in float32"

    def columns(values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=like.device).repeat_interleave(points).repeat(heads)

    return _Table(
        shapes,
        starts[:-1],
        starts[-1] + 1,
        heads,
        head=torch.arange(heads, dtype=torch.int32, device=like.device).repeat_interleave(len(shapes) * points),
        pitch=columns([w + 2 for _, w in shapes], like.dtype),
        origin=columns([start + 2 * (w + 2) + 1 for start, (_, w) in zip(starts, shapes, strict=False)], like.dtype),
        width=columns([w for _, w in shapes], like.dtype),
        height=columns([h for h, _ in shapes], like.dtype),
        below=columns([(w + 2) * heads for _, w in shapes], torch.int32),
    )


def _inner(cells: Tensor, table: _Table) -> list[Tensor]:
    """Each level without its border, as views (B, h, w, A, d) of (B, R, A, d)."""
    return [
        cells[:, start : start + (h + 4) * (w + 2)].unflatten(1, (h + 4, w + 2))[:, 2 : h + 2, 1 : w + 1]
        for start, (h, w) in zip(table.starts, table.shapes, strict=True)
    ]


class _BagAttention(torch.autograd.Function):
    """Saves cells, positions and weights; the backward pass computes the corners again."""

    class Context(FunctionCtx):
        """What `forward` keeps for `backward`."""

        table: _Table
        saved_tensors: tuple[Tensor, ...]

    @staticmethod
    def forward(ctx: Context, value: Tensor, table: _Table, positions: Tensor, weights: Tensor) -> Tensor:
        batch, _, heads, channels = value.shape
        tokens, columns = positions.shape[1], positions.shape[3] * positions.shape[4]  # columns of one head
        cells = value.new_zeros(batch, table.cells, heads, channels)
        levels = value.split([h * w for h, w in table.shapes], dim=1)
        for inner, level in zip(_inner(cells, table), levels, strict=True):
            inner.copy_(level.view_as(inner))
        output = value.new_empty(batch, tokens, heads * channels)
        for image in range(batch):
            rows = cells[image].flatten(0, 1)  # (R*A, d)
            for part in _parts(tokens):
                at = _corners(positions[image, part].flatten(1, 3), table)
                shares = _corner_weights(at, weights[image, part].flatten(1))
                corners = [
                    sum_bags(rows, index.view(-1, columns), share.view(-1, columns))
                    for index, share in zip(_rows(at, table), shares, strict=True)
                ]  # (n*A, d) each
                output[image, part] = (
                    corners[0].add_(corners[1]).add_(corners[2]).add_(corners[3]).view(-1, heads * channels)
                )
        ctx.save_for_backward(cells, positions, weights)
        ctx.table = table
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        cells, positions, weights = ctx.saved_tensors
        table = ctx.table
        grad_positions, grad_weights = torch.empty_like(positions), torch.empty_like(weights)
        grad_cells = torch.zeros_like(cells)
        upper_left = torch.empty(grad_weights[0].flatten(1).shape, dtype=torch.int32, device=cells.device)  # (S, K)
        shares = weights.new_empty(4, *upper_left.shape)
        for image in range(len(cells)):
            grad = grad_output[image].unflatten(1, (table.heads, -1))  # (S, A, d)
            rows = cells[image].flatten(0, 1)  # (R*A, d)
            for part in _parts(len(grad)):
                at = _corners(positions[image, part].flatten(1, 3), table)
                weight = weights[image, part].flatten(1)  # (n, K)
                along_weight, along_x, along_y = _slopes(rows, grad[part], at, table)
                grad_weights[image, part] = along_weight.view_as(grad_weights[image, part])
                grad_positions[image, part, ..., 0] = along_x.mul_(weight).view_as(grad_weights[image, part])
                grad_positions[image, part, ..., 1] = along_y.mul_(weight).view_as(grad_weights[image, part])
                upper_left[part] = at.cell
                for share, values in zip(shares, _corner_weights(at, weight), strict=True):
                    share[part] = values
            _scatter(grad, upper_left, shares, table, grad_cells[image])
        grad_value = torch.cat([inner.flatten(1, 2) for inner in _inner(grad_cells, table)], dim=1)  # (B, S, A, d)
        return grad_value, None, grad_positions, grad_weights


def _parts(tokens: int) -> list[slice]:
    """Chunks of tokens; all in one under `torch.compile`, which fuses the operations and would unroll the loop."""
    step = tokens if torch.compiler.is_compiling() else ATTENTION_TOKENS
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


class _Corners(NamedTuple):
    """Upper left corner of each position, (n, K) each."""

    cell: Tensor  # int32 table row of the upper left corner
    x: Tensor  # fractions of a pixel from there
    y: Tensor


def _corners(positions: Tensor, table: _Table) -> _Corners:
    """positions (n, K, 2) in pixels."""
    x = torch.minimum((positions[..., 0] - 0.5).clamp_(min=-2), table.width)
    y = torch.minimum((positions[..., 1] - 0.5).clamp_(min=-2), table.height)
    left, top = x.floor(), y.floor()
    cell = torch.addcmul(left, top, table.pitch).add_(table.origin)
    cell = cell.nan_to_num_(nan=0.0).to(torch.int32)  # a NaN position must give NaN, not an index out of range
    return _Corners(torch.add(table.head, cell, alpha=table.heads), x.sub_(left), y.sub_(top))


def _rows(at: _Corners, table: _Table) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Table rows of the four corners, (n, K) int32 each."""
    lower = at.cell + table.below
    return at.cell, at.cell + table.heads, lower, lower + table.heads


def _corner_weights(at: _Corners, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bilinear times attention weights of the four corners, (n, K) each."""
    lower = at.y * weights
    upper = weights - lower
    upper_right, lower_right = at.x * upper, at.x * lower
    return upper - upper_right, upper_right, lower - lower_right, lower_right


def _slopes(rows: Tensor, grad: Tensor, at: _Corners, table: _Table) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of <grad, bilinear sample> by the sample's weight, x and y, (n, K) each; grad (n, A, d)."""
    columns = at.x.shape[1] // table.heads  # L * P
    bags = grad.flatten(0, 1)  # (n*A, d)
    bag_of = torch.arange(len(bags), dtype=torch.int32, device=grad.device).repeat_interleave(columns)  # (n*K,)
    first = torch.arange(0, len(bag_of), columns, dtype=torch.int32, device=grad.device)  # (n*A,)

    def product(index: Tensor) -> Tensor:
        """<grad, row> of every column, (n, K), as in the backward pass of `embedding_bag` (mode 0 is a sum)."""
        along: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            bags, rows, index.flatten(), first, bag_of, 0
        )
        return along.view_as(at.x)

    upper_left, upper_right, lower_left, lower_right = (product(index) for index in _rows(at, table))
    upper_slope, lower_slope = upper_right.sub_(upper_left), lower_right.sub_(lower_left)
    upper = torch.addcmul(upper_left, at.x, upper_slope)
    y_slope = torch.addcmul(lower_left, at.x, lower_slope).sub_(upper)
    return torch.addcmul(upper, at.y, y_slope), torch.lerp(upper_slope, lower_slope, at.y), y_slope


def _scatter(grad: Tensor, upper_left: Tensor, shares: Tensor, table: _Table, out: Tensor) -> None:
    """Gradient of the table: each bag's gradient times its weights, added to the rows that it read.

    grad (S, A, d), upper_left (S, K), shares (4, S, K), out (R, A, d). One sort by the upper left corner is enough for
    all four corners: within a level, the others are a fixed number of rows away.
    """
    columns = shares.shape[2] // table.heads
    back = TransposedBags(upper_left.view(-1, columns), table.cells * table.heads)
    sums = out.flatten(0, 1)  # (R*A, d)
    levels = list(itertools.pairwise([0, *(start * table.heads for start in table.starts[1:]), len(sums)]))
    for corner, share in enumerate(shares):
        for rows, part in back(grad.flatten(0, 1), share.view(-1, columns)):
            for (first, last), (_, w) in zip(levels, table.shapes, strict=True):
                start, stop = max(rows.start, first), min(rows.stop, last)
                step = (corner % 2 + corner // 2 * (w + 2)) * table.heads
                stop = min(stop, len(sums) - step)  # after the last row there is only border
                if start < stop:
                    sums[start + step : stop + step] += part[start - rows.start : stop - rows.start]
