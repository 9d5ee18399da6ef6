"""Read image files as arrays of 8 bits: one rule per kind of pixel, the same in training, evaluation and prediction.

Pixels are taken as they are stored. An orientation (EXIF, the TIFF tag, XMP) is *not* applied: COCO annotations (and
pycocotools) count rows and columns of the stored image, and a labelling tool that rotates the image first has to save
it rotated. Pillow applies it to TIFF files, which is prevented here.

| stored as | becomes |
|---|---|
| grey (1 to 8 bits), grey + alpha | the grey value three times; alpha is dropped, not blended |
| RGB + alpha, palette (with or without transparency) | the stored colour; alpha is dropped, not blended |
| grey of 9 to 16 bits (also wider integers within 0..65535) | scaled from the type's range to 0..255, rounded |
| colours of 9 to 16 bits | their 8 highest bits |
| signed integers | as unsigned ones; negative values are refused |
| CMYK, YCbCr, LAB, HSV | RGB as Pillow converts it, without colour profile |
| TIFF with 3 samples without a colour | red, green and blue; another number of them: the option `channels` chooses |
| other than one or three chosen channels | as many channels, each scaled as grey is |
| floating point, integers beyond 0..65535 | refused: there is no agreed range |

The option `value_range` replaces the type's range for more than 8 bits and for signed integers, and gives one to
floating point (`sample_values.to_eight_bits`).

Of a file with several pages, frames or channels the first is read, or those that `ReadOptions` name. The channels of a
second file (`extra_files`) follow those of the image; grey is RGB then, too. Pillow decodes;
JPEG data are decoded strictly (`jpeg_data`), OpenCV reads PNG, TIFF and JPEG 2000 of more than 8 bits, and rasterio, if
it is installed, what neither can decode. Damaged data are refused.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..canvas import LARGEST_IMAGE_SIDE
from ..errors import DatasetError, mismatch
from ..extras import is_installed
from ..read_options import AS_STORED, ReadOptions
from .extra_files import check_extra_size, find_extra
from .file_kinds import describe_head
from .gdal_files import open_gdal
from .jpeg_data import MAGIC_BYTES, check_jpeg, decode_strictly
from .jpeg_header import read_plain_jpeg
from .pillow_pixels import (
    EXIF_ORIENTATION,
    GREY_MODES,
    decode_with_opencv,
    forget_orientation,
    image_values,
    pick_channels,
)
from .sample_values import SampleType, Values, finite_range, to_eight_bits
from .stored_blocks import check_last_row
from .tiff_pixels import decode_tiff
from .tiff_tags import MAGIC, read_tiff

_START = 4096  # bytes of a file that are enough to recognise its kind
_PNG_BITS, _PNG_COLOURS = 24, 25  # their places in a PNG
_PNG_GREY_ALPHA = 4
_JP2_START = b"\xff\x4f\xff\x51"  # of the codestream of JPEG 2000
_JP2_CHANNELS, _JP2_BITS = 40, 42  # the places of these numbers in it


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says before any pixel is decoded: size in pixels as stored, orientation, what is not read of it."""

    height: int
    width: int
    orientation: int  # 1..8; 1 is upright, and what a file without it has
    unread: str = ""  # such as "5 pages, the first is read"; empty if all is read
    channels: int = 3  # that `read_image` gives, those of the second file among them
    extra_channels: int = 0  # of the second file


@dataclass(frozen=True, slots=True)
class ExaminedImage:
    """A decoded file: (height, width), whether `value_range` applies to it, and its lowest and highest value.

    darkest, brightest: the lowest and highest value of what is read, 0..255. digest: of what is read; empty if all
    pixels are equal.
    """

    size: tuple[int, int]
    has_range: bool
    low: float
    high: float
    darkest: int
    brightest: int
    digest: str


def read_image(path: Path | str, options: ReadOptions = AS_STORED) -> npt.NDArray[np.uint8]:
    """Read an image file as RGB, (H, W, 3) uint8; the array is writable and shares no memory.

    Where `options` choose other channels or name second files, (H, W, C) uint8. Raises DatasetError, naming the file,
    if it is missing, damaged, not an image, too large, or of a refused kind, and for a second file that is missing or
    of another size.
    """
    with name_errors(path), _open(path) as file:
        pixels = _to_array(*_decode(file, options), options)
    if options.extra_images is None:
        return pixels
    extra = find_extra(path, options.extra_images)
    more = read_image(extra, options.of_extra)
    check_extra_size(path, pixels.shape[:2], extra, more.shape[:2])
    return np.concatenate([pixels, more], axis=2)


def decode_image(data: bytes, name: Path | str, options: ReadOptions = AS_STORED) -> npt.NDArray[np.uint8]:
    """As `read_image`, from the bytes of a file, without a second file; `name` is what an error calls it."""
    with name_errors(name, data):
        return _to_array(*_decode(io.BytesIO(data), options), options)


def read_header(path: Path | str, options: ReadOptions = AS_STORED) -> ImageHeader:
    """Read size, orientation and channels without decoding pixels. Raises DatasetError as `read_image` does."""
    plain = read_plain_jpeg(path) if options.page == 1 else None
    if plain is not None:
        header = ImageHeader(plain.height, plain.width, 1, "", count_channels(plain.components == 1, options))
    else:
        with name_errors(path), _open(path) as file:
            header = _header_of(file, options)
    if options.extra_images is None:
        return header
    extra = find_extra(path, options.extra_images)
    more = read_header(extra, options.of_extra)
    check_extra_size(path, (header.height, header.width), extra, (more.height, more.width))
    return replace(header, channels=header.channels + more.channels, extra_channels=more.channels)


def decode_header(data: bytes, name: Path | str, options: ReadOptions = AS_STORED) -> ImageHeader:
    """As `read_header`, from the bytes of a file, without a second file; `name` is what an error calls it."""
    with name_errors(name, data):
        return _header_of(io.BytesIO(data), options)


def _header_of(file: IO[bytes], options: ReadOptions) -> ImageHeader:
    if (tiff := read_tiff(file)) is not None:
        page = tiff.chosen(options)[0][0]
        check_sides(page.height, page.width)
        unread, channels = tiff.describe_unread(options), tiff.count_channels(options)
        return ImageHeader(page.height, page.width, page.orientation, unread, channels)
    with Image.open(file) as image:
        check_sides(image.height, image.width)
        seek_frame(image, options)
        unread = _describe_frames(image, options)
        channels = count_channels(image.mode in GREY_MODES, options)
        return ImageHeader(image.height, image.width, _orientation_of(image), unread, channels)


def count_channels(is_grey: bool, options: ReadOptions) -> int:
    """How many channels `read_image` gives of an image that Pillow reads."""
    count = len(options.numbers) if options.numbers else 1 if is_grey else 3
    return 3 if count == 1 and options.grey_as_rgb else count


def examine_image(path: Path | str, options: ReadOptions = AS_STORED) -> ExaminedImage:
    """Decode a file (not its second file) and measure its values; TIFF by deflate twice, to find all damage.

    Raises DatasetError as `read_image` does.
    """
    with name_errors(path), _open(path) as file:
        values, kind = _decode(file, options, thorough=True)
        pixels = _to_array(values, kind, options)
        has_range = kind.bits > 8 or values.dtype.kind != "u"
        low, high = finite_range(values) if has_range else (0.0, 255.0)
        digest = ""
        if (pixels != pixels[0, 0]).any():
            digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest() + str(pixels.shape)
        size = pixels.shape[0], pixels.shape[1]
        return ExaminedImage(size, has_range, low, high, int(pixels.min()), int(pixels.max()), digest)


def to_rgb(image: Image.Image, options: ReadOptions = AS_STORED) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image of any mode to RGB, (H, W, 3) uint8, by the table at the top of this module.

    Where `options` choose other channels, (H, W, C).

    Raises DatasetError for a mode without an agreed range (floating point), OSError if the file behind it is cut short.
    """
    if image.width == 0 or image.height == 0:
        raise DatasetError(f"expected an image with pixels, got {image.height} x {image.width} (height x width)")
    return _to_array(*image_values(image, options.channels), options)


def _open(path: Path | str) -> BinaryIO:
    """Open a file of pixels; a pipe would be waited for without end. Raises DatasetError, OSError."""
    if not os.path.isdir(path) and os.path.exists(path) and not os.path.isfile(path):
        raise DatasetError(mismatch("an image file", "a pipe or a device"))
    return open(path, "rb")


def check_sides(height: int, width: int) -> None:
    """Raise DatasetError for an image of one very long row or column: work and memory grow with its sides as well."""
    if max(height, width) > LARGEST_IMAGE_SIDE:
        expected, got = f"an image of at most {LARGEST_IMAGE_SIDE:,} pixels a side", f"{height:,} x {width:,}"
        raise DatasetError(mismatch(expected, f"{got} (height x width)", "cut it into parts"))


def check_image_size(where: str, stated: tuple[int, ...], stored: tuple[int, ...], orientation: int = 1) -> None:
    """Raise DatasetError, beginning with `where`, unless an image has the (height, width) that its annotations state.

    Masks would not lie on the objects. orientation: by EXIF; the message says where it may be the reason.
    """
    if stored != stated:
        expected = f"{stated[0]} x {stated[1]} pixels (height x width) as in the annotations"
        advice = "correct the annotations, or use the image that they were made on"
        turned = stored == stated[::-1] and orientation > 4
        hint = " (they may have been made on the image as EXIF rotates it)" * turned
        raise DatasetError(f"{where}: {mismatch(expected, f'{stored[0]} x {stored[1]}', advice)}{hint}")


def check_channel_count(where: str, expected: int, got: int) -> None:
    """Raise DatasetError, beginning with `where`, unless an image has the channels that a model takes."""
    if got != expected:
        advice = "the options channels and extra_images choose what is read"
        raise DatasetError(f"{where}: {mismatch(f'{expected} channels, as the model takes', got, advice)}")


@contextmanager
def name_errors(name: Path | str, data: bytes | None = None) -> Iterator[None]:
    """Turn whatever a decoder raises into a DatasetError that names the file and what to do. data: its bytes, where
    `name` is not the path of a file."""
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
        raise DatasetError(f"{name}: {mismatch(kinds, *describe_head(name, data))}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        got = f"one of over {limit:,} pixels (refused as a possible bomb)"
        advice = "cut it into tiles (predict --tile does, after pip install 'mask2former-dinov3[large]')"
        raise DatasetError(f"{name}: {mismatch('an image that is safe to decode', got, advice)}") from error
    except Exception as error:  # a decoder fed with broken bytes raises anything, from SyntaxError to struct.error
        reason = " ".join(str(error).split())
        got = "one that is damaged or cut short" + (f" ({reason})" if reason else "")
        raise DatasetError(f"{name}: {mismatch(expected, got)}") from error


def _to_array(values: Values, kind: SampleType, options: ReadOptions) -> npt.NDArray[np.uint8]:
    pixels = to_eight_bits(values, kind, options)
    return pixels if pixels.flags.writeable and pixels.base is None else pixels.copy()


def _decode(file: IO[bytes], options: ReadOptions, thorough: bool = False) -> tuple[Values, SampleType]:
    """The stored values of a file, (h, w, 1) grey, (h, w, 3) colours or (h, w, c), and what they mean."""
    start = file.read(_START)
    file.seek(0)
    if start.startswith(MAGIC) and (tiff := read_tiff(file)) is not None:
        page = tiff.chosen(options)[0][0]
        check_sides(page.height, page.width)
        return decode_tiff(file, tiff, options, thorough)
    if start.startswith(MAGIC_BYTES):
        return _decode_jpeg(file.read(), options)
    with Image.open(file) as image:
        check_sides(image.height, image.width)
        seek_frame(image, options)
        if (bits := _deep_bits(image.format, start)) and options.page == 1:
            values = _decode_deep(file, image.format, start, bits)
            return pick_channels(values, options.channels), SampleType(bits)
        if image.format == "PPM" and image.mode == "I":  # states its own highest value, and is scaled by it already
            by_type = replace(AS_STORED, grey_as_rgb=options.grey_as_rgb)
            return to_eight_bits(np.asarray(image)[:, :, None], SampleType(16), by_type), SampleType()
        if image.format == "TIFF":  # with a wrong byte order mark, which Pillow accepts
            return image_values(forget_orientation(image), options.channels)
        if options.page == 1:
            check_last_row(image, file)
        return image_values(image, options.channels)


def _decode_jpeg(data: bytes, options: ReadOptions) -> tuple[Values, SampleType]:
    with Image.open(io.BytesIO(data)) as image:
        modes = ("L", "RGB") if options.grey_as_rgb else ("RGB",)
        simple = image.mode in modes and options.page == 1 and options.numbers is None
        if simple and (rgb := decode_strictly(data)) is not None:
            return rgb, SampleType()
        check_jpeg(data)
        seek_frame(image, options)
        return image_values(image, options.channels)


def _deep_bits(format_: str | None, start: bytes) -> int:
    """Bits per channel of PNG and JPEG 2000 with more than 8, which Pillow cuts or scales; otherwise 0."""
    if format_ == "PNG":
        grey = start[_PNG_COLOURS] == 0
        return 16 if start[_PNG_BITS] == 16 and not grey else 0
    if format_ == "JPEG2000" and (place := start.find(_JP2_START)) >= 0 and place + _JP2_BITS < len(start):
        bits = (start[place + _JP2_BITS] & 0x7F) + 1
        return bits if bits > 8 else 0
    return 0


def _decode_deep(file: IO[bytes], format_: str | None, start: bytes, bits: int) -> Values:
    """(h, w, c) values of a PNG or a JPEG 2000 of more than 8 bits."""
    if format_ == "PNG":
        values = decode_with_opencv(file)
        repeated = start[_PNG_COLOURS] == _PNG_GREY_ALPHA and values.shape[2] == 4
        return values[:, :, [0, 3]] if repeated else values
    place = start.find(_JP2_START) + _JP2_CHANNELS
    channels = int.from_bytes(start[place : place + 2])
    if channels == 1:
        return decode_with_opencv(file)
    if not is_installed("rasterio"):  # OpenCV gives the first channel of three, and Pillow fails
        advice = "pip install 'mask2former-dinov3[large]' reads it, or save it with 8 bits"
        got = f"one with {channels} channels of {bits} bits"
        raise DatasetError(mismatch("a JPEG 2000 of up to 8 bits, or of one channel", got, advice))
    file.seek(0)
    with open_gdal(file.read(), "JP2OpenJPEG") as dataset:
        return np.moveaxis(dataset.read(), 0, -1)


def seek_frame(image: Image.Image, options: ReadOptions) -> None:
    """Go to the chosen page or frame. Raises DatasetError where there is none of this number."""
    try:
        image.seek(options.page - 1)
    except EOFError as error:
        count = getattr(image, "n_frames", 1)
        got = f"a file with {count} page{'s' * (count > 1)}"
        raise DatasetError(mismatch(f"a page {options.page}", got, "choose another page")) from error


def _describe_frames(image: Image.Image, options: ReadOptions) -> str:
    count = getattr(image, "n_frames", 1)
    which = "the first" if options.page == 1 else f"number {options.page}"
    return f"{count} frames, {which} is read" if count > 1 else ""


def _orientation_of(image: Image.Image) -> int:
    """The orientation that a file states, by EXIF, its TIFF tag or XMP: 1..8; 1 where it states none."""
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1  # some cameras write 0 for "unknown"
