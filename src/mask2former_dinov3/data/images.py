"""Read image files as RGB arrays: one rule per kind of pixel, the same in training, evaluation and prediction.

Pixels are taken as they are stored. An EXIF orientation is *not* applied: COCO annotations (and pycocotools) count rows
and columns of the stored image, and a labelling tool that rotates the image first has to save it rotated.

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

from ..errors import DatasetError, mismatch

_NO_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"})
_TOLD_BY_HEAD = ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF", "QOI")

IMAGE_SUFFIXES = frozenset(ending for ending, kind in Image.registered_extensions().items() if kind not in _NO_PICTURES)
"""File name endings (lower case) that count as an image where a folder is listed: those that Pillow reads here."""

_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_PLAIN_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Size in pixels as stored, and EXIF orientation, read before any pixel is decoded."""

    height: int
    width: int
    orientation: int  # 1..8; 1 is upright, and what a file without EXIF has


def read_image(path: Path | str) -> npt.NDArray[np.uint8]:
    """Read an image file as RGB, (H, W, 3) uint8; the array is writable and shares no memory.

    Raises DatasetError, naming the file, if it is missing, damaged, not an image, too large, or of a refused kind.
    """
    with name_errors(path), Image.open(path) as image:
        return to_rgb(image)


def decode_image(data: bytes, name: Path | str) -> npt.NDArray[np.uint8]:
    """As `read_image`, from the bytes of a file; `name` is what an error calls it."""
    with name_errors(name), Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


def read_header(path: Path | str) -> ImageHeader:
    """Read size and EXIF orientation without decoding pixels. Raises DatasetError as `read_image` does."""
    with name_errors(path), Image.open(path) as image:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        known = isinstance(orientation, int) and 1 <= orientation <= 8  # some cameras write 0 for "unknown"
        return ImageHeader(image.height, image.width, orientation if known else 1)


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image of any mode to RGB, (H, W, 3) uint8, by the table at the top of this module.

    Raises DatasetError for a mode without an agreed range (floating point), OSError if the file behind it is cut short.
    """
    if image.width == 0 or image.height == 0:
        raise DatasetError(f"expected an image with pixels, got {image.height} x {image.width} (height x width)")
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = sixteen_to_eight(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("P", "PA"):
        # Through RGBA: converting straight to RGB, Pillow warns about (and may apply) palette transparency.
        image = image.convert("RGBA")
    elif image.mode not in _PLAIN_MODES:
        raise DatasetError(
            f"expected grey, RGB, palette, CMYK or 16-bit grey pixels, got Pillow mode {image.mode!r}, which has no "
            "agreed range of values; save the image with 8 or 16 bits per channel"
        )
    return np.array(image.convert("RGB"))


def sixteen_to_eight(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Scale (H, W) integers of 16 bits (or wider, if they fit) from 0..65535 to 0..255, rounded.

    Raises DatasetError for values outside 0..65535.
    """
    if values.dtype.itemsize > 2:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise DatasetError(
                f"expected grey values of 16 bits (0..65535), got {low}..{high} in a 32-bit image; save it with 16 bits"
            )
    wide = values.astype(np.uint32)
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)


def check_image_size(where: str, stated: tuple[int, ...], stored: tuple[int, ...]) -> None:
    """Raise DatasetError, beginning with `where`, unless an image has the (height, width) that its annotations state.

    Masks would not lie on the objects.
    """
    if stored != stated:
        expected = f"{stated[0]} x {stated[1]} pixels (height x width) as in the annotations"
        advice = "correct the annotations, or use the image that they were made on"
        raise DatasetError(f"{where}: {mismatch(expected, f'{stored[0]} x {stored[1]}', advice)}")


def has_image_head(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a common kind of image."""
    tests = (Image.OPEN[kind][1] for kind in _TOLD_BY_HEAD if kind in Image.OPEN)
    return bool(head) and any(accept is not None and accept(head) is True for accept in tests)


@contextmanager
def name_errors(name: Path | str) -> Iterator[None]:
    """Turn whatever a decoder raises into a DatasetError that names the file and what to do."""
    expected = "a readable image file"
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise DatasetError(f"{name}: {mismatch('an image file', 'no such file')}") from error
    except IsADirectoryError as error:
        raise DatasetError(f"{name}: {mismatch('an image file', 'a folder')}") from error
    except PermissionError as error:
        raise DatasetError(f"{name}: {mismatch(expected, 'permission denied')}") from error
    except UnidentifiedImageError as error:
        kinds = "an image file (JPEG, PNG, WebP, BMP, TIFF, or another format of Pillow)"
        raise DatasetError(f"{name}: {mismatch(kinds, 'another kind of file')}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        got = f"one of over {limit:,} pixels (refused as a possible bomb)"
        advice = "cut it into tiles (predict --tile does, after pip install 'mask2former-dinov3[large]')"
        raise DatasetError(f"{name}: {mismatch('an image that is safe to decode', got, advice)}") from error
    except Exception as error:  # a decoder fed with broken bytes raises anything, from SyntaxError to struct.error
        reason = " ".join(str(error).split())
        got = "one that is damaged or cut short" + (f" ({reason})" if reason else "")
        raise DatasetError(f"{name}: {mismatch(expected, got)}") from error
