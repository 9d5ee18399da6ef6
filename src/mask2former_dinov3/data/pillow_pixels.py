"""The values of Pillow's images, and of files that OpenCV decodes because Pillow would cut their values to 8 bits."""

from __future__ import annotations

from typing import IO

import cv2
import numpy as np
from PIL import Image

from ..errors import DatasetError, mismatch
from ..read_options import ALL
from .sample_values import SampleType, Values

EXIF_ORIENTATION = 0x0112

_DEEP_MODES = {"I": 32, "I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16, "F": 32}  # mode -> bits
_SAMPLE_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA"})  # every band is a channel of the file
GREY_MODES = frozenset({"1", "L", "LA", "La", *_DEEP_MODES})
_PLAIN_MODES = frozenset({*_SAMPLE_MODES, "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})


def image_values(image: Image.Image, channels: tuple[int, ...] | str | None) -> tuple[Values, SampleType]:
    """The values of an image, (h, w, 1) grey, (h, w, 3) colours or (h, w, c), and what they mean.

    channels: as `ReadOptions.channels`. Raises DatasetError for a channel that the image has not, and for a mode that
    no rule knows; OSError if the file behind it is cut short.
    """
    bits = _DEEP_MODES.get(image.mode)
    if bits is not None:
        values, kind = np.asarray(image)[:, :, None], SampleType(bits)
    elif channels in (None, ALL):  # an image has no other channels than grey or colours, and alpha
        return to_rgb_bands(image), SampleType()
    else:
        bands = sample_bands(image)
        values, kind = to_rgb_bands(image) if bands is None else bands, SampleType()
    return pick_channels(values, channels), kind


def pick_channels(values: Values, channels: tuple[int, ...] | str | None) -> Values:
    """The chosen channels of (h, w, c), counted from 1; None and "all": grey without alpha, or the first three.

    Raises DatasetError for a channel that is not there.
    """
    count = values.shape[2]
    if channels is None or isinstance(channels, str):
        return values[:, :, : 3 if count >= 3 else 1]
    if max(channels) > count:
        got = f"an image with {count} channel{'s' * (count > 1)}"
        raise DatasetError(mismatch(f"a channel {max(channels)}", got, "choose other channels"))
    return values[:, :, [channel - 1 for channel in channels]]


def sample_bands(image: Image.Image) -> Values | None:
    """(h, w, bands) uint8 of an image of up to 8 bits; None where bands are no channels (a palette, CMYK)."""
    if image.mode not in _SAMPLE_MODES:
        return None
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    return values[:, :, None] if values.ndim == 2 else values


def to_rgb_bands(image: Image.Image) -> Values:
    """(h, w, 1) grey or (h, w, 3) RGB of an image of up to 8 bits, alpha dropped; a new array.

    Raises DatasetError for a mode that no rule knows.
    """
    if image.mode in ("1", "L", "LA"):
        return np.array(image if image.mode == "L" else image.convert("RGB").getchannel(0))[:, :, None]
    if image.mode in ("P", "PA"):
        # Through RGBA: converting straight to RGB, Pillow warns about (and may apply) palette transparency.
        image = image.convert("RGBA")
    elif image.mode not in _PLAIN_MODES:
        expected = "grey, RGB, palette, CMYK or 16-bit grey pixels"
        advice = "save the image with 8 or 16 bits per channel"
        raise DatasetError(
            mismatch(expected, f"Pillow mode {image.mode!r}, which has no agreed range of values", advice)
        )
    return np.array(image.convert("RGB"))


def forget_orientation(image: Image.Image) -> Image.Image:
    """Decode an image, its pixels as stored: Pillow turns a TIFF by its orientation tag, or that in its XMP."""
    image.getexif()[EXIF_ORIENTATION] = 1
    image.load()
    return image if image.im.size == image.size else image.copy()  # whose size is that of the pixels


def decode_with_opencv(file: IO[bytes]) -> Values:
    """(h, w, c) stored values of a PNG, TIFF or JPEG 2000, RGB in this order; alpha is the last channel.

    Raises OSError if OpenCV cannot decode it.
    """
    file.seek(0)
    # Its messages (unknown tags of a TIFF) would go to stderr.
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        values = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if values is None:
        raise OSError("OpenCV cannot decode it")
    if values.ndim == 2:
        return values[:, :, None]
    order = [2, 1, 0, *range(3, values.shape[2])]
    return np.ascontiguousarray(values[:, :, order])
