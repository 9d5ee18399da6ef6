"""Does an exported file say what the network says? Asked on real images before the file is kept.

B batch, Q queries, N instances of one image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..errors import CheckpointError
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from ..inference.onnx_model import DETECTIONS, LOGITS, OnnxModel
from ..instances import Instances, encode_masks
from ..model import Mask2FormerDinov3ForInstanceSegmentation

TOLERANCE = 1e-3  # of a logit; relative where it is above 1
# Two decisions of the network are discrete, where a query is born and where it may look. The last bit of a float can
# turn one, and everything of this one query with it; so not every single logit is asked for.
SHARE_WITHIN = 0.95


@dataclass(frozen=True)
class Bounds:
    """When instances count as the same: those of at least `score` on one side have a partner of their class on the
    other, with a mask of at least this IoU and a score no further away than `drift`; at least a `share` of them do."""

    score: float
    iou: float
    drift: float
    share: float


# fp32: a rounding error apart. The others as measured on the sample (docs/export.md).
BOUNDS = {
    "fp32": Bounds(score=0.1, iou=0.95, drift=0.01, share=0.98),
    "fp16": Bounds(score=0.5, iou=0.9, drift=0.05, share=0.95),
    "int8": Bounds(score=0.5, iou=0.8, drift=0.2, share=0.9),
}


@dataclass(frozen=True)
class Agreement:
    """What was found. batches: shapes of the inputs. within: share of the logits within TOLERANCE, of the batch and
    output where it is least. instances: how many were looked for on either side; matched: the share with a partner."""

    batches: tuple[tuple[int, ...], ...]
    within: float
    instances: int
    matched: float

    def text(self) -> str:
        """One line for people."""
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.batches)
        return (
            f"checked on batches of {shapes}: {self.within:.2%} of the logits within {TOLERANCE}, "
            f"{self.matched:.1%} of {self.instances} instances the same"
        )


@torch.no_grad()
def check_agreement(
    network: Mask2FormerDinov3ForInstanceSegmentation,
    exported: OnnxModel,
    batches: Sequence[tuple[Mask2FormerDinov3ImageProcessor, Sequence[Prepared]]],
) -> Agreement:
    """Run both on every batch and compare logits (fp32 only) and instances.

    batches: prepared images with the processor that made them. Raises CheckpointError saying what differs, or, for fp16
    and int8, that there was no instance by which to judge.
    """
    precision = exported.metadata.precision
    bounds = BOUNDS[precision]
    shapes: list[tuple[int, ...]] = []
    within: list[float] = []
    partners: list[NDArray[np.bool_]] = []
    for processor, prepared in batches:
        inputs = processor.collate(prepared)
        pixels, mask, sizes = inputs["pixel_values"], inputs["pixel_mask"], inputs["original_sizes"]
        shapes.append(tuple(pixels.shape))
        expected = network(pixel_values=pixels, pixel_mask=mask)
        got = exported(pixel_values=pixels, pixel_mask=mask)
        theirs, ours = ([getattr(side, name) for name in LOGITS] for side in (expected, got))
        if not all(bool(logits.isfinite().all()) for logits in ours):
            raise CheckpointError(f"the exported graph gives logits that are not finite in {precision}")
        pairs = zip(theirs, in_order_of(theirs, ours), strict=True)
        within.extend(float((relative_error(*pair) <= TOLERANCE).double().mean()) for pair in pairs)
        sides = [processor.post_process(one, sizes, mask, threshold=bounds.score / 2) for one in (expected, got)]
        partners.extend(same_instances(one, other, bounds) for one, other in zip(*sides, strict=True))
        if len(exported.session.get_outputs()) > len(LOGITS):
            check_detections(exported, processor, got, pixels, mask)
    have_partner = np.concatenate([np.zeros(0, dtype=bool), *partners])
    found = Agreement(
        batches=tuple(shapes),
        within=min(within),
        instances=len(have_partner),
        matched=float(have_partner.mean()) if len(have_partner) else 1.0,
    )
    if precision != "fp32" and not len(have_partner):
        raise CheckpointError(
            f"{precision} cannot be checked: the model finds nothing with a score of {bounds.score} in the images; "
            f"give some of its own kind (--images DIR)"
        )
    if (precision == "fp32" and found.within < SHARE_WITHIN) or found.matched < bounds.share:
        raise CheckpointError(f"the exported file is not the model in {precision}: {found.text()}")
    return found


def in_order_of(expected: Sequence[Tensor], got: Sequence[Tensor]) -> list[Tensor]:
    """The second logits with their queries in the order of the first.

    expected, got: class logits (B, Q, K+1) and mask logits (B, Q, h, w). Queries born at seeds come in the order of the
    seeds' scores. Where two scores are one but for the last bit they change places, and nothing else changes.
    """
    one, other = (
        torch.cat([classes, adaptive_avg_pool2d(torch.tanh(masks / 10), 16).flatten(2)], 2)  # (B, Q, K+1 + 256)
        for classes, masks in (expected, got)
    )
    order = torch.stack([torch.as_tensor(linear_sum_assignment(cost)[1]) for cost in torch.cdist(one, other)])  # (B, Q)
    images = torch.arange(len(order))[:, None]
    return [logits[images, order] for logits in got]


def relative_error(expected: Tensor, got: Tensor) -> Tensor:
    """Absolute, and relative where the expected value is above 1: the spatial prior is tens of thousands far away."""
    return (expected - got).abs() / expected.abs().clamp(min=1.0)


def same_instances(one: Instances, other: Instances, bounds: Bounds) -> NDArray[np.bool_]:
    """For every instance of either side, best first, that is above the score: does it have a partner?"""
    if not len(one) or not len(other):
        return np.zeros(int((one.scores >= bounds.score).sum() + (other.scores >= bounds.score).sum()), dtype=bool)
    rles = ([dict(rle) for rle in side.rles] for side in (one, other))
    iou = np.asarray(rle_codec.iou(*rles, [0] * len(other)))
    partner = (
        (iou >= bounds.iou)
        & (one.labels[:, None] == other.labels[None])
        & (np.abs(one.scores[:, None] - other.scores[None]) <= bounds.drift)
    )  # (N of one, N of other)
    sides = ((partner.any(1), one.scores), (partner.any(0), other.scores))
    return np.fromiter(chain.from_iterable(has[scores >= bounds.score] for has, scores in sides), dtype=bool)


def check_detections(
    exported: OnnxModel, processor: Mask2FormerDinov3ImageProcessor, logits: object, pixels: Tensor, mask: Tensor
) -> None:
    """Are the instances that the graph itself makes those that our post-processing makes of the graph's logits?

    logits: the output that belongs to pixels and mask. Raises CheckpointError.
    """
    real = [(int(one.any(1).sum()), int(one.any(0).sum())) for one in mask]
    feed = {"pixel_values": pixels.numpy(), "pixel_mask": mask.numpy()}
    scores, labels, masks = exported.run(feed, DETECTIONS)
    expected = processor.post_process(logits, real, mask, max_detections=scores.shape[1])
    for index, (height, width) in enumerate(real):
        kept = scores[index] > 0
        if masks[index, :, height:].any() or masks[index, :, :, width:].any():
            raise CheckpointError("the exported graph's masks reach into the padding")
        inside = masks[index, kept, :height, :width]
        found = Instances(height, width, encode_masks(inside), labels[index][kept], scores[index][kept], None)
        partners = same_instances(expected[index], found, BOUNDS["fp32"])
        if len(partners) and partners.mean() < BOUNDS["fp32"].share:
            raise CheckpointError(
                f"the exported graph's instances are not those of its logits: {partners.mean():.1%} of "
                f"{len(partners)} the same"
            )
