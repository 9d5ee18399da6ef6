"""Copy-paste (Simple Copy-Paste, arXiv:2012.07177): instances of one picture laid over another one.

Both pictures come flipped and scaled on their own. No blending at the seams: section 3 of the paper finds none needed.
For opaque things: where a bright cell lies on a bright cell no edge shows, and a model that is told that there is one
learns to cut whole objects into pieces (docs/log.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .segmentation import Window


class Picture(NamedTuple):
    """An image on the canvas with what it shows."""

    image: npt.NDArray[np.uint8]  # (r, c, 3), the real pixels
    labels: list[int]  # N of them
    windows: list[Window]  # N masks, each with a pixel in the picture


def paste(below: Picture, above: Picture, rng: np.random.Generator) -> Picture:
    """`below` with a random half of the instances of `above` over it, as far as they lie within it.

    What they hide is cut from the masks below; an instance that is hidden altogether is gone. Changes `below.image`.
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
    return Picture(below.image, labels, windows)
