"""Sample masks at continuous points, and choose points (PointRend, arXiv:1912.08193)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.deformable_attention import deformable_attention
from ..kernels.memory_layout import as_map, as_rows
from ..kernels.weighted_bags import TransposedBags, sum_bags

# G images processed together, E mask channels, N masks, M rows of logits, P points, H x W the masks' size. A point is
# (x, y); [0, 1] spans the canvas from edge to edge, so (0, 0) is the corner of the first pixel, not its centre.
# Points per chunk on a CPU, where allocating large buffers costs more than the arithmetic; chunks of this size reuse
# memory that was just freed.
POINTS_AT_ONCE = 8192
# Largest array on other devices, where few large operations are faster; about five such arrays of float32 are alive.
ELEMENTS_AT_ONCE = 2**27
RandomPoints = Callable[..., Tensor]  # called as torch.rand: random(n, p, 2, device=...)


def split_work(device: torch.device, count: int, elements: int) -> list[slice]:
    """Split items 0..count, each with an array of `elements` numbers, into slices that are processed together.

    On a CPU one item at a time, which may fit into its cache; elsewhere as many as ELEMENTS_AT_ONCE allows.
    """
    step = 1 if device.type == "cpu" else max(1, ELEMENTS_AT_ONCE // max(elements, 1))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def corners(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point and their bilinear weights; 0 for those outside the map.

    points (..., 2) -> index (..., 4) int64 into the flattened map, weight (..., 4) float32.
    """
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    rows: list[tuple[Tensor, Tensor]] = []  # (pixel, weight) of the two rows and of the two columns
    columns: list[tuple[Tensor, Tensor]] = []
    for start, place, length, pairs in ((left, x, width, columns), (top, y, height, rows)):
        for pixel in (start, start + 1):
            inside = (pixel >= 0) & (pixel < length)
            pairs.append((pixel.clamp(0, length - 1), (1 - (place - pixel).abs()) * inside))
    index = [row * width + column for row, _ in rows for column, _ in columns]
    weight = [down * along for _, down in rows for _, along in columns]
    return torch.stack(index, dim=-1).long(), torch.stack(weight, dim=-1)


class MaskSampler(Protocol):
    """Mask logits at points: rows @ features @ sampling, for rows of mask weights, and their gradients.

    The order of the two products affects only the amount of work. rows (G, M, E), logits (G, M, P). Calls of `backward`
    accumulate the gradient of the features, which `grad_features` returns: (G, E, h, w), channels last in memory.
    """

    def logits(self, rows: Tensor) -> Tensor: ...

    def backward(self, grad: Tensor, rows: Tensor) -> Tensor:
        """Gradient of `rows` from that of `logits`."""
        ...

    def grad_features(self) -> Tensor: ...


def mask_sampler(features: Tensor, points: Tensor) -> MaskSampler:
    """The faster sampler; features (G, E, h, w), not copied if channels last in memory; points (G, P, 2)."""
    few_pixels = 2 * features.shape[2] * features.shape[3] <= points.shape[1]
    return (
        _PixelsFirst(features, points)
        if few_pixels and features.device.type == "cpu"
        else _PointsFirst(features, points)
    )


class Products:
    """Products of rows with a table (G, P, E) of the features at P places; accumulates the table's gradient."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.grad: Tensor | None = None

    def logits(self, rows: Tensor) -> Tensor:
        return torch.bmm(rows, self.table.mT)

    def backward(self, grad: Tensor, rows: Tensor) -> Tensor:
        if self.grad is None:
            self.grad = torch.zeros_like(self.table)
        self.grad.baddbmm_(grad.mT, rows)
        return torch.bmm(grad, self.table)


class _PointsFirst(Products):
    """Samples features at the points, then multiplies."""

    def __init__(self, features: Tensor, points: Tensor) -> None:
        super().__init__(sample_features(features, points))
        self.points, (self.height, self.width) = points, features.shape[2:]

    def grad_features(self) -> Tensor:
        assert self.grad is not None
        return spread_to_features(self.grad, self.points, self.height, self.width)


class _PixelsFirst:
    """Computes logits of all pixels, then samples them: for a CPU and more points than pixels."""

    def __init__(self, features: Tensor, points: Tensor) -> None:
        self.size = features.shape[2:]
        self.pixels = as_rows(features)  # (G, h*w, E)
        self.corners = [corners(at, *self.size) for at in points]  # (P, 4) twice, of each image
        self.back: list[TransposedBags] = []
        self.grad = torch.zeros_like(self.pixels)

    def logits(self, rows: Tensor) -> Tensor:
        found = rows.new_empty(*rows.shape[:2], len(self.corners[0][0]))  # (G, M, P)
        if found.numel() == 0:
            return found  # embedding_bag refuses rows without columns
        for image, own, (index, weight), target in zip(self.pixels, rows, self.corners, found, strict=True):
            table = image @ own.T  # (h*w, M)
            parts = zip(
                *(x.split(POINTS_AT_ONCE) for x in (index, weight)), target.split(POINTS_AT_ONCE, 1), strict=True
            )
            for some, shares, part in parts:
                part.copy_(sum_bags(table, some, shares).T)
        return found

    def backward(self, grad: Tensor, rows: Tensor) -> Tensor:
        grad_rows = torch.empty_like(rows)
        if rows.numel() == 0:
            return grad_rows
        if not self.back:
            self.back = [TransposedBags(index, self.pixels.shape[1]) for index, _ in self.corners]
        grad_table = grad.new_empty(self.pixels.shape[1], grad.shape[1])  # (h*w, M)
        for image, (_, weight) in enumerate(self.corners):
            for some, part in self.back[image](grad[image].T.contiguous(), weight):
                grad_table[some] = part
            self.grad[image].addmm_(grad_table, rows[image])
            torch.mm(grad_table.T, self.pixels[image], out=grad_rows[image])
        return grad_rows

    def grad_features(self) -> Tensor:
        return as_map(self.grad, *self.size)


def sample_features(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear values at points, 0 outside: features (G, E, h, w), points (G, P, 2) -> (G, P, E).

    Autograd does not see it; `spread_to_features` computes its gradient.
    """
    batch, channels, height, width = features.shape
    rows = as_rows(features)
    if features.device.type != "cpu":
        return _sample_by_attention(rows, points, height, width)
    found = features.new_empty(batch, points.shape[1], channels)
    for image, at, target in zip(rows, points, found, strict=True):
        for some, part in zip(at.split(POINTS_AT_ONCE), target.split(POINTS_AT_ONCE), strict=True):
            part.copy_(sum_bags(image, *corners(some, height, width)))
    return found


def spread_to_features(grad: Tensor, points: Tensor, height: int, width: int) -> Tensor:
    """Gradient of `sample_features`: grad (G, P, E), points (G, P, 2) -> (G, E, height, width), channels last."""
    sums = grad.new_zeros(len(grad), height * width, grad.shape[2])
    if grad.device.type == "cpu":
        for image, at, target in zip(grad, points, sums, strict=True):
            index, weight = corners(at, height, width)
            for rows, part in TransposedBags(index, len(target))(image, weight):
                target[rows] = part
    else:
        with torch.enable_grad():
            sampled = _sample_by_attention(sums.requires_grad_(), points, height, width)
        sums = torch.autograd.grad(sampled, [sums], [grad])[0]
    return as_map(sums, height, width)


def _sample_by_attention(rows: Tensor, points: Tensor, height: int, width: int) -> Tensor:
    """rows (G, h*w, E), points (G, P, 2) -> (G, P, E), as deformable attention of one head to one point."""
    positions = (points * points.new_tensor([width, height]))[:, :, None, None, None]  # (G, P, 1, 1, 1, 2)
    return deformable_attention(rows[:, :, None], [(height, width)], positions, torch.ones_like(positions[..., 0]))


def sample_targets(masks: list[Tensor], points: Tensor) -> Tensor:
    """Bilinear values of target masks at points, without converting the masks to float.

    masks: G tensors (N, H, W) bool or uint8, points (G, P, 2) -> (G, N, P) float32, N the maximum of the images;
    missing masks are 0.
    """
    values = torch.zeros(len(points), max(map(len, masks)), points.shape[1], device=points.device)
    some = POINTS_AT_ONCE if points.device.type == "cpu" else points.shape[1]
    for at, target in zip(points.split(some, dim=1), values.split(some, dim=2), strict=True):
        indices, weights = corners(at, *masks[0].shape[1:])  # (G, n, 4)
        for image, index, weight, part in zip(masks, indices, weights, target, strict=True):
            pixels = image.flatten(1).view(torch.uint8)  # (N, H*W)
            if pixels.device.type != "cpu":
                taken = pixels.index_select(1, index.flatten()).unflatten(1, index.shape)  # (N, n, 4)
                part[: len(pixels)] = (taken * weight).sum(-1)
                continue
            for corner, share in zip(index.unbind(1), weight.unbind(1), strict=True):
                # On bytes NumPy's take is several times faster than index_select.
                taken = torch.from_numpy(np.take(pixels.numpy(), corner.numpy(), axis=1))
                part[: len(pixels)].addcmul_(taken, share)
    return values


@torch.no_grad()
def choose_points(logits: Tensor, candidates: int, uncertain: int) -> Tensor:
    """Choose the points of each row's mask loss: the most uncertain candidates, and all other points.

    logits (M, P): of the first `candidates` columns the `uncertain` ones with the smallest |logit| are kept, the others
    are all kept. Returns columns (M, uncertain + P - candidates), unsorted.
    """
    columns = torch.empty(len(logits), uncertain + logits.shape[1] - candidates, dtype=torch.long, device=logits.device)
    if logits.device.type == "cpu" and 0 < uncertain < candidates:
        # NumPy's selection on one core is several times faster than topk on two.
        for row, kept in zip(logits[:, :candidates].numpy(), columns[:, :uncertain].numpy(), strict=True):
            kept[:] = _find_smallest(np.abs(row), uncertain)
    else:
        certainty = logits[:, :candidates].abs()
        columns[:, :uncertain] = certainty.topk(uncertain, dim=1, largest=False, sorted=False).indices
    columns[:, uncertain:] = torch.arange(candidates, logits.shape[1], device=logits.device)
    return columns


def _find_smallest(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` smallest values. A sample bounds the largest of them, and few values are in between."""
    sample = np.sort(values[::32])
    place, margin = count * len(sample) // len(values), 2 * math.isqrt(len(sample))  # four standard deviations
    low, high = sample[max(0, place - margin)], sample[min(len(sample) - 1, place + margin)]
    places = np.flatnonzero(values <= high)
    taken = values[places]
    between = taken[taken >= low]
    rank = count - 1 - (len(taken) - len(between))
    if 0 <= rank < len(between):
        chosen: npt.NDArray[np.int64] = places[taken <= np.partition(between, rank)[rank]]
        if len(chosen) == count:
            return chosen
    return np.argpartition(values, count)[:count]  # the sample was unlucky, or values are equal or NaN
