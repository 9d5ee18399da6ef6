"""Read image files in parts if they are too large for memory; the pixels are those of `images.read_image`.

Large files are read through rasterio (GDAL; the extra `large`): TIFF and BigTIFF, tiled or in strips (whole-slide
scans, .svs, are TIFF), PNG, JPEG, JPEG 2000. The first bytes of a file choose the driver, never its name, so that no
file can make GDAL open another file or a network address. Files beside the image are not read.

One difference remains: in a JPEG with subsampled colours (4:2:0) GDAL repeats the stored colour where Pillow
interpolates it; on photographs the mean difference is 0.3 of 255 levels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...data.images import explained, read_header, read_image, sixteen_to_eight
from ...errors import DatasetError
from ...extras import is_installed
from .grid import Region

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

WHOLE_PIXELS = 2**25
"""Files of up to so many pixels (100 MB as RGB) are read whole: any format, no extra package."""

MOST_PIXELS = 2**36  # 262,144 pixels a side
MOST_PIXELS_PER_BYTE = 1000  # of the file; an RGB image of one colour, deflated, has 344
MOST_BLOCK_BYTES = 2**28  # the size of a block, which is decoded as a whole to read one pixel
CACHE_MB = 256  # of decoded blocks, so that neighbouring tiles do not decode them again
WHOLE_BY_PILLOW = frozenset({"CMYK", "CIELAB"})  # GDAL turns these into other RGB values than Pillow does
JPEGS = frozenset({"JPEG", "YCbCr JPEG"})  # YCbCr that is decoded as JPEG is RGB like any other

DRIVERS = (
    (b"II*\0", "GTiff"),
    (b"MM\0*", "GTiff"),
    (b"II+\0", "GTiff"),
    (b"MM\0+", "GTiff"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\0\0\0\x0cjP  ", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
)
ENVIRONMENT = {
    "GDAL_CACHEMAX": CACHE_MB,
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no overviews, masks or world files beside the image
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,  # otherwise the missing part of a JPEG that was cut short becomes grey
    "GDAL_PAM_ENABLED": False,  # no .aux.xml, which may name any file or address
}

Rgb = npt.NDArray[np.uint8]
Bands = npt.NDArray[Any]  # (bands, h, w) or (h, w) numbers of the file's own type
Convert = Callable[[Bands], Rgb]


@dataclass(frozen=True)
class ImageReader:
    """An image of height x width pixels that is read in parts: read(region) returns RGB (h, w, 3) uint8."""

    height: int
    width: int
    read: Callable[[Region], Rgb]

    @classmethod
    def of(cls, rgb: Rgb) -> ImageReader:
        """An image in memory, (H, W, 3)."""
        return cls(rgb.shape[0], rgb.shape[1], lambda at: rgb[at.y0 : at.y1, at.x0 : at.x1])

    @property
    def large(self) -> bool:
        """Whether the image is too large to be held in memory as a whole."""
        return self.height * self.width > WHOLE_PIXELS


@contextmanager
def open_image(path: Path) -> Iterator[ImageReader]:
    """Open a file for reading in parts, inside the `with` block and in the thread that opened it.

    A file that is not large is read whole. A large file is also read whole, within Pillow's limit, if it cannot be read
    in parts: rasterio is not installed, or the image is CMYK, Lab, WebP, GIF or BMP. Raises DatasetError as
    `read_image` does, and for a file that declares far more pixels than its bytes can hold, or has too large blocks.
    """
    with _open_dataset(path) as source:
        convert = None if source is None or source.height * source.width <= WHOLE_PIXELS else _find_conversion(source)
        if source is None or convert is None:
            yield ImageReader.of(read_image(path))
            return
        _check_blocks(source, path)

        def read(at: Region) -> Rgb:
            with explained(path):
                return convert(source.read(window=((at.y0, at.y1), (at.x0, at.x1))))

        yield ImageReader(source.height, source.width, read)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file of any size. Raises DatasetError as `open_image` does."""
    with _open_dataset(path) as source:
        if source is not None:
            return source.height, source.width
    header = read_header(path)
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
    if not is_installed("rasterio"):
        yield None
        return
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with explained(path), open(path, "rb") as file:
        start = file.read(12)
    driver = next((driver for magic, driver in DRIVERS if start.startswith(magic)), None)
    if driver is None:
        yield None
        return
    with rasterio.Env(**ENVIRONMENT):
        with explained(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            # A Path: a string could be taken for an address.
            source = rasterio.open(path.absolute(), driver=driver)
        with source:
            _check_size(source.height, source.width, path)
            yield source


def _check_size(height: int, width: int, path: Path) -> None:
    pixels, stored = height * width, path.stat().st_size
    if pixels > min(MOST_PIXELS, max(WHOLE_PIXELS, stored * MOST_PIXELS_PER_BYTE)):
        raise DatasetError(
            f"{path}: expected at most {MOST_PIXELS_PER_BYTE} pixels per byte of the file and {MOST_PIXELS:,} in all, "
            f"got {height} x {width} pixels (height x width) in {stored:,} bytes; the file may be a decompression bomb"
        )


def _check_blocks(source: DatasetReader, path: Path) -> None:
    rows, columns = source.block_shapes[0]
    size = rows * columns * source.count * np.dtype(source.dtypes[0]).itemsize
    if size > MOST_BLOCK_BYTES:
        raise DatasetError(
            f"{path}: expected blocks of at most {MOST_BLOCK_BYTES:,} bytes, since a block is decoded as a whole, got "
            f"{rows} x {columns} pixels (height x width), {size:,} bytes; save the image as a tiled TIFF"
        )


def _find_conversion(source: DatasetReader) -> Convert | None:
    """The function from bands (bands, h, w) to RGB by the rules of `images`; None where only Pillow can convert."""
    kinds = [interpretation.name for interpretation in source.colorinterp]
    dtype = source.dtypes[0]
    tags = source.tags(ns="IMAGE_STRUCTURE")
    space = tags.get("SOURCE_COLOR_SPACE")
    if (
        space in WHOLE_BY_PILLOW
        or (space == "YCbCr" and tags.get("COMPRESSION") not in JPEGS)
        or any(other != dtype for other in source.dtypes)
    ):
        return None
    if dtype in ("uint8", "uint16") and kinds[:3] == ["red", "green", "blue"]:
        return lambda bands: _high_byte(np.moveaxis(bands[:3], 0, -1))
    if dtype == "uint8" and kinds == ["palette"]:
        colours = source.colormap(1)
        palette = np.array([colours.get(index, (0, 0, 0))[:3] for index in range(256)], dtype=np.uint8)
        return lambda bands: palette[bands[0]]
    if kinds == ["gray", "alpha"] and dtype in ("uint8", "uint16"):
        return lambda bands: _grey(_high_byte(bands[0]))
    if kinds == ["gray"]:
        if dtype == "uint8":
            light = 255 if source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1" else 1
            inverted = tags.get("MINISWHITE") == "YES"
            return lambda bands: _grey(255 - bands[0] * light if inverted else bands[0] * light)
        if dtype in ("uint16", "int16", "uint32", "int32"):
            return lambda bands: _grey(sixteen_to_eight(bands[0]))
    return None


def _grey(values: npt.NDArray[np.uint8]) -> Rgb:
    return np.repeat(values[:, :, None], 3, axis=2)


def _high_byte(values: Bands) -> npt.NDArray[np.uint8]:
    """16-bit colours to 8 bits as Pillow converts them: the high byte."""
    return np.ascontiguousarray(values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8))
