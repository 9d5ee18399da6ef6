"""Decode a whole page of a TIFF: Pillow where it keeps the stored values, then OpenCV, then rasterio if installed."""

from __future__ import annotations

from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import DatasetError, mismatch
from ..extras import is_installed
from ..read_options import FULL, ReadOptions
from .gdal_files import read_tiff_samples
from .pillow_pixels import decode_with_opencv, forget_orientation, sample_bands, to_rgb_bands
from .sample_values import SampleType, Values
from .stored_blocks import check_tiff_blocks
from .tiff_tags import TiffFile, TiffPage

_OPENCV_COMPRESSIONS = frozenset({1, 5, 8, 32773, 32946})  # none, LZW, deflate, packbits; tests hold OpenCV to them
_MOST_PILLOW = 6  # samples; it logs an error where there are more


def decode_tiff(
    file: IO[bytes], tiff: TiffFile, options: ReadOptions, thorough: bool = False
) -> tuple[Values, SampleType]:
    """The stored values of what `options` choose, (h, w, 1) grey, (h, w, 3) colours or (h, w, c), and what they mean.

    thorough: also compare the checksums of data by deflate, which costs as much as decoding them.
    Raises DatasetError for a page or channel that the file has not, for a kind of TIFF that nothing here decodes, and
    for damaged JPEG data; what Pillow, OpenCV and rasterio raise for other damage.
    """
    chosen = tiff.chosen(options)
    pages = {page.directory: page for page, _ in chosen}
    for page in pages.values():
        planes = max(len(chosen) / 3, 1)  # an image of more channels takes as much memory as several in RGB
        if page.height * page.width * planes > 2 * (Image.MAX_IMAGE_PIXELS or 2**62):
            raise Image.DecompressionBombError
        check_tiff_blocks(file, page, deflate=thorough)
    if len(pages) == 1:
        samples = None if chosen[0][1] < 0 else [sample for _, sample in chosen]
        return _decode_page(file, chosen[0][0], samples, options)
    parts = {number: _decode_page(file, page, [0], options) for number, page in pages.items()}
    if len({(values.shape, values.dtype, kind) for values, kind in parts.values()}) > 1:
        raise DatasetError(mismatch("channels of one size and type", "pages of several"))
    found = [parts[page.directory] for page, _ in chosen]
    return np.concatenate([values for values, _ in found], axis=2), found[0][1]


def _decode_page(
    file: IO[bytes], page: TiffPage, samples: list[int] | None, options: ReadOptions
) -> tuple[Values, SampleType]:
    """The named samples of a page, (h, w, c); None: those that are grey or colours."""
    kind = SampleType(page.bits[0], page.photometric == 0)
    named = samples
    if named is None and not page.only_pillow:
        named = page.colour_samples()
    by_pillow = _with_pillow(file, page, samples, named)
    if by_pillow is not None:
        return by_pillow, kind if page.samples == 1 and not page.eight_bits else SampleType()
    if named is not None:
        if _suits_opencv(page):
            return decode_with_opencv(file)[:, :, named], kind
        if is_installed("rasterio"):
            file.seek(0)
            return read_tiff_samples(file.read(), page, named), kind
    if page.photometric == 2 and samples is None and options.value_range == FULL and not page.planar:
        try:  # colours of 16 bits, of which Pillow keeps the 8 highest
            return to_rgb_bands(_open_page(file, page)), SampleType()
        except (UnidentifiedImageError, ValueError):
            pass
    advice = "pip install 'mask2former-dinov3[large]' reads it, or save it as RGB of 8 bits"
    raise DatasetError(mismatch("a TIFF that Pillow or OpenCV can decode", page.describe(), advice))


def _with_pillow(file: IO[bytes], page: TiffPage, samples: list[int] | None, named: list[int] | None) -> Values | None:
    """The samples by Pillow; None where it does not know the page, or would change or drop values."""
    if page.eight_bits or page.only_pillow:
        if samples is None and page.photometric in (0, 1) and page.samples > 1 and len(named or ()) > 1:
            return None  # Pillow knows no colours without a name
        if page.samples > _MOST_PILLOW:
            return None
    elif page.samples > 1 or page.dtype is None or page.planar:
        return None  # Pillow reads planes of 16 bits as if they had 32 or 8
    try:
        image = _open_page(file, page)
    except UnidentifiedImageError:
        return None
    if page.eight_bits or page.only_pillow:
        if samples is None:
            return to_rgb_bands(image)
        bands = sample_bands(image)
        return None if bands is None or bands.shape[2] != page.samples else bands[:, :, samples]
    values = np.asarray(image)[:, :, None]
    return values if values.dtype.kind == "f" else values.astype(page.dtype)  # Pillow's own type may be wider


def _open_page(file: IO[bytes], page: TiffPage) -> Image.Image:
    """The page, decoded, its pixels as stored."""
    file.seek(0)
    image = Image.open(file)
    image.seek(page.directory - 1)
    return forget_orientation(image)


def _suits_opencv(page: TiffPage) -> bool:
    """Whether OpenCV is known to give the stored values: grey or colours of 16 bits, together, on the first page."""
    colours = page.photometric == 2 and page.samples in (3, 4) and not page.planar
    return (
        (colours or (page.photometric == 1 and page.samples == 1))
        and set(page.bits) == {16}
        and page.sample_format == 1
        and page.directory == 1
        and page.compression in _OPENCV_COMPRESSIONS
    )
