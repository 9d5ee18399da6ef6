"""Logits of the network to scored instances at the image's own size: the only implementation, used everywhere.

Nothing is merged into a label map, and no mask passes through another resolution than the canvas. Peak memory is
bounded by a byte budget: masks are made in parts and stored as RLE.

B batch, Q queries, K classes, D detections kept of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, OptionError
from ..instances import Instances, Unreported
from ..model.padding import real_sides
from .copies import finish_instances
from .resize_masks import resize_masks
from .settings import InferenceSettings

# The assumed ratio of canvas to mask logits when there is no pixel_mask, which would tell the size of the canvas. With
# the plain neck the ratio is 16; edges then come out a little smoother, because one interpolation step is missing.
MASK_STRIDE = 4

FURTHEST_LOGIT = 104.0  # sigmoid(-104) is 0 in float32
SHOWN_BELOW = 10  # candidates of an image without any above the threshold, among which its best score is found
MEMORY_BYTES = 32 * 2**20  # for the parts of masks that are in memory at one time


@torch.no_grad()
def post_process(
    class_queries_logits: Tensor,
    masks_queries_logits: Tensor,
    target_sizes: Sequence[tuple[int, int]] | Tensor,
    pixel_mask: Tensor | None = None,
    *,
    settings: InferenceSettings | Sequence[InferenceSettings],
    mask_threshold: float = 0.5,
    categories: tuple[tuple[int, str], ...] | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Instances]:
    """Scored instances of every image of a batch, best first; the same mask may appear once per class.

    class_queries_logits (B, Q, K+1), the last column is "no object". masks_queries_logits (B, Q, h', w'), any stride.
    target_sizes: (height, width) of each original image. pixel_mask (B, canvas height, canvas width): non-zero on real
    pixels, which fill the top left corner; None: no padding. settings: of all images or of each; used are threshold
    (without one 0.5; one of each class in the order of the labels), max_detections (without one Q), copy_overlap and
    score_calibration (without one none).
    Score (the same as in Mask2Former, arXiv:2112.01527, and its published AP): softmax over K+1 columns, the last one
    then dropped; the best min(max_detections, Q*K) of all queries x classes; times the mean sigmoid over the mask's own
    pixels at the image's own size. Empty masks are dropped, then those with a score below the threshold, then copies.
    `Instances.left_out` says what is left out beyond that.
    mask_threshold: probability above which a pixel belongs to the mask; the contract's score is at 0.5 (logit > 0). At
    0 every pixel does. Works on any device, in float32. Raises ValueError for wrong shapes, OptionError for a
    mask_threshold outside 0 to 1, CheckpointError for logits that are NaN or infinite.
    """
    if not 0 <= mask_threshold <= 1:
        raise OptionError("mask_threshold", "a probability from 0 to 1", mask_threshold)
    sizes = [(int(height), int(width)) for height, width in target_sizes]
    _check_shapes(class_queries_logits, masks_queries_logits, sizes, pixel_mask)
    _check_finite(class_queries_logits, masks_queries_logits)
    level = _logit(mask_threshold)
    each = [settings] * len(sizes) if isinstance(settings, InferenceSettings) else settings
    num_queries = class_queries_logits.shape[1]
    results = []
    for index, (size, asked) in enumerate(zip(sizes, each, strict=True)):
        mask_logits = masks_queries_logits[index]
        canvas, real = _canvas_and_real_size(mask_logits, None if pixel_mask is None else pixel_mask[index])
        limit = asked.max_detections or num_queries
        pairs = _best_pairs(class_queries_logits[index], asked.network_threshold, limit)
        kept, position = pairs.query.unique(return_inverse=True)  # each query's mask is made once, for all its classes
        with torch.autocast(mask_logits.device.type, enabled=False):
            masks = resize_masks(mask_logits, kept, canvas, real, size, level, memory_bytes)
        mask_of, label = position.cpu().numpy(), pairs.label.cpu().numpy()
        final = pairs.score.cpu().numpy() * masks.certainty[mask_of].astype(np.float32)
        best = np.argsort(-final, kind="stable")
        best = best[(masks.areas[mask_of] > 0)[best]]
        above = best[(final >= pairs.least.cpu().numpy())[best]]
        left_out = Unreported(
            limit=pairs.beyond,
            full=int(len(np.unique(mask_of[above])) == num_queries),
            best_score=float(final[best[0]]) if len(best) and not len(above) else 0.0,
        )
        rles = tuple(masks.rles[mask] for mask in mask_of[above].tolist())
        found = Instances(*size, rles, label[above], final[above], categories, left_out)
        results.append(finish_instances(found, asked))
    return results


def _logit(probability: float) -> float:
    """The logit of a probability; of 0 and 1 the ends of what differs from them in float32."""
    if probability in (0, 1):
        return FURTHEST_LOGIT if probability else -FURTHEST_LOGIT
    return math.log(probability / (1 - probability))


class Logits(Protocol):
    """What post-processing reads of a model's output: `Mask2FormerDinov3Output`, Hugging Face's, or a user's own."""

    @property
    def class_queries_logits(self) -> Tensor | None: ...
    @property
    def masks_queries_logits(self) -> Tensor | None: ...


def logits_of(outputs: Logits) -> tuple[Tensor, Tensor]:
    """Class logits (B, Q, K+1) and mask logits (B, Q, h, w). Raises ValueError for an output without them."""
    classes, masks = outputs.class_queries_logits, outputs.masks_queries_logits
    if classes is None or masks is None:
        raise ValueError("outputs: expected logits of classes and masks; call the model with output_masks=True")
    return classes, masks


def pixel_mask_of(outputs: Logits) -> Tensor | None:
    """The pixel_mask (B, H, W) that an output carries; only those of this package's model do."""
    carried: Tensor | None = getattr(outputs, "pixel_mask", None)
    return carried


def real_sizes(pixel_mask: Tensor) -> list[tuple[int, int]]:
    """(height, width) of the real part of each canvas, which lies top left: pixel_mask (B, H, W), non-zero there."""
    return [(height, width) for width, height in real_sides(pixel_mask.bool()).tolist()]


class _Pairs(NamedTuple):
    """Pairs of query and class, best first, (D,) each. least: the threshold of their class. beyond: pairs above their
    threshold that the limit leaves out."""

    score: Tensor
    query: Tensor
    label: Tensor
    least: Tensor
    beyond: int


def _best_pairs(class_logits: Tensor, threshold: float | tuple[float, ...], max_detections: int) -> _Pairs:
    """The best pairs above their threshold; if there is none, some of the best below it. class_logits (Q, K+1)."""
    probabilities = class_logits.float().softmax(-1)[:, :-1]  # (Q, K)
    classes = probabilities.shape[1]
    least = torch.as_tensor(threshold, dtype=torch.float32)
    if least.ndim and len(least) != classes:
        raise OptionError("threshold", f"{classes} thresholds, one per class", len(least))
    least = least.to(probabilities.device).expand(classes)
    # The mean over the mask is at most 1, so a score below the threshold stays below it.
    possible = probabilities >= least
    number = int(possible.sum())
    if number:
        probabilities = probabilities.where(possible, -1.0)
    count = min(max_detections, number or SHOWN_BELOW, probabilities.numel())
    scores, flat = probabilities.flatten().topk(count)  # (D,), sorted
    labels = flat % classes
    return _Pairs(scores, flat // classes, labels, least[labels], max(number - max_detections, 0))


def _canvas_and_real_size(mask_logits: Tensor, pixel_mask: Tensor | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the canvas and of its real part; pixel_mask (canvas height, canvas width) of one image."""
    if pixel_mask is None:
        height, width = mask_logits.shape[-2:]
        canvas = (height * MASK_STRIDE, width * MASK_STRIDE)
        return canvas, canvas
    mask = pixel_mask.bool()
    ((height, width),) = real_sizes(mask[None])
    if 0 in (height, width) or int(mask.sum()) != height * width or not bool(mask[:height, :width].all()):
        raise ValueError(
            "pixel_mask: expected real pixels as one rectangle in the top left corner and padding at the right and "
            "the bottom, as the image processor makes it"
        )
    return (mask.shape[0], mask.shape[1]), (height, width)


def _check_shapes(
    class_queries_logits: Tensor,
    masks_queries_logits: Tensor,
    sizes: list[tuple[int, int]],
    pixel_mask: Tensor | None,
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


def _check_finite(class_queries_logits: Tensor, masks_queries_logits: Tensor) -> None:
    for kind, logits in (("class", class_queries_logits), ("masks", masks_queries_logits)):
        # A sum is finite if all its terms are, unless they are huge: a cheap test that is nearly always enough.
        if not bool(logits.sum(dtype=torch.float32).isfinite()) and not bool(logits.isfinite().all()):
            raise CheckpointError(
                f"{kind}_queries_logits: expected finite numbers, got NaN or infinity; the model's weights are "
                f"damaged, or its numbers exceed the range of {logits.dtype}: run it in float32, or use an earlier "
                f"checkpoint"
            )
