"""Compare an exported file with the network on real images: logits and instances, each with its limits.

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

    precision: whose limits apply, a key of BOUNDS. batches: shapes of the inputs. finite: whether no logit is NaN or
    infinite; all numbers below are of finite batches. within: output -> fraction of its logits within TOLERANCE, of
    the worst batch; largest: output -> largest error, relative where a logit is above 1. instances: number of instances
    of both sides that were compared; matched: fraction with a partner. score_error, box_error (pixels), iou: of the
    partners that differ most; None without partners. detections: what is wrong with the outputs DETECTIONS, "" for
    nothing.
    """

    precision: str
    batches: tuple[tuple[int, ...], ...]
    finite: bool
    within: dict[str, float]
    largest: dict[str, float]
    instances: int
    matched: float
    score_error: float | None
    box_error: float | None
    iou: float | None
    detections: str

    def text(self) -> str:
        """The result in one line."""
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.batches)
        return (
            f"checked on batches of {shapes}: {min(self.within.values(), default=0.0):.2%} of the logits within "
            f"{TOLERANCE}, {self.matched:.1%} of {self.instances} instances the same"
        )

    def differences(self) -> list[str]:
        """What exceeds the limits, one sentence each; empty if both sides agree."""
        bounds = BOUNDS[self.precision]
        found = [] if self.finite else [mismatch(f"finite logits in {self.precision}", "NaN or infinity")]
        if self.precision == "fp32":
            found += [
                f"{name}: "
                + mismatch(
                    f"{SHARE_WITHIN:.0%} of the logits within {TOLERANCE}",
                    f"{share:.2%}, with errors up to {self.largest[name]:.3g}",
                )
                for name, share in self.within.items()
                if share < SHARE_WITHIN
            ]
        if self.matched < bounds.share:
            got = f"{self.matched:.1%} of {self.instances}"
            found.append(f"instances: {mismatch(f'{bounds.share:.0%} the same in {self.precision}', got)}")
        return found + ([f"instances of the graph: {self.detections}"] if self.detections else [])

    def to_json(self) -> dict[str, object]:
        """The numbers and the limits that they were compared with, for parity.json."""
        bounds = BOUNDS[self.precision]
        share = SHARE_WITHIN if self.precision == "fp32" else None  # only instances are compared otherwise
        return {
            "batches": [list(shape) for shape in self.batches],
            "logits": {
                "finite": self.finite,
                **{name: {"within": self.within[name], "largest_error": self.largest[name]} for name in self.within},
                "limits": {"error": TOLERANCE, "within": share},
            },
            "instances": {
                "compared": self.instances,
                "the_same": self.matched,
                "largest_score_difference": self.score_error,
                "largest_box_difference": self.box_error,
                "lowest_mask_iou": self.iou,
                "limits": {
                    "scores_from": bounds.score,
                    "the_same": bounds.share,
                    "score_difference": bounds.drift,
                    "mask_iou": bounds.iou,
                },
            },
        }


@torch.no_grad()
def compare_outputs(
    network: Mask2FormerDinov3ForInstanceSegmentation,
    exported: OnnxModel,
    batches: Sequence[tuple[Mask2FormerDinov3ImageProcessor, Sequence[Prepared]]],
    precision: str | None = None,
) -> Agreement:
    """Run both on every batch and compare logits (limited in fp32 only) and instances.

    batches: prepared images with the processor that made them. precision: whose limits apply; None: the file's.
    Raises OptionError for fp16 and int8 if the images have no instance to compare.
    """
    precision = precision or exported.metadata.precision
    bounds = BOUNDS[precision]
    shapes: list[tuple[int, ...]] = []
    within: dict[str, list[float]] = {name: [] for name in LOGITS}
    largest: dict[str, list[float]] = {name: [] for name in LOGITS}
    matches: list[InstanceMatches] = []
    finite, detections = True, ""
    for processor, prepared in batches:
        inputs = processor.collate(prepared)
        pixels, mask, sizes = inputs["pixel_values"], inputs["pixel_mask"], inputs["original_sizes"]
        shapes.append(tuple(pixels.shape))
        expected = network(pixel_values=pixels, pixel_mask=mask)
        got = exported(pixel_values=pixels, pixel_mask=mask)
        theirs, ours = ([getattr(side, name) for name in LOGITS] for side in (expected, got))
        if not all(bool(logits.isfinite().all()) for logits in ours):
            finite = False
            continue
        for name, one, other in zip(LOGITS, theirs, align_queries(theirs, ours), strict=True):
            errors = relative_error(one, other)
            within[name].append(float((errors <= TOLERANCE).double().mean()))
            largest[name].append(float(errors.max()))
        sides = [processor.post_process(one, sizes, mask, threshold=bounds.score / 2) for one in (expected, got)]
        matches.extend(match_instances(one, other, bounds) for one, other in zip(*sides, strict=True))
        if len(exported.session.outputs) > len(LOGITS):
            detections = detections or check_detections(exported, processor, got, pixels, mask)
    have_partner = np.concatenate([np.zeros(0, dtype=bool), *(match.has_partner for match in matches)])
    if finite and precision != "fp32" and not len(have_partner):
        wanted = f"images with instances of a score of at least {bounds.score}, to check {precision}"
        raise OptionError("images", wanted, "none", "name a folder of images like those the model was trained on")
    pairs = np.concatenate([np.zeros((0, 3)), *(match.pairs for match in matches)])
    return Agreement(
        precision=precision,
        batches=tuple(shapes),
        finite=finite,
        within={name: min(shares) for name, shares in within.items() if shares},
        largest={name: max(errors) for name, errors in largest.items() if errors},
        instances=len(have_partner),
        matched=float(have_partner.mean()) if len(have_partner) else float(finite),
        score_error=float(pairs[:, 0].max()) if len(pairs) else None,
        box_error=float(pairs[:, 1].max()) if len(pairs) else None,
        iou=float(pairs[:, 2].min()) if len(pairs) else None,
        detections=detections,
    )


def check_agreement(
    network: Mask2FormerDinov3ForInstanceSegmentation,
    exported: OnnxModel,
    batches: Sequence[tuple[Mask2FormerDinov3ImageProcessor, Sequence[Prepared]]],
) -> Agreement:
    """`compare_outputs`. Raises CheckpointError that says what differs."""
    found = compare_outputs(network, exported, batches)
    if differences := found.differences():
        lines = "\n  ".join(differences)
        raise CheckpointError(f"exported file: {mismatch('the results of the model', 'others')}\n  {lines}")
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


@dataclass(frozen=True)
class InstanceMatches:
    """The instances of one image on both sides.

    has_partner (M,): for every instance of either side above the score of the bounds, best first, those of one side
    after those of the other. pairs (P, 3): of each such instance of the first side that has a partner, the nearest one:
    difference of the scores, largest difference of the boxes in pixels, IoU of the masks.
    """

    has_partner: NDArray[np.bool_]
    pairs: NDArray[np.float64]


def match_instances(one: Instances, other: Instances, bounds: Bounds) -> InstanceMatches:
    """Which instances have a partner (see `Bounds`) on the other side."""
    none = np.zeros((0, 3))
    if not len(one) or not len(other):
        alone = int((one.scores >= bounds.score).sum() + (other.scores >= bounds.score).sum())
        return InstanceMatches(np.zeros(alone, dtype=bool), none)
    rles = ([dict(rle) for rle in side.rles] for side in (one, other))
    iou = np.asarray(rle_codec.iou(*rles, [0] * len(other)))
    drift = np.abs(one.scores[:, None] - other.scores[None])
    is_partner = (iou >= bounds.iou) & (one.labels[:, None] == other.labels[None]) & (drift <= bounds.drift)  # (N, N')
    sides = ((is_partner.any(1), one.scores), (is_partner.any(0), other.scores))
    flags = np.fromiter(chain.from_iterable(has[scores >= bounds.score] for has, scores in sides), dtype=bool)
    first = np.flatnonzero(is_partner.any(1) & (one.scores >= bounds.score))
    second = np.where(is_partner, iou, -1.0)[first].argmax(1)
    boxes = np.abs(one.boxes[first] - other.boxes[second]).max(1, initial=0.0)
    return InstanceMatches(flags, np.stack([drift[first, second], boxes, iou[first, second]], axis=1))


def check_detections(
    exported: OnnxModel,
    processor: Mask2FormerDinov3ImageProcessor,
    logits: Mask2FormerDinov3Output,
    pixels: Tensor,
    mask: Tensor,
) -> str:
    """Compare the instances in the graph's own outputs with those that post-processing makes of its logits.

    logits: the output for pixels (B, C, H, W) and mask (B, H, W). Returns what differs, "" if nothing does.
    """
    real = real_sizes(mask)
    feed = {"pixel_values": pixels.numpy(), "pixel_mask": mask.numpy()}
    scores, labels, masks = exported.run(feed, DETECTIONS)
    expected = processor.post_process(logits, real, mask, max_detections=scores.shape[1])
    for index, (height, width) in enumerate(real):
        kept = scores[index] > 0
        if masks[index, :, height:].any() or masks[index, :, :, width:].any():
            return mismatch("masks inside the image", "masks that reach into the padding")
        inside = masks[index, kept, :height, :width]
        found = Instances(height, width, encode_masks(inside), labels[index][kept], scores[index][kept], None)
        same = match_instances(expected[index], found, BOUNDS["fp32"]).has_partner
        if len(same) and same.mean() < BOUNDS["fp32"].share:
            got = f"others ({same.mean():.1%} of {len(same)} the same)"
            return mismatch("the instances of its own logits", got)
    return ""
