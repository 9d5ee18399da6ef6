"""An image that is read in parts, whatever it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...data.fitting import PixelArray
from .grid import Region


@dataclass(frozen=True)
class ImageReader:
    """An image of height x width pixels that is read in parts: read(region) returns (h, w, C) uint8, RGB for C = 3."""

    height: int
    width: int
    read: Callable[[Region], PixelArray]

    @classmethod
    def of(cls, pixels: PixelArray) -> ImageReader:
        """An image in memory, (H, W, C)."""
        return cls(pixels.shape[0], pixels.shape[1], lambda at: pixels[at.y0 : at.y1, at.x0 : at.x1])

    def beside(self, other: ImageReader) -> ImageReader:
        """This image with the channels of another one of the same size behind its own."""
        return ImageReader(self.height, self.width, lambda at: np.concatenate([self.read(at), other.read(at)], axis=2))
