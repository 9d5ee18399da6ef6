"""Logits of the network to scored instances at the image's own size: the one way, for training, use and export alike.

Nothing is merged into a label map and no mask passes through another resolution than the canvas. Peak memory is bounded
by a byte budget: masks are made in parts and leave as RLE.

B batch, Q queries, K classes, D detections kept of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..instances import Instances
from .resize_masks import resize_masks

# Without a pixel_mask nothing says how large the canvas was. Masks come at a quarter of it (with the plain neck at a
# sixteenth; the missing step of interpolation then makes edges a little smoother, nothing more).
MASK_STRIDE = 4

# What the parts of masks made at one time may take.
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
    level = math.log(mask_threshold / (1 - mask_threshold))
    results = []
    for index, size in enumerate(sizes):
        mask_logits = masks_queries_logits[index]
        canvas, real = _canvas_and_real_size(mask_logits, None if pixel_mask is None else pixel_mask[index])
        scores, query, labels = _best(class_queries_logits[index], threshold, max_detections)
        kept, position = query.unique(return_inverse=True)  # each query's mask is made once, for all of its classes
        with torch.autocast(mask_logits.device.type, enabled=False):
            masks = resize_masks(mask_logits, kept, canvas, real, size, level, memory_bytes)
        mask_of = position.cpu().numpy()
        final = scores.cpu().numpy() * masks.certainty[mask_of].astype(np.float32)
        best = np.argsort(-final, kind="stable")
        best = best[(masks.areas[mask_of] > 0)[best] & (final >= threshold)[best]]
        rles = tuple(masks.rles[mask] for mask in mask_of[best].tolist())
        results.append(Instances(*size, rles, labels.cpu().numpy()[best], final[best], categories))
    return results


def _best(class_logits: Tensor, threshold: float, max_detections: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of query and class: class_logits (Q, K+1) to scores, queries, labels (D,) each, best first."""
    probabilities = class_logits.float().softmax(-1)[:, :-1]  # (Q, K)
    queries, classes = probabilities.shape
    scores, flat = probabilities.flatten().topk(min(max_detections, queries * classes))  # (D,), sorted
    # The mean over the mask is at most 1, so what is below the threshold now can only stay below it.
    possible = scores >= threshold
    scores, flat = scores[possible], flat[possible]
    return scores, flat // classes, flat % classes


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
