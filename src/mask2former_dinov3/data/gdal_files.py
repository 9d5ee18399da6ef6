"""Open image files with rasterio (GDAL; the extra `large`), and read parts of them as RGB by the rules of `images`.

GDAL reads what is too large for memory, and kinds of TIFF that Pillow does not know. The first bytes of a file choose
the driver, never its name, so that no file can make GDAL open another file or a network address. Files beside the image
are not read.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, mismatch
from ..extras import is_installed
from ..read_options import PERCENTILE, ReadOptions
from .jpeg_data import MAGIC_BYTES, check_jpeg
from .sample_values import SampleType, Values, check_full_range, histogram_limits, to_eight_bits
from .tiff_tags import MAGIC, TiffPage, read_tiff

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

MOST_PIXELS = 2**36  # 262,144 pixels a side
MOST_PIXELS_PER_BYTE = 1000  # of the file; an RGB image of one colour, deflated, has 344
MOST_BLOCK_BYTES = 2**28  # the size of a block, which is decoded as a whole to read one pixel
CACHE_MB = 256  # of decoded blocks, so that neighbouring tiles do not decode them again
COUNTED_PIXELS = 2**24  # read at once to count the values of an image

DRIVERS = (
    *((magic, "GTiff") for magic in MAGIC),
    (b"\x89PNG", "PNG"),
    (MAGIC_BYTES, "JPEG"),
    (b"\0\0\0\x0cjP  ", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
)
ENVIRONMENT = {
    "GDAL_CACHEMAX": CACHE_MB,
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no overviews, masks or world files beside the image
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,  # otherwise the missing part of a JPEG that was cut short becomes grey
    "GDAL_PAM_ENABLED": False,  # no .aux.xml, which may name any file or address
}

RowsAndColumns = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns of a part, each (first, end)."""


@dataclass(frozen=True)
class GdalImage:
    """An open file of height x width pixels. read(window) returns that part as RGB, (h, w, 3) uint8."""

    height: int
    width: int
    read: Callable[[RowsAndColumns], npt.NDArray[np.uint8]]


def gdal_driver(start: bytes) -> str | None:
    """The driver for a file with these first bytes; None without rasterio, or for a format that it is not used for."""
    if not is_installed("rasterio"):
        return None
    return next((driver for magic, driver in DRIVERS if start.startswith(magic)), None)


@contextmanager
def open_gdal(source: Path | bytes, driver: str, directory: int = 1) -> Iterator[DatasetReader]:
    """A file, or its content, as a rasterio dataset. directory: the page of a TIFF, from 1.

    Raises what rasterio raises, and DatasetError for a file that declares far more pixels than its bytes can hold.
    """
    rasterio = importlib.import_module("rasterio")
    errors = importlib.import_module("rasterio.errors")
    with rasterio.Env(**ENVIRONMENT), ExitStack() as open_files:
        if isinstance(source, bytes):
            name: Any = open_files.enter_context(rasterio.MemoryFile(source)).name
            stored = len(source)
        else:
            name, stored = source.absolute(), source.stat().st_size  # a Path: a string could be taken for an address
        if directory > 1:
            name = f"GTIFF_DIR:{directory}:{name}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.NotGeoreferencedWarning)
            dataset = open_files.enter_context(rasterio.open(name, driver=driver))
        check_pixel_count(dataset.height, dataset.width, stored)
        yield dataset


@contextmanager
def open_parts(path: Path, driver: str, options: ReadOptions) -> Iterator[GdalImage | None]:
    """A file for reading in parts; None for colours that only Pillow converts (CMYK, Lab, YCbCr without JPEG).

    Raises DatasetError for what `options` do not allow, for damaged JPEG data, and for blocks that are too large.
    """
    with ExitStack() as open_files:
        if driver == "GTiff":
            opened = _open_tiff(path, options, open_files)
        else:
            if driver == "JPEG":
                check_jpeg(path.read_bytes())
            opened = _open_other(open_files.enter_context(open_gdal(path, driver)), options)
        if opened is None:
            yield None
            return
        sources, bands, kind, palette = opened
        for source in sources:
            check_block_size(source)

        def values_of(window: RowsAndColumns) -> Values:
            parts = [source.read(bands, window=window) for source in sources]
            return np.moveaxis(np.concatenate(parts), 0, -1)

        first = sources[0]
        if np.dtype(first.dtypes[0]).kind == "f":
            check_full_range(values_of(((0, 1), (0, 1))), kind, options)  # refused here, not at the first tile
        if options.value_range == PERCENTILE and (kind.bits > 8 or np.dtype(first.dtypes[0]).kind != "u"):
            limits = _count_values(values_of, first.height, first.width, np.dtype(first.dtypes[0]))
            kind = SampleType(kind.bits, kind.inverted, limits)

        def read(window: RowsAndColumns) -> npt.NDArray[np.uint8]:
            values = values_of(window)
            return to_eight_bits(values, kind, options) if palette is None else palette[values[:, :, 0]]

        yield GdalImage(first.height, first.width, read)


def read_tiff_samples(source: Path | bytes, page: TiffPage) -> Values:
    """All samples of a page, (h, w, samples) of its own type. Raises what rasterio raises."""
    with open_gdal(source, "GTiff", page.directory) as dataset:
        check_block_size(dataset)
        return np.moveaxis(dataset.read(), 0, -1)


def check_pixel_count(height: int, width: int, stored: int, safe: int = 2**25) -> None:
    """Raise DatasetError for a file of `stored` bytes that declares far more pixels than they can hold.

    safe: number of pixels that any file may have.
    """
    if height * width > min(MOST_PIXELS, max(safe, stored * MOST_PIXELS_PER_BYTE)):
        raise DatasetError(
            f"expected at most {MOST_PIXELS_PER_BYTE} pixels per byte of the file and {MOST_PIXELS:,} in all, "
            f"got {height} x {width} pixels (height x width) in {stored:,} bytes; the file may be a decompression bomb"
        )


def check_block_size(source: DatasetReader) -> None:
    """Raise DatasetError for a file with blocks that are too large to be decoded."""
    rows, columns = source.block_shapes[0]
    size = rows * columns * source.count * np.dtype(source.dtypes[0]).itemsize
    if size > MOST_BLOCK_BYTES:
        raise DatasetError(
            f"expected blocks of at most {MOST_BLOCK_BYTES:,} bytes, since a block is decoded as a whole, got "
            f"{rows} x {columns} pixels (height x width), {size:,} bytes; save the image as a tiled TIFF"
        )


_Opened = tuple[list["DatasetReader"], list[int], SampleType, npt.NDArray[np.uint8] | None]


def _open_tiff(path: Path, options: ReadOptions, open_files: ExitStack) -> _Opened | None:
    """The datasets of the chosen pages, their bands, what their values mean, and the palette."""
    with open(path, "rb") as file:
        tiff = read_tiff(file)
    if tiff is None:
        return None
    chosen = tiff.chosen(options)
    page = chosen[0][0]
    if page.only_pillow:
        return None
    kind = SampleType(page.bits[0], page.photometric == 0)
    if page.photometric == 3:
        source = open_files.enter_context(open_gdal(path, "GTiff", page.directory))
        return [source], [1], kind, _palette(source)
    if len({one.directory for one, _ in chosen}) > 1:
        pages = [open_files.enter_context(open_gdal(path, "GTiff", one.directory)) for one, _ in chosen]
        return pages, [1], kind, None
    source = open_files.enter_context(open_gdal(path, "GTiff", page.directory))
    samples = page.colour_samples() if options.channels is None else [sample for _, sample in chosen]
    return [source], [sample + 1 for sample in samples], kind, None


def _open_other(source: DatasetReader, options: ReadOptions) -> _Opened | None:
    """As `_open_tiff`, for PNG, JPEG and JPEG 2000."""
    kinds = [interpretation.name for interpretation in source.colorinterp]
    if source.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") in ("CMYK", "CIELAB"):
        return None  # GDAL turns these into other RGB values than Pillow does
    bits = int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(source.dtypes[0]).itemsize))
    if options.page > 1:
        raise DatasetError(mismatch(f"a page {options.page}", "a file with 1 page", "choose another page"))
    if kinds == ["palette"]:
        return [source], [1], SampleType(bits), _palette(source)
    if kinds[:3] != ["red", "green", "blue"] and kinds[:1] != ["gray"]:
        return None
    bands = list(options.channels or ((1, 2, 3) if kinds[0] == "red" else (1,)))
    if max(bands) > source.count:
        raise DatasetError(
            mismatch(f"a channel {max(bands)}", f"a file with {source.count} channels", "choose other channels")
        )
    return [source], bands, SampleType(bits), None


def _palette(source: DatasetReader) -> npt.NDArray[np.uint8]:
    """(256, 3): the colours of a palette."""
    colours = source.colormap(1)
    return np.array([colours.get(index, (0, 0, 0))[:3] for index in range(256)], dtype=np.uint8)


def _count_values(
    values_of: Callable[[RowsAndColumns], Values], height: int, width: int, dtype: np.dtype[Any]
) -> tuple[float, float]:
    """The percentiles of an image that is read in parts."""
    if dtype.kind == "f" or dtype.itemsize > 2:
        advice = "set value_range to LOW,HIGH"
        raise DatasetError(
            mismatch("integers of at most 16 bits, for percentiles of an image read in parts", str(dtype), advice)
        )
    first = int(np.iinfo(dtype).min)
    counts = np.zeros(2 ** (8 * dtype.itemsize), np.int64)
    rows = max(COUNTED_PIXELS // width, 1)
    for top in range(0, height, rows):
        values = values_of(((top, min(top + rows, height)), (0, width)))
        counts += np.bincount(values.ravel().astype(np.int64) - first, minlength=len(counts))
    return histogram_limits(counts, first)
