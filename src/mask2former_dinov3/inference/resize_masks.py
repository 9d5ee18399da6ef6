"""Resize mask logits to the image's own size and encode them as RLE, block by block within a memory budget.

The image is cut into square blocks. Blocks without a logit above `level` are skipped, so the cost grows with the area
of the instances, not with image size x number of instances.

Q queries, n of them requested, h w the logits' size, H W the image's own, S logits that a block reads along an axis,
B blocks in memory at one time.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.coco_types import CocoRle
from ..data.rle import compress

BLOCK = 32  # side of a block, in pixels of the image
WEIGHTS = 2**22  # numbers of an axis's weights that are made at one time
ROUNDING = 1e-4  # rounding errors cannot lift a logit above the level if it is lower by this fraction of the level


class Axis(NamedTuple):
    """One axis of logits and image, cut into K blocks: the logits that each block reads, and their weights."""

    reads: Tensor  # (K, S) int64: indices of the logits that each block reads
    weight: Tensor  # (K, BLOCK, S) float32: the weight of each logit at each pixel of the block; 0 beyond the image

    def on(self, device: torch.device) -> Axis:
        """A copy on `device`."""
        return Axis(self.reads.to(device), self.weight.to(device))


class Masks(NamedTuple):
    """n masks: RLEs, areas in pixels (n,), and the mean sigmoid inside each mask (n,), 0 for an empty one."""

    rles: list[CocoRle]
    areas: NDArray[np.int64]
    certainty: NDArray[np.float64]


def resize_masks(
    mask_logits: Tensor,
    queries: Tensor,
    canvas: tuple[int, int],
    real: tuple[int, int],
    size: tuple[int, int],
    level: float,
    memory_bytes: int,
) -> Masks:
    """The masks of some queries: the pixels where their resized logits are above `level`.

    mask_logits (Q, h, w), any float type and device; queries (n,) indices; canvas, real, size: (height, width) of the
    padded input, of its real part, of the image. Logits are resized bilinearly (align_corners=False) to the canvas,
    cropped to the real part, and resized to the image, all in float32. memory_bytes: the budget for the blocks in
    memory; at least one block is made whatever it says.
    """
    device = mask_logits.device
    blocks = Blocks(
        cut_axis(mask_logits.shape[1], canvas[0], real[0], size[0]).on(device),
        cut_axis(mask_logits.shape[2], canvas[1], real[1], size[1]).on(device),
        size,
        level,
    )
    logits = mask_logits[queries]
    touched = blocks.highest(logits) > level - ROUNDING * abs(level)  # (n, K, L)
    at_once = max(1, memory_bytes // blocks.bytes_each())
    # A group of masks has about `at_once` blocks, so the memory for their borders is bounded as well.
    group = touched.flatten(1).sum(1).cumsum(0) // at_once
    counts = group.unique_consecutive(return_counts=True)[1].tolist()
    found = [
        blocks.masks(some, here, at_once)
        for some, here in zip(logits.split(counts), touched.split(counts), strict=True)
    ]
    return Masks(
        [rle for masks in found for rle in masks.rles],
        np.concatenate([np.zeros(0, dtype=np.int64), *(masks.areas for masks in found)]),
        np.concatenate([np.zeros(0), *(masks.certainty for masks in found)]),
    )


class Blocks(NamedTuple):
    """The blocks of an image of `size` (height, width), K down and L along; logits above `level` are foreground."""

    down: Axis
    along: Axis
    size: tuple[int, int]
    level: float

    def bytes_each(self) -> int:
        """The memory that one block needs while it is made."""
        tall, wide = self.down.reads.shape[1], self.along.reads.shape[1]
        # Its logits, weights, logits resized along one axis, two full blocks, and the borders of a mask of noise.
        return 4 * (2 * tall * wide + BLOCK * (tall + 2 * wide) + 2 * BLOCK**2) + 20 * BLOCK**2

    def highest(self, mask_logits: Tensor) -> Tensor:
        """The highest logit that each block reads: mask_logits (n, h, w) -> (n, K, L)."""
        axes = [(self.down.reads.tolist(), 1), (self.along.reads.tolist(), 2)]
        for reads, axis in sorted(axes, key=lambda one: len(one[0])):  # the longer one last: (n, K, w) may be large
            parts = [mask_logits.narrow(axis, at[0], at[-1] - at[0] + 1).amax(axis) for at in reads]
            mask_logits = torch.stack(parts, dim=axis)
        return mask_logits

    def masks(self, mask_logits: Tensor, touched: Tensor, at_once: int) -> Masks:
        """The masks of logits (n, h, w), made in the blocks marked in touched (n, K, L), `at_once` at one time."""
        sums = np.zeros(len(mask_logits))
        borders = [np.zeros(0, dtype=np.int64)]
        for n, y, x in zip(*(index.split(at_once) for index in touched.nonzero(as_tuple=True)), strict=True):
            rows, columns = self.down.reads[y], self.along.reads[x]  # (B, S) each
            logits = mask_logits[n[:, None, None], rows[:, :, None], columns[:, None, :]].float() - self.level
            logits = self.down.weight[y] @ logits @ self.along.weight[x].mT  # (B, BLOCK, BLOCK)
            inside = (logits > 0).cpu().numpy()
            # -inf outside the mask has a sigmoid of 0; on a CPU this is three times as fast as multiplying by the mask.
            certainty = F.threshold(logits, 0, -math.inf, inplace=True).add_(self.level).sigmoid_().sum((1, 2))
            mask, row, column = (index.cpu().numpy() for index in (n, y, x))
            sums += np.bincount(mask, certainty.cpu().numpy(), minlength=len(sums))
            borders.append(borders_of_blocks(inside, mask, row, column, self.size))
        return encode_borders(drop_pairs(np.concatenate(borders)), sums, self.size)


@lru_cache(maxsize=64)
def cut_axis(length: int, canvas: int, real: int, size: int) -> Axis:
    """The blocks of an axis: `length` logits cover a canvas, whose first `real` pixels become `size` image pixels.

    Both resizings are linear, so resizing each unit vector of logits gives the weights, and no tensor of the canvas's
    size is made for a mask. The weights are made for WEIGHTS numbers at a time: an image of one row may be very long.
    The result is on the CPU.
    """
    units = F.interpolate(torch.eye(length)[None], canvas, mode="linear", align_corners=False)[0, :, :real]
    blocks = -(-size // BLOCK)
    parts = torch.arange(blocks).split(max(1, WEIGHTS // (BLOCK * length)))
    first, last = (
        torch.cat(ends) for ends in zip(*(_read_range(_weights(units, size, p)) for p in parts), strict=True)
    )
    widest = int((last - first).max()) + 1  # S
    index = first.clamp(max=length - widest)[:, None] + torch.arange(widest)
    gathered = [_weights(units, size, part).gather(2, index[part, None].expand(-1, BLOCK, -1)) for part in parts]
    return Axis(index, torch.cat(gathered))


def _weights(units: Tensor, size: int, blocks: Tensor) -> Tensor:
    """(B, BLOCK, length): the weight of each logit at the pixels of blocks (B,) of an axis of `size` pixels.

    units (length, real): each unit vector of logits on the canvas. The second resizing is that of
    `F.interpolate(mode="linear", align_corners=False)`, for these pixels only.
    """
    length, real = units.shape
    pixel = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
    place = ((pixel + 0.5) * torch.tensor(real / size) - 0.5).clamp(min=0)
    low = place.long().clamp(max=real - 1)
    share = place - low
    each = units[:, low] * (1 - share) + units[:, (low + 1).clamp(max=real - 1)] * share
    return (each * (pixel < size)).T.reshape(-1, BLOCK, length)


def _read_range(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last logit, (B,) each, that blocks with weights (B, BLOCK, length) read."""
    read = (weights != 0).any(1).int()
    return read.argmax(1), weights.shape[2] - 1 - read.flip(1).argmax(1)


def borders_of_blocks(
    inside: NDArray[np.bool_],
    mask: NDArray[np.int64],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    size: tuple[int, int],
) -> NDArray[np.int64]:
    """The positions where runs of foreground begin and end, sorted; positions count down the columns of each mask.

    inside (B, BLOCK, BLOCK): pixels of the blocks at (mask, row, column), (B,) each. Each block is processed alone: a
    run that continues in the block below, or at the top of the next column, ends and begins at the same position. Such
    pairs are removed. A mask has H * W + 1 positions, since its last run may end after its last pixel.
    """
    height, width = size
    changes = np.zeros((len(inside), BLOCK + 1, BLOCK), dtype=bool)
    changes[:, :-1] = inside
    changes[:, 1:] ^= inside
    found = np.flatnonzero(changes)
    block, place = np.divmod(found, (BLOCK + 1) * BLOCK)
    down, along = np.divmod(np.arange((BLOCK + 1) * BLOCK), BLOCK)
    start = mask * (height * width + 1) + column * (BLOCK * height) + row * BLOCK  # (B,)
    return drop_pairs(start[block] + (along * height + down)[place])


def drop_pairs(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort numbers and remove both of those that occur twice; none may occur more often."""
    numbers = np.sort(numbers)
    pairs = np.flatnonzero(numbers[1:] == numbers[:-1])
    return np.delete(numbers, np.concatenate((pairs, pairs + 1)))


def encode_borders(borders: NDArray[np.int64], sums: NDArray[np.float64], size: tuple[int, int]) -> Masks:
    """The borders of n masks, as `borders_of_blocks` returns them, as RLE; sums (n,) of the sigmoid in each mask."""
    count, pixels = len(sums), size[0] * size[1]
    starts = np.arange(count) * (pixels + 1)
    lengths = borders[1::2] - borders[::2]  # every mask has a whole number of runs
    areas = np.bincount(borders[::2] // (pixels + 1), lengths, minlength=count).astype(np.int64)
    bounds = np.sort(np.concatenate((borders, starts, starts + pixels)))
    owner = bounds // (pixels + 1)
    runs = np.diff(bounds)
    # Not runs: the step from one mask to the next, and the end of a foreground that reaches the end of the image.
    same = (owner[1:] == owner[:-1]) & ~((runs == 0) & (bounds[1:] == starts[owner[1:]] + pixels))
    counts = compress(runs[same], np.bincount(owner[1:][same], minlength=count))
    rles = [CocoRle(size=list(size), counts=str(one, "ascii")) for one in counts]
    return Masks(rles, areas, sums / np.maximum(areas, 1))
