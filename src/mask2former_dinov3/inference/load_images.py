"""Images as callers give them (a path, a PIL image, an array) to arrays with the channels of the model."""

from __future__ import annotations

from os import PathLike
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import check_channel_count, read_image, to_rgb
from ..errors import OptionError
from ..read_options import AS_STORED, ReadOptions

ImageLike: TypeAlias = str | PathLike[str] | Image.Image | NDArray[np.uint8]
"""A path, a PIL image, or an array of uint8: RGB (H, W, 3), or (H, W, C) for a model of C channels."""


def load_image(image: ImageLike, options: ReadOptions = AS_STORED, channels: int = 3) -> NDArray[np.uint8]:
    """(H, W, C) uint8 of an image, RGB for three channels; files and PIL images are converted as in `data.images`.

    options, channels: of the model; an array is used as it is. Raises DatasetError for a file that cannot be read as an
    image or has other channels, OptionError for an array that is no image of so many channels.
    """
    if isinstance(image, str | PathLike):
        pixels = read_image(str(image), options)
        check_channel_count(str(image), channels, pixels.shape[2])
        return pixels
    if isinstance(image, Image.Image):
        pixels = to_rgb(image, options)
        check_channel_count("image", channels, pixels.shape[2])
        return pixels
    kind = "an RGB array" if channels == 3 else "an array"
    expected = f"a path, a PIL image or {kind} (height, width, {channels}) of uint8"
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise OptionError("image", expected, got)
    if 0 in image.shape:
        raise OptionError("image", "at least one pixel", f"{image.shape[0]}x{image.shape[1]}")
    return image
