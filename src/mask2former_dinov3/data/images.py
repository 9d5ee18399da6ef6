"""Image files to RGB arrays: one rule per kind of pixel, the same in training, evaluation and use.

Pixels come as they are stored. An EXIF orientation is *not* applied: COCO annotations (and pycocotools) count rows and
columns of the stored picture, and a labelling tool that rotates the picture first has to save it rotated.

| stored as | becomes |
|---|---|
| grey (1, 8 bit), grey + alpha | the grey value three times; alpha is dropped, not blended |
| RGB + alpha, palette (with or without transparency) | the stored colour; alpha is dropped, not blended |
| 16-bit grey (also 32-bit integers within 0..65535) | value * 255 / 65535, rounded: the type's range, not the image's |
| CMYK, YCbCr, LAB, HSV | RGB as Pillow converts it, without colour profile |
| floating point, 32-bit integers beyond 0..65535 | refused: there is no agreed range |

Of a file with several frames (animated GIF or WebP, multi-page TIFF) the first is read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..errors import DatasetError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings (lower case) that count as an image where a folder is listed."""

_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_PLAIN_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says about its picture before any pixel is decoded: sizes in pixels as stored, EXIF orientation."""

    height: int
    width: int
    orientation: int  # 1..8; 1 is upright, and what a file without EXIF has


def read_image(path: Path | str) -> npt.NDArray[np.uint8]:
    """The picture in a file as RGB, (H, W, 3) uint8, a writable array of its own.

    Raises DatasetError, naming the file, when it is missing, cut short, no image, too large, or of a refused kind.
    """
    with explained(path), Image.open(path) as image:
        return to_rgb(image)


def decode_image(data: bytes, name: Path | str) -> npt.NDArray[np.uint8]:
    """The picture in the bytes of a file as RGB, (H, W, 3) uint8; `name` is what an error calls it."""
    with explained(name), Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


def read_header(path: Path | str) -> ImageHeader:
    """Size and EXIF orientation of an image file, without decoding its pixels. Raises DatasetError as read_image."""
    with explained(path), Image.open(path) as image:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        known = isinstance(orientation, int) and 1 <= orientation <= 8  # some cameras write 0 for "not known"
        return ImageHeader(image.height, image.width, orientation if known else 1)


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """A Pillow image of any mode as RGB, (H, W, 3) uint8, by the table at the top of this module.

    Raises DatasetError for a mode without an agreed range (floating point), OSError when the file behind is cut short.
    """
    if image.width == 0 or image.height == 0:
        raise DatasetError(f"expected an image with pixels, got {image.height} x {image.width} (height x width)")
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = sixteen_to_eight(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("P", "PA"):
        # Through RGBA: straight to RGB, Pillow warns about (and may apply) palette transparency.
        image = image.convert("RGBA")
    elif image.mode not in _PLAIN_MODES:
        raise DatasetError(
            f"expected grey, RGB, palette, CMYK or 16-bit grey pixels, got Pillow mode {image.mode!r}, whose range of "
            "values is not agreed; save the image with 8 or 16 bits per channel"
        )
    return np.array(image.convert("RGB"))


def sixteen_to_eight(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """(H, W) integers of 16 bits (or wider, if they fit) scaled by the full range 0..65535 to 0..255, rounded."""
    if values.dtype.itemsize > 2:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise DatasetError(
                f"expected grey values of 16 bits (0..65535), got {low}..{high} in a 32-bit image; save it with 16 bits"
            )
    wide = values.astype(np.uint32)
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)


@contextmanager
def explained(name: Path | str) -> Iterator[None]:
    """Turn whatever a decoder raises into a DatasetError that names the file and says what to do."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise DatasetError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise DatasetError(f"{name}: expected an image file, got a folder") from error
    except PermissionError as error:
        raise DatasetError(f"{name}: not readable (permission denied)") from error
    except UnidentifiedImageError as error:
        raise DatasetError(
            f"{name}: not an image that can be read (JPEG, PNG, WebP, BMP, TIFF and others that Pillow knows)"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DatasetError(
            f"{name}: over {limit:,} pixels, refused as a possible bomb; cut it into tiles (predict does it with "
            "--tile, after pip install 'mask2former-dinov3[large]')"
        ) from error
    except Exception as error:  # a decoder fed with broken bytes raises anything, from SyntaxError to struct.error
        raise DatasetError(f"{name}: the image is damaged or cut short ({type(error).__name__}: {error})") from error
