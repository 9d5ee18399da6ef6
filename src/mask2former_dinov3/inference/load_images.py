"""Images as callers give them (a path, a PIL image, an array) to RGB arrays."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import read_image, to_rgb
from ..errors import OptionError
from ..read_options import AS_STORED, ReadOptions

ImageLike: TypeAlias = str | PathLike[str] | Image.Image | NDArray[np.uint8]
"""A path, a PIL image, or an RGB array (H, W, 3) of uint8."""


def as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """One image or several as a list; an array of four dimensions holds several."""
    if isinstance(images, str | PathLike | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        return [images]
    return list(images)


def load_image(image: ImageLike, options: ReadOptions = AS_STORED) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image; files and PIL images are converted by the table of `data.images`.

    options: of the model; an array is used as it is. Raises DatasetError for a file that cannot be read as an image,
    OptionError for an array that is no RGB image.
    """
    if isinstance(image, str | PathLike):
        return read_image(str(image), options)
    if isinstance(image, Image.Image):
        return to_rgb(image, options)
    expected = "a path, a PIL image or an RGB array (height, width, 3) of uint8"
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise OptionError("image", expected, got)
    if 0 in image.shape:
        raise OptionError("image", "at least one pixel", f"{image.shape[0]}x{image.shape[1]}")
    return image
