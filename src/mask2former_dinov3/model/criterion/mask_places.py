"""Places where masks are compared with their targets: random points, as published, or all pixels of the mask map.

Points cost the same for every image size, but few of them land on small objects: one in a thousand on an object that
covers a thousandth of the image. The matching of small objects is then mostly chance (measured in docs/log.md).
"""

from __future__ import annotations

from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.memory_layout import as_map, as_rows
from .point_sampling import MaskSampler, Products, choose_points, mask_sampler, sample_targets

# B batch, G images of it, N instances of one image, E mask channels, h x w the mask map, P places of an image,
# M rows of logits


class Places(Protocol):
    """Places of one batch. `images` is a slice of the batch, `masks` B tensors (N, H, W) bool or uint8."""

    def __len__(self) -> int:
        """P, including padding."""
        ...

    def sampler(self, features: Tensor, images: slice) -> MaskSampler:
        """Sampler of mask logits at the places of these images; features (B, E, h, w)."""
        ...

    def targets(self, masks: list[Tensor], images: slice) -> Tensor:
        """Targets (G, N, P) float32, N the maximum of the images; 0 for missing masks of the others."""
        ...

    def counts(self, images: slice) -> Tensor:
        """Places of each image that are not padding, (G,) float32."""
        ...

    def choose(self, logits: Tensor) -> Tensor | None:
        """Columns (M, R) of the logits (M, P) that the loss of each row uses; None for all."""
        ...


class Points:
    """The same random points for all masks of an image (Mask2Former, arXiv:2112.01527, section 3.3).

    points (B, P, 2) in [0, 1], all on real pixels. A loss uses all points after the first `candidates`, and of those
    candidates the `uncertain` ones with the smallest |logit| (PointRend, arXiv:1912.08193, section 3.1).
    """

    def __init__(self, points: Tensor, candidates: int = 0, uncertain: int = 0) -> None:
        self.points, self.candidates, self.uncertain = points, candidates, uncertain

    def __len__(self) -> int:
        return self.points.shape[1]

    def sampler(self, features: Tensor, images: slice) -> MaskSampler:
        return mask_sampler(features[images], self.points[images])

    def targets(self, masks: list[Tensor], images: slice) -> Tensor:
        return sample_targets(masks[images], self.points[images])

    def counts(self, images: slice) -> Tensor:
        return self.points.new_full((len(self.points[images]),), float(len(self)))

    def choose(self, logits: Tensor) -> Tensor:
        return choose_points(logits, self.candidates, self.uncertain)


class Pixels:
    """All pixels of the mask map; the target is the fraction of the pixel that the instance covers.

    real (B, h, w) bool: the other pixels are padding, where masks are 0.
    """

    def __init__(self, real: Tensor) -> None:
        self.height, self.width = real.shape[1:]
        self.padding = (
            None if real.device.type == "cpu" and bool(real.all()) else ~real
        )  # on a GPU `all` would wait for the device
        self.number = real.sum((1, 2), dtype=torch.float32)

    def __len__(self) -> int:
        return self.height * self.width

    def sampler(self, features: Tensor, images: slice) -> MaskSampler:
        return AllPixels(features[images], None if self.padding is None else self.padding[images])

    def targets(self, masks: list[Tensor], images: slice) -> Tensor:
        return coverage(masks[images], self.height, self.width).flatten(2)

    def counts(self, images: slice) -> Tensor:
        return self.number[images]

    def choose(self, logits: Tensor) -> None:
        return None


class AllPixels(Products):
    """Logits of all pixels of the map; padding (G, h, w) bool, None if there is none.

    Padding gets a logit of -10,000: probability 0, cross entropy 0 with a target of 0, and no gradient.
    """

    def __init__(self, features: Tensor, padding: Tensor | None) -> None:
        super().__init__(as_rows(features))
        self.size = features.shape[2:]
        self.padding = None if padding is None else padding.flatten(1)[:, None]  # (G, 1, h*w)

    def logits(self, rows: Tensor) -> Tensor:
        found = super().logits(rows)
        return found if self.padding is None else found.masked_fill_(self.padding, -10_000.0)

    def grad_features(self) -> Tensor:
        assert self.grad is not None
        return as_map(self.grad, *self.size)


def coverage(masks: list[Tensor], height: int, width: int) -> Tensor:
    """Fraction of each pixel of a coarser map that an instance covers, (G, N, height, width) float32.

    masks: G tensors (N, H, W) bool or uint8, H and W multiples of height and width. Missing masks are 0.
    """
    values = torch.zeros(len(masks), max(map(len, masks)), height, width, device=masks[0].device)
    for image, part in zip(masks, values, strict=True):
        stride = image.shape[1] // height
        pixels = image.view(torch.uint8)
        if stride > 15:
            pixels = pixels.short()  # the sum of 256 pixels does not fit into a byte
        # Adding bytes row by row takes a tenth of the time of a mean over blocks.
        down = reduce(torch.add, (pixels[:, row::stride] for row in range(stride)))
        block = reduce(torch.add, (down[:, :, column::stride] for column in range(stride)))
        torch.mul(block, 1 / stride**2, out=part[: len(image)])
    return values
