"""Paste instances of one training image onto another (Simple Copy-Paste, arXiv:2012.07177).

Both images are flipped and scaled independently. Edges are not blended: section 3 of the paper finds no gain from it.
For opaque objects: where a bright cell lies on a bright cell no edge is visible, and a model that is trained to see one
learns to cut whole objects into pieces (docs/log.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .rle import Window


class PlacedImage(NamedTuple):
    """An image placed on the canvas, with its instances."""

    image: npt.NDArray[np.uint8]  # (r, c, C), the real pixels
    labels: list[int]  # N of them
    windows: list[Window]  # N masks, each with at least one pixel in the image


def paste(below: PlacedImage, above: PlacedImage, rng: np.random.Generator) -> PlacedImage:
    """Paste each instance of `above` with probability 1/2 onto `below`, as far as it lies within it.

    What is pasted is cut from the masks below; an instance without a visible pixel is dropped. Changes `below.image`.
    """
    rows, columns = below.image.shape[:2]
    over = np.zeros((rows, columns), np.bool_)
    labels, windows = [], []
    for label, window in zip(above.labels, above.windows, strict=True):
        pixels = window.pixels[: max(rows - window.top, 0), : max(columns - window.left, 0)]
        if rng.random() < 0.5 and pixels.any():
            labels.append(label)
            windows.append(Window(pixels, window.top, window.left))
            over[windows[-1].place] |= pixels > 0
    rows, columns = (min(sides) for sides in zip(below.image.shape[:2], above.image.shape[:2], strict=True))
    np.copyto(below.image[:rows, :columns], above.image[:rows, :columns], where=over[:rows, :columns, None])
    for label, window in zip(below.labels, below.windows, strict=True):
        pixels = window.pixels * ~over[window.place]
        if pixels.any():
            labels.append(label)
            windows.append(Window(pixels, window.top, window.left))
    return PlacedImage(below.image, labels, windows)
