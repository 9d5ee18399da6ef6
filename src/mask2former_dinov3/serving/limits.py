"""Limits of a server, settings of one request, and the errors of a request that is refused or fails."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from ..canvas import LARGEST_IMAGE_SIDE
from ..data.images import decode_header
from ..data.tiff_tags import MAGIC
from ..errors import DatasetError, OptionError, mismatch
from ..inference.settings import InferenceSettings
from ..inference.tiles.grid import Passes
from ..read_options import AS_STORED, ReadOptions

# Pillow knows more formats, some of which start other programs to decode a file.
DECODED_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_TILES = 1_000  # per image


class Busy(Exception):
    """The queue is full or the server is shutting down. retry_after: whole seconds until there should be room."""

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TooLarge(Exception):
    """The image has more pixels or more tiles than the server accepts."""


class ModelFailed(Exception):
    """The model raised an error on this image; the log has the traceback."""


@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    batch_size: maximum number of images (or tiles) per forward pass. max_queue: maximum number of requests in the
    server. max_bytes: maximum size of a request's body. max_pixels: maximum height * width of an image. timeout:
    seconds from the first byte of a request to its answer. max_wait: milliseconds that an image waits for others to
    fill its batch. max_connections: maximum number of open connections; beyond it, the one that has waited longest for
    a request is closed.

    Raises OptionError for a limit that no request can meet.
    """

    batch_size: int = 8
    max_queue: int = 64
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    timeout: float = 60.0
    max_wait: float = 10.0
    max_connections: int = 256

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_queue", "max_bytes", "max_pixels", "max_connections"):
            if not getattr(self, name) >= 1:
                raise OptionError(name, "a whole number above 0", getattr(self, name))
        if not 0 < self.timeout < math.inf:
            raise OptionError("timeout", "a number of seconds above 0", self.timeout)
        if not 0 <= self.max_wait < math.inf:
            raise OptionError("max_wait", "a number of milliseconds, 0 or more", self.max_wait)


@dataclass(frozen=True)
class Wanted:
    """What one request asks for.

    settings: as in `Predictor`; its batch_size is not used, since the queue forms the batches. classes: names of the
    classes to report, None for all. overlay: also return a PNG with the instances drawn in.
    """

    settings: InferenceSettings
    classes: frozenset[str] | None = None
    overlay: bool = False


def check_header(
    data: bytes, name: str, max_pixels: int, passes: Passes, options: ReadOptions = AS_STORED, channels: int = 3
) -> None:
    """Check format and size of an image from its header; no pixel is decoded.

    name: how messages call the image. passes: how it is cut. options, channels: of the model; for more than three
    channels, which take as much memory as several images in RGB, the limit is as many times lower.
    Raises TooLarge for too many pixels or tiles, DatasetError for bytes that are not an image of a format in
    DECODED_FORMATS.
    """
    max_pixels = max_pixels * 3 // max(channels, 3)
    limit = f"an image of at most {max_pixels:,} pixels"
    try:
        with Image.open(io.BytesIO(data), formats=DECODED_FORMATS) as image:
            height, width = image.height, image.width
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limit is lower
        raise TooLarge(f"{name}: {mismatch(limit, 'many times as many', 'cut it into parts')}") from error
    except UnidentifiedImageError as error:
        if data.startswith(MAGIC):  # a kind of TIFF that Pillow does not know, such as one of five channels
            header = decode_header(data, name, options)
            height, width = header.height, header.width
            _check_size(height, width, name, max_pixels, passes)
            return
        expected = f"an image in one of the formats {', '.join(DECODED_FORMATS)}"
        raise DatasetError(f"{name}: {mismatch(expected, 'bytes that are none of them')}") from error
    except Exception as error:  # decoders raise errors of any class on damaged bytes
        raise DatasetError(f"{name}: {mismatch('a complete image', 'damaged or incomplete data')}") from error
    _check_size(height, width, name, max_pixels, passes)


def _check_size(height: int, width: int, name: str, max_pixels: int, passes: Passes) -> None:
    """Raise TooLarge for an image of too many pixels or tiles."""
    if height * width > max_pixels:
        limit = f"an image of at most {max_pixels:,} pixels"
        size = f"{height} x {width} (height x width)"
        raise TooLarge(f"{name}: {mismatch(limit, size, 'cut it into parts')}")
    if max(height, width) > LARGEST_IMAGE_SIDE:
        expected, got = f"at most {LARGEST_IMAGE_SIDE:,} pixels a side", f"{height} x {width} (height x width)"
        raise TooLarge(f"{name}: {mismatch(expected, got, 'cut it into parts')}")
    if passes.may_cut and height and width:
        tiles = passes.grid(height, width).number_of_tiles
        if tiles > MOST_TILES:
            raise TooLarge(f"{name}: {mismatch(f'at most {MOST_TILES} tiles', tiles, 'use larger tiles')}")
