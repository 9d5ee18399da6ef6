"""Logits of the network to scored instances at the image's own size: the one way, for training, use and export alike.

Nothing is merged into a label map and no mask passes through another resolution than the canvas. Peak memory is bounded
by a byte budget: masks are made a few at a time and leave as RLE.

B batch, Q queries, K classes, D detections kept of one image, n masks at hand at one time,
h w the real (unpadded) part of the canvas, H W the image's own size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .instances import Instances, Rle, encode_masks, mask_areas
from .model.bags import bag

# Without a pixel_mask nothing says how large the canvas was. Masks come at a quarter of it (with the plain neck at a
# sixteenth; the missing step of interpolation then makes edges a little smoother, nothing more).
MASK_STRIDE = 4

# What the masks made at one time may take. One mask of the original size is always made, however large.
MEMORY_BYTES = 32 * 2**20


@torch.no_grad()
def post_process(
    class_queries_logits: Tensor,
    masks_queries_logits: Tensor,
    target_sizes: Sequence[tuple[int, int]] | Tensor,
    pixel_mask: Tensor | None = None,
    *,
    threshold: float = 0.0,
    max_detections: int = 100,
    mask_threshold: float = 0.5,
    categories: tuple[tuple[int, str], ...] | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Instances]:
    """Scored instances of every image of a batch, best first; a mask may be there once per class.

    class_queries_logits (B, Q, K+1), the last column is "no object". masks_queries_logits (B, Q, h', w'), any stride.
    target_sizes: (height, width) of each image itself. pixel_mask (B, canvas height, canvas width): non-zero on real
    pixels, which fill the top left corner; None: no padding.
    Score (the same as in Mask2Former, arXiv:2112.01527, and its published AP): softmax over K+1 columns, the last one
    then dropped; the best min(max_detections, Q*K) of all queries x classes; times the mean sigmoid over the mask's own
    pixels at the image's own size. Empty masks are dropped, then those with a score below `threshold`.
    mask_threshold: probability above which a pixel belongs to the mask; the contract's score is at 0.5 (logit > 0).
    Works on any device, in float32. Raises ValueError for wrong shapes and for logits that are not numbers.
    """
    sizes = [(int(height), int(width)) for height, width in target_sizes]
    _check(class_queries_logits, masks_queries_logits, sizes, pixel_mask, max_detections, mask_threshold)
    results = []
    for index, size in enumerate(sizes):
        canvas, real = _canvas_and_real_size(masks_queries_logits, None if pixel_mask is None else pixel_mask[index])
        results.append(
            _one_image(
                class_queries_logits[index],
                masks_queries_logits[index],
                _Resizer(canvas, real, size, math.log(mask_threshold / (1 - mask_threshold)), memory_bytes),
                threshold,
                max_detections,
                categories,
            )
        )
    return results


def _one_image(
    class_logits: Tensor,
    mask_logits: Tensor,
    resizer: _Resizer,
    threshold: float,
    max_detections: int,
    categories: tuple[tuple[int, str], ...] | None,
) -> Instances:
    """class_logits (Q, K+1), mask_logits (Q, h', w') to the instances of one image."""
    probabilities = class_logits.float().softmax(-1)[:, :-1]  # (Q, K)
    queries, classes = probabilities.shape
    scores, flat = probabilities.flatten().topk(min(max_detections, queries * classes))  # (D,), sorted
    # The mean over the mask is at most 1, so what is below the threshold now can only stay below it.
    possible = scores >= threshold
    scores, flat = scores[possible], flat[possible]
    query, label = flat // classes, flat % classes  # (D,), (D,)
    kept, position = query.unique(return_inverse=True)  # each query's mask is made once, for all of its classes
    rles, mean_sigmoid, areas = resizer(mask_logits, kept)
    scores = scores * mean_sigmoid[position]
    found = (areas[position] > 0) & (scores >= threshold)
    best = scores.argsort(descending=True, stable=True)
    best = best[found[best]].cpu()
    position = position.cpu()
    return Instances(
        *resizer.size,
        tuple(rles[position[index]] for index in best.tolist()),
        label.cpu()[best].numpy(),
        scores.cpu()[best].numpy(),
        categories,
    )


class _Resizer:
    """Mask logits to masks at the image's own size, a few at a time, within a byte budget."""

    def __init__(
        self,
        canvas: tuple[int, int],
        real: tuple[int, int],
        size: tuple[int, int],
        level: float,
        memory_bytes: int,
    ) -> None:
        """canvas, real, size: (height, width) of the padded input, its real part, the image itself; level: a logit."""
        self.canvas, self.real, self.size, self.level = canvas, real, size, level
        self.memory_bytes = memory_bytes

    def __call__(self, mask_logits: Tensor, queries: Tensor) -> tuple[list[Rle], Tensor, Tensor]:
        """mask_logits (Q, h', w') and the n wanted of them: RLEs, mean sigmoid (n,), area (n,) on the same device."""
        height, width = mask_logits.shape[1:]
        (rows, columns), device = self.size, mask_logits.device
        down = _taps(height, self.canvas[0], self.real[0], rows, device)
        along = _taps(width, self.canvas[1], self.real[1], columns, device)
        # At one time: float32 with the rows resized, twice, then the logits and two of one byte.
        one = 4 * (height * width + 2 * rows * width) + 6 * rows * columns
        rles: list[Rle] = []
        sums = []
        for some in queries.split(max(1, self.memory_bytes // one)):
            logits = _resample(mask_logits[some].float(), *down).transpose(1, 2)  # (n, w', H)
            logits = _resample(logits, *along)  # (n, W, H), as RLE runs down the columns
            masks = logits > self.level
            # Outside the mask -inf, whose sigmoid is 0: on a CPU three times as fast as a product with the mask.
            sums.append(F.threshold(logits, self.level, -math.inf, inplace=True).sigmoid_().sum((1, 2)))
            rles.extend(encode_masks(np.swapaxes(masks.cpu().numpy(), 1, 2)))
            del logits, masks  # before the next chunk is made, or two of them would be there
        areas = torch.from_numpy(mask_areas(rles)).to(device)
        if not sums:
            return [], torch.zeros(0, device=device), areas
        return rles, torch.cat(sums) / areas.clamp(min=1), areas


def _taps(length: int, canvas: int, real: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """One axis from logits to the canvas, cropped, to the image: which logits each place reads, and their weights.

    Both steps are bilinear, so together they are linear: what they make of each single logit gives the weights, and
    nothing of the canvas's size has to be made. At most two logits for each of two canvas pixels: four.
    Returns index (size, 4) int32 and weight (size, 4) float32.
    """
    each = torch.eye(length, device=device)[None]  # (1, length, length)
    each = F.interpolate(each, canvas, mode="linear", align_corners=False)[..., :real]
    each = F.interpolate(each, size, mode="linear", align_corners=False)[0]  # (length, size)
    weight, index = each.topk(min(4, length), dim=0)
    return index.T.int(), weight.T.contiguous()


def _resample(logits: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """logits (n, length, m), index and weight (size, 4) -> (n, size, m)."""
    count, length, width = logits.shape
    first = torch.arange(count, dtype=torch.int32, device=logits.device)[:, None, None] * length
    bags = bag(logits.flatten(0, 1), (index + first).flatten(0, 1), weight.repeat(count, 1))
    return bags.view(count, len(index), width)


def _canvas_and_real_size(
    masks_queries_logits: Tensor, pixel_mask: Tensor | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the canvas and of its real part; pixel_mask (canvas height, canvas width) of one image."""
    if pixel_mask is None:
        height, width = masks_queries_logits.shape[-2:]
        canvas = (height * MASK_STRIDE, width * MASK_STRIDE)
        return canvas, canvas
    mask = pixel_mask.bool()
    real = (int(mask.any(1).sum()), int(mask.any(0).sum()))
    if 0 in real or not bool(mask[: real[0], : real[1]].all()):
        raise ValueError(
            "pixel_mask: expected real pixels as one rectangle in the top left corner and padding at the right and "
            "the bottom, as the image processor makes it"
        )
    return (mask.shape[0], mask.shape[1]), real


def _check(
    class_queries_logits: Tensor,
    masks_queries_logits: Tensor,
    sizes: list[tuple[int, int]],
    pixel_mask: Tensor | None,
    max_detections: int,
    mask_threshold: float,
) -> None:
    if class_queries_logits.ndim != 3 or class_queries_logits.shape[-1] < 2:
        raise ValueError(f"class_queries_logits: expected (B, Q, K+1), got {tuple(class_queries_logits.shape)}")
    batch, queries, _ = class_queries_logits.shape
    if masks_queries_logits.ndim != 4 or masks_queries_logits.shape[:2] != (batch, queries):
        raise ValueError(
            f"masks_queries_logits: expected ({batch}, {queries}, height, width) as class_queries_logits have it, "
            f"got {tuple(masks_queries_logits.shape)}"
        )
    if len(sizes) != batch or any(height < 1 or width < 1 for height, width in sizes):
        raise ValueError(f"target_sizes: expected {batch} times (height, width), one per image, got {sizes}")
    if pixel_mask is not None and (pixel_mask.ndim != 3 or pixel_mask.shape[0] != batch):
        raise ValueError(f"pixel_mask: expected ({batch}, height, width), got {tuple(pixel_mask.shape)}")
    if max_detections < 1:
        raise ValueError(f"max_detections: expected at least 1, got {max_detections}")
    if not 0 < mask_threshold < 1:
        raise ValueError(f"mask_threshold: expected a probability between 0 and 1, got {mask_threshold}")
    for name, logits in (("class", class_queries_logits), ("masks", masks_queries_logits)):
        # A sum is finite if all its terms are, unless they are huge: cheap, and enough nearly always.
        if not bool(logits.sum(dtype=torch.float32).isfinite()) and not bool(logits.isfinite().all()):
            raise ValueError(
                f"{name}_queries_logits hold NaN or infinity: the model's weights are broken, or its numbers leave "
                f"the range of {logits.dtype}; run it in float32, or take an earlier checkpoint"
            )
