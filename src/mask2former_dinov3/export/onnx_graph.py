"""The graph of an exported file: it computes the logits and, on request, the instances at canvas size.

B batch, C channels of the images, Q queries, K classes, h w the mask logits' size, H W the canvas, D detections of one
image
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.dinov3_vit import modeling_dinov3_vit

from ..model import Mask2FormerDinov3ForInstanceSegmentation


class ExportGraph(nn.Module):
    """pixel_values (B, C, H, W) float32 and pixel_mask (B, H, W) bool to a tuple of the outputs named LOGITS.

    detections: D; above 0 the outputs named DETECTIONS follow in the tuple.
    """

    def __init__(self, model: Mask2FormerDinov3ForInstanceSegmentation, detections: int = 0) -> None:
        super().__init__()
        self.model, self.detections = model, detections

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        _, output = self.model.predict(pixel_values, pixel_mask)
        classes, masks = output.class_queries_logits, output.masks_queries_logits
        assert classes is not None
        assert masks is not None
        found = best_detections(classes, masks, pixel_mask, self.detections) if self.detections else ()
        return classes, masks, *found


def best_detections(
    class_logits: Tensor, mask_logits: Tensor, pixel_mask: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`postprocess.post_process` at the canvas's own size, as one graph that drops nothing, so that shapes are fixed.

    class_logits (B, Q, K+1); mask_logits (B, Q, h, w); pixel_mask (B, H, W) bool; count: D, at most Q * K. Returns
    scores (B, D) float32, best first, labels (B, D) int64, masks (B, D, H, W) bool, False on padding. An instance
    without a pixel has score 0.
    """
    probabilities = class_logits.softmax(-1)[..., :-1]  # (B, Q, K)
    batch, queries, classes = probabilities.shape
    scores, flat = probabilities.flatten(1).topk(count)  # (B, D)
    rows = flat // classes + torch.arange(batch, device=flat.device)[:, None] * queries  # in the batch's B * Q
    logits = mask_logits.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, count))
    logits = F.interpolate(logits, size=pixel_mask.shape[1:], mode="bilinear", align_corners=False)  # (B, D, H, W)
    masks = (logits > 0) & pixel_mask[:, None]
    share = masks.to(logits.dtype)
    certainty = (logits.sigmoid() * share).sum((2, 3)) / share.sum((2, 3)).clamp(min=1.0)
    scores, order = (scores * certainty).topk(count)
    picked = order + torch.arange(batch, device=flat.device)[:, None] * count
    masks = masks.flatten(0, 1).index_select(0, picked.flatten()).unflatten(0, (batch, count))
    return scores, (flat % classes).gather(1, order), masks


@contextmanager
def replace_positions() -> Iterator[None]:
    """Replace transformers' function for patch positions by one whose length an exporter can derive.

    Its `arange(0.5, h)` has ceil(h - 0.5) entries; the exporter does not know that h is whole and this equals h.
    """
    original = modeling_dinov3_vit.get_patches_center_coordinates
    modeling_dinov3_vit.get_patches_center_coordinates = patch_centers
    try:
        yield
    finally:
        modeling_dinov3_vit.get_patches_center_coordinates = original


def patch_centers(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(y, x) of the centres of height x width patches in -1..1, (height * width, 2), row by row."""
    y, x = ((torch.arange(size, device=device, dtype=dtype) + 0.5) / size for size in (height, width))
    return 2 * torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1) - 1


@contextmanager
def search_at_slices_only() -> Iterator[None]:
    """Make the clean-up of the traced graph quick; its result stays the same.

    One rule of onnxscript (0.7) turns two Slice nodes into a Split. At every node, whatever its operator, it goes
    through all nodes for the second Slice: two fifths of the time of `torch.onnx.export` for a network of two blocks,
    and it grows with the square of the number of nodes. The first node of such a pair is a Slice too, so other nodes
    need no search.
    """
    from onnxscript.rewriter.rules.common import slice_split_rule

    search = slice_split_rule.try_rewrite

    def search_at(model: object, graph: object, node: Any, **options: object) -> Any:
        return search(model, graph, node, **options) if node.op_type == "Slice" else None

    slice_split_rule.try_rewrite = search_at
    try:
        yield
    finally:
        del slice_split_rule.try_rewrite
