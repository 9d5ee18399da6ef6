"""Copy-paste (Simple Copy-Paste, arXiv:2012.07177): instances of one picture laid into another one.

Both pictures come flipped and scaled on their own. No blending at the seams: section 3 of the paper finds none needed.
Differs from the paper: only where nothing is hidden. A bright nucleus on a bright nucleus shows no edge, and a model
that is told that there is one learns to cut whole objects into pieces (docs/log.md).
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
    """`below` with a random half of those instances of `above` that hide none of its own. Changes `below.image`."""
    rows, columns = below.image.shape[:2]
    taken, over = np.zeros((2, rows, columns), np.bool_)
    for window in below.windows:
        taken[window.place] |= window.pixels > 0
    labels, windows = list(below.labels), list(below.windows)
    for label, window in zip(above.labels, above.windows, strict=True):
        pixels = window.pixels[: max(rows - window.top, 0), : max(columns - window.left, 0)]
        window = Window(pixels, window.top, window.left)
        if rng.random() < 0.5 and pixels.any() and not (taken[window.place] & (pixels > 0)).any():
            labels.append(label)
            windows.append(window)
            over[window.place] |= pixels > 0
    rows, columns = (min(sides) for sides in zip(below.image.shape[:2], above.image.shape[:2], strict=True))
    np.copyto(below.image[:rows, :columns], above.image[:rows, :columns], where=over[:rows, :columns, None])
    return Picture(below.image, labels, windows)
