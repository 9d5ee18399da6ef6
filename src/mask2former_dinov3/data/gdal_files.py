"""Open image files with rasterio (GDAL; the extra `large`), and read parts of them by the rules of `images`.

GDAL reads what is too large for memory, and kinds of TIFF that Pillow does not know. The first bytes of a file choose
the driver, never its name, so that no file can make GDAL open another file or a network address. Files beside the image
are not read.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, mismatch
from ..extras import is_installed
from ..read_options import PERCENTILE, ReadOptions
from .jpeg_data import MAGIC_BYTES, check_jpeg
from .sample_values import (
    SampleType,
    Values,
    check_full_range,
    histogram_limits,
    limits_per_channel,
    to_eight_bits,
)
from .stored_blocks import block_checker, check_png
from .tiff_tags import MAGIC, TiffPage, read_tiff

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

GdalDataset: TypeAlias = Any
"""rasterio's DatasetReader; code in a model folder names no package that it can do without."""

_OPENING = threading.Lock()  # files are opened in several threads, and warnings are filtered for all of them

RowsAndColumns = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns of a part, each (first, end)."""


@dataclass(frozen=True)
class GdalImage:
    """An open file of height x width pixels. read(window) returns that part, (h, w, c) uint8; c is 3 for RGB."""

    height: int
    width: int
    read: Callable[[RowsAndColumns], npt.NDArray[np.uint8]]


def gdal_driver(start: bytes) -> str | None:
    """The driver for a file with these first bytes; None without rasterio, or for a format that it is not used for."""
    if not is_installed("rasterio"):
        return None
    return next((driver for magic, driver in DRIVERS if start.startswith(magic)), None)


@contextmanager
def open_gdal(source: Path | bytes, driver: str, directory: int = 1) -> Iterator[GdalDataset]:
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
        with _OPENING, warnings.catch_warnings():
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
            if driver == "PNG":
                check_png(path)
            opened = _open_other(open_files.enter_context(open_gdal(path, driver)), options)
        if opened is None:
            yield None
            return
        first, kind, palette = opened.sources[0], opened.kind, opened.palette
        for source in opened.sources:
            check_block_size(source)
        if len({(source.shape, source.dtypes[0]) for source in opened.sources}) > 1:
            raise DatasetError(mismatch("channels of one size and type", "pages of several"))

        def values_of(window: RowsAndColumns) -> Values:
            for source, check in zip(opened.sources, opened.checks, strict=False):
                for number in _blocks_of(source, window):
                    check(number)
            parts = [source.read(opened.bands, window=window) for source in opened.sources]
            return np.moveaxis(np.concatenate(parts), 0, -1)

        if np.dtype(first.dtypes[0]).kind == "f":
            check_full_range(values_of(((0, 1), (0, 1))), kind, options)  # refused here, not at the first tile
        if options.value_range == PERCENTILE and (kind.bits > 8 or np.dtype(first.dtypes[0]).kind != "u"):
            limits = _count_values(values_of, first.height, first.width, np.dtype(first.dtypes[0]))
            kind = replace(kind, limits=limits)

        def read(window: RowsAndColumns) -> npt.NDArray[np.uint8]:
            values = values_of(window)
            return to_eight_bits(values, kind, options) if palette is None else palette[values[:, :, 0]]

        yield GdalImage(first.height, first.width, read)


def read_tiff_samples(source: Path | bytes, page: TiffPage, samples: Sequence[int]) -> Values:
    """Samples of a page by their numbers from 0, (h, w, c) of its own type. Raises what rasterio raises."""
    with open_gdal(source, "GTiff", page.directory) as dataset:
        check_block_size(dataset)
        return np.moveaxis(dataset.read([sample + 1 for sample in samples]), 0, -1)


def check_pixel_count(height: int, width: int, stored: int, safe: int = 2**25) -> None:
    """Raise DatasetError for a file of `stored` bytes that declares far more pixels than they can hold.

    safe: number of pixels that any file may have.
    """
    if height * width > min(MOST_PIXELS, max(safe, stored * MOST_PIXELS_PER_BYTE)):
        raise DatasetError(
            f"expected at most {MOST_PIXELS_PER_BYTE} pixels per byte of the file and {MOST_PIXELS:,} in all, "
            f"got {height} x {width} pixels (height x width) in {stored:,} bytes; the file may be a decompression bomb"
        )


def check_block_size(source: GdalDataset) -> None:
    """Raise DatasetError for a file with blocks that are too large to be decoded."""
    rows, columns = source.block_shapes[0]
    size = rows * columns * source.count * np.dtype(source.dtypes[0]).itemsize
    if size > MOST_BLOCK_BYTES:
        raise DatasetError(
            f"expected blocks of at most {MOST_BLOCK_BYTES:,} bytes, since a block is decoded as a whole, got "
            f"{rows} x {columns} pixels (height x width), {size:,} bytes; save the image as a tiled TIFF"
        )


class _Opened(NamedTuple):
    """The datasets of the chosen pages, the bands that are read of each, what their values mean, and the palette.

    checks: of each dataset what checks one of its blocks by its number; none where the format needs no check.
    """

    sources: list[GdalDataset]
    bands: list[int]
    kind: SampleType
    palette: npt.NDArray[np.uint8] | None = None
    checks: Sequence[Callable[[int], None]] = ()


def _blocks_of(source: GdalDataset, window: RowsAndColumns) -> Iterator[int]:
    """Numbers of the strips or tiles that hold a part of the image, of all planes."""
    (top, bottom), (left, right) = window
    rows, columns = source.block_shapes[0]
    down, across = -(-source.height // rows), -(-source.width // columns)
    planes = source.count if source.interleaving.name == "band" else 1
    for plane in range(planes):
        for row in range(top // rows, -(-bottom // rows)):
            for column in range(left // columns, -(-right // columns)):
                yield (plane * down + row) * across + column


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
    pages = list({one.directory: one for one, _ in chosen}.values())
    checks = [block_checker(path, one) for one in pages]
    sources = [open_files.enter_context(open_gdal(path, "GTiff", one.directory)) for one in pages]
    if page.photometric == 3:
        return _Opened(sources, [1], kind, _palette(sources[0]), checks)
    if len(pages) > 1:
        by_page = {one.directory: number for number, one in enumerate(pages)}
        order = [by_page[one.directory] for one, _ in chosen]
        return _Opened([sources[number] for number in order], [1], kind, None, [checks[number] for number in order])
    samples = page.colour_samples() if chosen[0][1] < 0 else [sample for _, sample in chosen]
    return _Opened(sources, [sample + 1 for sample in samples], kind, None, checks)


def _open_other(source: GdalDataset, options: ReadOptions) -> _Opened | None:
    """As `_open_tiff`, for PNG, JPEG and JPEG 2000."""
    kinds = [interpretation.name for interpretation in source.colorinterp]
    if source.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") in ("CMYK", "CIELAB"):
        return None  # GDAL turns these into other RGB values than Pillow does
    bits = int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(source.dtypes[0]).itemsize))
    if options.page > 1:
        raise DatasetError(mismatch(f"a page {options.page}", "a file with 1 page", "choose another page"))
    if kinds == ["palette"]:
        return _Opened([source], [1], SampleType(bits), _palette(source))
    if kinds[:3] != ["red", "green", "blue"] and kinds[:1] != ["gray"]:
        return None
    bands = list(options.numbers or ((1, 2, 3) if kinds[0] == "red" else (1,)))
    if max(bands) > source.count:
        raise DatasetError(
            mismatch(f"a channel {max(bands)}", f"a file with {source.count} channels", "choose other channels")
        )
    return _Opened([source], bands, SampleType(bits))


def _palette(source: GdalDataset) -> npt.NDArray[np.uint8]:
    """(256, 3): the colours of a palette."""
    colours = source.colormap(1)
    return np.array([colours.get(index, (0, 0, 0))[:3] for index in range(256)], dtype=np.uint8)


def _count_values(
    values_of: Callable[[RowsAndColumns], Values], height: int, width: int, dtype: np.dtype[Any]
) -> tuple[tuple[float, float], ...]:
    """The percentiles of an image that is read in parts, as `SampleType.limits`."""
    if dtype.kind == "f" or dtype.itemsize > 2:
        advice = "set value_range to LOW,HIGH"
        raise DatasetError(
            mismatch("integers of at most 16 bits, for percentiles of an image read in parts", str(dtype), advice)
        )
    first = int(np.iinfo(dtype).min)
    counts: dict[int, npt.NDArray[np.int64]] = {}  # channel, or 0 for all of them -> pixels with each value
    rows = max(COUNTED_PIXELS // width, 1)
    for top in range(0, height, rows):
        values = values_of(((top, min(top + rows, height)), (0, width)))
        each = limits_per_channel(values.shape[2])
        for channel, some in enumerate(np.moveaxis(values, -1, 0)) if each else [(0, values)]:
            found = np.bincount(some.ravel().astype(np.int64) - first, minlength=2 ** (8 * dtype.itemsize))
            counts[channel] = counts.get(channel, 0) + found
    return tuple(histogram_limits(one, first) for one in counts.values())
