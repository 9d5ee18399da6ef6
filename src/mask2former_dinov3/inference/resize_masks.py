"""Mask logits to masks of the image's own size, as RLE: only where there is something, a bounded part at a time.

The image is cut into small squares. What no logit above the level touches is background and never made, so the cost
follows the instances, not the image times their number.

Q queries, n of them wanted, h w the logits' size, H W the image's own, S logits that a block reads along an axis,
B blocks at hand at one time.
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

BLOCK = 32  # side in pixels of the image
ROUNDING = 1e-4  # a logit that is below the level by this share of it cannot be lifted above it by rounding


class Axis(NamedTuple):
    """One axis, of the logits and of the image, cut into K blocks: what each reads and how it is weighted."""

    reads: Tensor  # (K, S) int64: the logits of each block
    weight: Tensor  # (K, BLOCK, S) float32: how each place of the block weighs them; 0 beyond the image

    def on(self, device: torch.device) -> Axis:
        """The same on `device`."""
        return Axis(self.reads.to(device), self.weight.to(device))


class Masks(NamedTuple):
    """n masks: their RLEs, areas in pixels (n,) and the mean sigmoid over each (n,), 0 where it is empty."""

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
    """The masks of some queries where their logits, resized, are above `level`.

    mask_logits (Q, h, w), any float type and device; queries (n,) indices; canvas, real, size: (height, width) of the
    padded input, of its real part, of the image. Resized bilinearly (align_corners=False) to the canvas, cropped to the
    real part, resized to the image, all in float32. memory_bytes: what the blocks at hand may take; one is always made.
    """
    device = mask_logits.device
    blocks = Blocks(
        cut_axis(mask_logits.shape[1], canvas[0], real[0], size[0]).on(device),
        cut_axis(mask_logits.shape[2], canvas[1], real[1], size[1]).on(device),
        size,
        level,
    )
    touched = blocks.highest(mask_logits)[queries] > level - ROUNDING * abs(level)  # (n, K, L)
    at_once = max(1, memory_bytes // blocks.bytes_each())
    # As many masks at one time as have about so many blocks: what is known of their borders is bounded as well.
    group = touched.flatten(1).sum(1).cumsum(0) // at_once
    counts = group.unique_consecutive(return_counts=True)[1].tolist()
    found = [
        blocks.masks(mask_logits, some, here, at_once)
        for some, here in zip(queries.split(counts), touched.split(counts), strict=True)
    ]
    return Masks(
        [rle for masks in found for rle in masks.rles],
        np.concatenate([np.zeros(0, dtype=np.int64), *(masks.areas for masks in found)]),
        np.concatenate([np.zeros(0), *(masks.certainty for masks in found)]),
    )


class Blocks(NamedTuple):
    """The blocks of an image of `size` (height, width), K down and L along, and the level above which is foreground."""

    down: Axis
    along: Axis
    size: tuple[int, int]
    level: float

    def bytes_each(self) -> int:
        """What one block takes while it is made."""
        tall, wide = self.down.reads.shape[1], self.along.reads.shape[1]
        # What it reads, its weights, half of it resized, all of it twice, and as many borders as noise has.
        return 4 * (2 * tall * wide + BLOCK * (tall + 2 * wide) + 2 * BLOCK**2) + 20 * BLOCK**2

    def highest(self, mask_logits: Tensor) -> Tensor:
        """The highest logit that each block reads: mask_logits (Q, h, w) -> (Q, K, L)."""
        rows, columns = self.down.reads.tolist(), self.along.reads.tolist()
        strips = torch.stack([mask_logits[:, at[0] : at[-1] + 1].amax(1) for at in rows], dim=1)  # (Q, K, w)
        return torch.stack([strips[:, :, at[0] : at[-1] + 1].amax(2) for at in columns], dim=2)

    def masks(self, mask_logits: Tensor, queries: Tensor, touched: Tensor, at_once: int) -> Masks:
        """The masks of queries (n,), made in the blocks that are touched, (n, K, L), so many at one time."""
        sums = np.zeros(len(queries))
        borders = [np.zeros(0, dtype=np.int64)]
        for n, y, x in zip(*(index.split(at_once) for index in touched.nonzero(as_tuple=True)), strict=True):
            rows, columns = self.down.reads[y], self.along.reads[x]  # (B, S) each
            logits = mask_logits[queries[n][:, None, None], rows[:, :, None], columns[:, None, :]].float() - self.level
            logits = self.down.weight[y] @ logits @ self.along.weight[x].mT  # (B, BLOCK, BLOCK)
            inside = (logits > 0).cpu().numpy()
            # Outside the mask -inf, whose sigmoid is 0: on a CPU three times as fast as a product with the mask.
            certainty = F.threshold(logits, 0, -math.inf, inplace=True).add_(self.level).sigmoid_().sum((1, 2))
            mask, row, column = (index.cpu().numpy() for index in (n, y, x))
            sums += np.bincount(mask, certainty.cpu().numpy(), minlength=len(queries))
            borders.append(borders_of_blocks(inside, mask, row, column, self.size))
        return encode_borders(without_twins(np.concatenate(borders)), sums, self.size)


@lru_cache(maxsize=64)
def cut_axis(length: int, canvas: int, real: int, size: int) -> Axis:
    """The blocks of an axis of `length` logits on a canvas, of which `real` pixels become `size` of the image.

    Both resizings are bilinear, so together they are linear: what they make of each single logit gives the weights, and
    nothing of the canvas's size has to be made. On the CPU.
    """
    each = F.interpolate(torch.eye(length)[None], canvas, mode="linear", align_corners=False)[..., :real]
    each = F.interpolate(each, size, mode="linear", align_corners=False)[0]  # (length, size)
    blocks = -(-size // BLOCK)
    each = F.pad(each, (0, blocks * BLOCK - size)).T.reshape(blocks, BLOCK, length)
    read = (each != 0).any(1).int()  # (blocks, length)
    first = read.argmax(1)
    last = length - 1 - read.flip(1).argmax(1)
    widest = int((last - first).max()) + 1  # S
    index = first.clamp(max=length - widest)[:, None] + torch.arange(widest)
    return Axis(index, each.gather(2, index[:, None].expand(-1, BLOCK, -1)))


def borders_of_blocks(
    inside: NDArray[np.bool_],
    mask: NDArray[np.int64],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    size: tuple[int, int],
) -> NDArray[np.int64]:
    """Where runs of foreground begin and end, counted down the columns of one mask after the other; sorted.

    inside (B, BLOCK, BLOCK): pixels of the blocks at (mask, row, column), (B,) each. Every block is looked at alone: a
    run that goes on in the block below or at the top of the next column ends and begins at the same number, and such
    twins are left out again. A mask takes H * W + 1 numbers, since its last run may end behind its last pixel.
    """
    height, width = size
    changes = np.zeros((len(inside), BLOCK + 1, BLOCK), dtype=bool)
    changes[:, :-1] = inside
    changes[:, 1:] ^= inside
    found = np.flatnonzero(changes)
    block, place = np.divmod(found, (BLOCK + 1) * BLOCK)
    down, along = np.divmod(np.arange((BLOCK + 1) * BLOCK), BLOCK)
    start = mask * (height * width + 1) + column * (BLOCK * height) + row * BLOCK  # (B,)
    return without_twins(start[block] + (along * height + down)[place])


def without_twins(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted, and what is there twice left out; nothing may be there more often."""
    numbers = np.sort(numbers)
    twins = np.flatnonzero(numbers[1:] == numbers[:-1])
    return np.delete(numbers, np.concatenate((twins, twins + 1)))


def encode_borders(borders: NDArray[np.int64], sums: NDArray[np.float64], size: tuple[int, int]) -> Masks:
    """What `borders_of_blocks` found in n masks as RLE; sums (n,) of the sigmoid over each mask."""
    count, pixels = len(sums), size[0] * size[1]
    starts = np.arange(count) * (pixels + 1)
    lengths = borders[1::2] - borders[::2]  # every mask has a whole number of runs
    areas = np.bincount(borders[::2] // (pixels + 1), lengths, minlength=count).astype(np.int64)
    bounds = np.sort(np.concatenate((borders, starts, starts + pixels)))
    owner = bounds // (pixels + 1)
    runs = np.diff(bounds)
    # Not a run: from one mask to the next, and behind a foreground that ends with the image.
    same = (owner[1:] == owner[:-1]) & ~((runs == 0) & (bounds[1:] == starts[owner[1:]] + pixels))
    counts = compress(runs[same], np.bincount(owner[1:][same], minlength=count))
    rles = [CocoRle(size=list(size), counts=str(one, "ascii")) for one in counts]
    return Masks(rles, areas, sums / np.maximum(areas, 1))
