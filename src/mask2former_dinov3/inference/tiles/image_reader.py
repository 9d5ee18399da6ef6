"""Read image files in parts if they are too large for memory; the pixels are those of `images.read_image`.

Large files are read through rasterio (`data.gdal_files`; the extra `large`): TIFF and BigTIFF, tiled or in strips
(whole-slide scans, .svs, are TIFF), PNG, JPEG, JPEG 2000.

One difference remains: in a JPEG with subsampled colours (4:2:0) GDAL repeats the stored colour where Pillow
interpolates it; on photographs the mean difference is 0.3 of 255 levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ...data.extra_files import check_extra_size, find_extra
from ...data.fitting import PixelArray
from ...data.gdal_files import check_pixel_count, gdal_driver, open_gdal, open_parts
from ...data.images import check_sides, name_errors, read_header, read_image
from ...read_options import AS_STORED, ReadOptions
from .grid import Region
from .part_reader import ImageReader

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

WHOLE_PIXELS = 2**25
"""Files of up to so many pixels (100 MB as RGB) are read whole: any format, no extra package."""

Opened = TypeVar("Opened")


def is_large_image(image: ImageReader) -> bool:
    """Whether an image is too large to be held in memory as a whole."""
    return image.height * image.width > WHOLE_PIXELS


@contextmanager
def open_image(path: Path, options: ReadOptions = AS_STORED) -> Iterator[ImageReader]:
    """Open a file for reading in parts, inside the `with` block and in the thread that opened it.

    A file that is not large is read whole. A large file is also read whole, within Pillow's limit, if it cannot be read
    in parts: rasterio is not installed, or the image is CMYK, Lab, WebP, GIF or BMP. Raises DatasetError as
    `read_image` does, and for a file that declares far more pixels than its bytes can hold, or has too large blocks.
    """
    if options.extra_images is not None:
        extra = find_extra(path, options.extra_images)
        with open_image(path, options.of_image) as image, open_image(extra, options.of_extra) as more:
            check_extra_size(path, (image.height, image.width), extra, (more.height, more.width))
            yield image.beside(more)
        return
    height, width = image_size(path, options)
    driver = _driver_of(path) if height * width > WHOLE_PIXELS else None
    if driver is None:
        yield ImageReader.of(read_image(path, options))
        return
    with _naming(open_parts(path, driver, options), path) as opened:
        if opened is None:
            yield ImageReader.of(read_image(path, options))
            return

        def read(at: Region) -> PixelArray:
            with name_errors(path):
                return opened.read(((at.y0, at.y1), (at.x0, at.x1)))

        yield ImageReader(opened.height, opened.width, read)


def image_size(path: Path, options: ReadOptions = AS_STORED) -> tuple[int, int]:
    """(height, width) of an image file of any size, without its second file. Raises DatasetError as `open_image`."""
    with _open_dataset(path) as source:
        if source is not None and options.page == 1:
            with name_errors(path):
                check_sides(source.height, source.width)
            return source.height, source.width
    header = read_header(path, options.of_image)
    return header.height, header.width


def georeference(path: Path) -> tuple[tuple[float, ...], str] | None:
    """The affine transform (a, b, c, d, e, f) of a GeoTIFF and its coordinate system; None without georeference.

    x = a * column + b * row + c, y = d * column + e * row + f.
    """
    with _open_dataset(path) as source:
        if source is None or source.crs is None or source.transform.is_identity:
            return None
        code = source.crs.to_epsg()
        name = f"urn:ogc:def:crs:EPSG::{code}" if code else source.crs.to_wkt()
        return tuple(source.transform)[:6], name


@contextmanager
def _open_dataset(path: Path) -> Iterator[DatasetReader | None]:
    """The file as a rasterio dataset; None without rasterio, or for a format that is not read in parts."""
    driver = _driver_of(path)
    if driver is None:
        yield None
        return
    with _naming(open_gdal(path, driver), path) as source:
        with name_errors(path):
            check_pixel_count(source.height, source.width, path.stat().st_size, WHOLE_PIXELS)
        yield source


def _driver_of(path: Path) -> str | None:
    with name_errors(path), open(path, "rb") as file:
        return gdal_driver(file.read(12))


@contextmanager
def _naming(opening: AbstractContextManager[Opened], path: Path) -> Iterator[Opened]:
    """`opening`, with errors of opening named; what happens inside the block is not changed."""
    with name_errors(path):
        opened = opening.__enter__()
    with ExitStack() as stack:
        stack.push(opening)
        yield opened
