"""Compare an exported file with the network on real images; `export` keeps the file only if they agree.

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

from ..errors import CheckpointError, OptionError, mismatch
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from ..inference.onnx_model import DETECTIONS, LOGITS, OnnxModel
from ..inference.postprocess import real_sizes
from ..instances import Instances, encode_masks
from ..model import Mask2FormerDinov3ForInstanceSegmentation, Mask2FormerDinov3Output

TOLERANCE = 1e-3  # of a logit; relative where it is above 1
# Two decisions of the network are discrete: where a query is initialised, and where it may attend. The last bit of a
# float can change such a decision, and with it all logits of that query; so a few logits may differ.
SHARE_WITHIN = 0.95


@dataclass(frozen=True)
class Bounds:
    """When the instances of both sides count as the same.

    At least the fraction `share` of the instances with at least `score` must have a partner on the other side: of the
    same class, with a mask of at least this IoU, and a score that differs by at most `drift`.
    """

    score: float
    iou: float
    drift: float
    share: float


# fp32 differs by rounding errors. The other bounds were measured on the sample (docs/export.md).
BOUNDS = {
    "fp32": Bounds(score=0.1, iou=0.95, drift=0.01, share=0.98),
    "fp16": Bounds(score=0.5, iou=0.9, drift=0.05, share=0.95),
    "int8": Bounds(score=0.5, iou=0.8, drift=0.2, share=0.9),
}


@dataclass(frozen=True)
class Agreement:
    """The result of a comparison.

    batches: shapes of the inputs. within: fraction of the logits within TOLERANCE, the lowest of all batches and
    outputs. instances: number of instances of both sides that were compared; matched: fraction with a partner.
    """

    batches: tuple[tuple[int, ...], ...]
    within: float
    instances: int
    matched: float

    def text(self) -> str:
        """The result in one line."""
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

    batches: prepared images with the processor that made them. Raises CheckpointError that says what differs, or, for
    fp16 and int8, that the images have no instance to compare.
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
            raise CheckpointError(f"exported file: {mismatch(f'finite logits in {precision}', 'NaN or infinity')}")
        pairs = zip(theirs, align_queries(theirs, ours), strict=True)
        within.extend(float((relative_error(*pair) <= TOLERANCE).double().mean()) for pair in pairs)
        sides = [processor.post_process(one, sizes, mask, threshold=bounds.score / 2) for one in (expected, got)]
        partners.extend(match_instances(one, other, bounds) for one, other in zip(*sides, strict=True))
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
        expected = f"images with instances of a score of at least {bounds.score}, to check {precision}"
        raise OptionError("images", expected, "none", "name a folder of images like those the model was trained on")
    if (precision == "fp32" and found.within < SHARE_WITHIN) or found.matched < bounds.share:
        share = f"{SHARE_WITHIN:.0%} of the logits and " if precision == "fp32" else ""
        expected = f"{share}{bounds.share:.0%} of the instances of the model in {precision}"
        raise CheckpointError(f"exported file: {mismatch(expected, f'another result ({found.text()})')}")
    return found


def align_queries(expected: Sequence[Tensor], got: Sequence[Tensor]) -> list[Tensor]:
    """Reorder the queries of `got` to match those of `expected`.

    expected, got: class logits (B, Q, K+1) and mask logits (B, Q, h, w). Queries initialised at seeds are sorted by the
    seeds' scores. Two scores that differ in the last bit only may change places, which changes nothing else.
    """
    one, other = (
        torch.cat([classes, adaptive_avg_pool2d(torch.tanh(masks / 10), 16).flatten(2)], 2)  # (B, Q, K+1 + 256)
        for classes, masks in (expected, got)
    )
    order = torch.stack([torch.as_tensor(linear_sum_assignment(cost)[1]) for cost in torch.cdist(one, other)])  # (B, Q)
    images = torch.arange(len(order))[:, None]
    return [logits[images, order] for logits in got]


def relative_error(expected: Tensor, got: Tensor) -> Tensor:
    """Absolute error, relative where the expected value is above 1: far from an instance, logits reach -10,000s."""
    return (expected - got).abs() / expected.abs().clamp(min=1.0)


def match_instances(one: Instances, other: Instances, bounds: Bounds) -> NDArray[np.bool_]:
    """For every instance of either side above the score, best first: whether it has a partner (see `Bounds`)."""
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
    exported: OnnxModel,
    processor: Mask2FormerDinov3ImageProcessor,
    logits: Mask2FormerDinov3Output,
    pixels: Tensor,
    mask: Tensor,
) -> None:
    """Compare the instances in the graph's own outputs with those that post-processing makes of its logits.

    logits: the output for pixels (B, C, H, W) and mask (B, H, W). Raises CheckpointError when they differ.
    """
    real = real_sizes(mask)
    feed = {"pixel_values": pixels.numpy(), "pixel_mask": mask.numpy()}
    scores, labels, masks = exported.run(feed, DETECTIONS)
    expected = processor.post_process(logits, real, mask, max_detections=scores.shape[1])
    for index, (height, width) in enumerate(real):
        kept = scores[index] > 0
        if masks[index, :, height:].any() or masks[index, :, :, width:].any():
            got = "masks that reach into the padding"
            raise CheckpointError(f"exported file: {mismatch('masks inside the image', got)}")
        inside = masks[index, kept, :height, :width]
        found = Instances(height, width, encode_masks(inside), labels[index][kept], scores[index][kept], None)
        partners = match_instances(expected[index], found, BOUNDS["fp32"])
        if len(partners) and partners.mean() < BOUNDS["fp32"].share:
            got = f"others ({partners.mean():.1%} of {len(partners)} the same)"
            raise CheckpointError(f"exported file: {mismatch('the instances of its own logits', got)}")
