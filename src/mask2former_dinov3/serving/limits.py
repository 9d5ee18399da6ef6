"""What one request may ask for, and the errors of a request that is refused or fails."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from ..errors import DatasetError
from ..inference.tiles.grid import Grid

# What is decoded. Pillow knows more formats, some of which start programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


MOST_TILES = 1_000  # of one image


class Busy(Exception):
    """The house is full or closing; `retry_after`: whole seconds after which there should be room."""

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TooLarge(Exception):
    """An image of more pixels than are taken."""


class ModelFailed(Exception):
    """The model could not be run on this image; the log has the reason."""


@dataclass(frozen=True)
class Limits:
    """What one server takes: images in a batch, requests in the house, bytes and pixels of an image, seconds for an
    answer; max_wait: milliseconds that an image waits for others to fill its batch."""

    batch_size: int = 8
    max_queue: int = 64
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    timeout: float = 60.0
    max_wait: float = 10.0

    def __post_init__(self) -> None:
        """Raises ValueError for a limit that lets nothing through."""
        for name, least in (("batch_size", 1), ("max_queue", 1), ("max_bytes", 1), ("max_pixels", 1), ("max_wait", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not self.timeout > 0:
            raise ValueError(f"timeout: expected seconds above 0, got {self.timeout}")


@dataclass(frozen=True)
class Wanted:
    """What a request wants of its image, as `Predictor` has it; classes: only these; overlay: also a picture."""

    threshold: float
    max_detections: int
    tile: int | None
    overlap: float
    classes: frozenset[str] | None
    overlay: bool


def check_header(data: bytes, name: str, max_pixels: int, wanted: Wanted) -> None:
    """Look at an image's header alone. Raises TooLarge, DatasetError for what is no image of a known format."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            height, width = image.height, image.width
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow has a limit of its own
        raise TooLarge(f"{name}: expected at most {max_pixels:,} pixels, got many more; cut it into parts") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{name}: not an image that can be read; expected one of {', '.join(FORMATS)}") from error
    except Exception as error:  # a decoder fed with broken bytes raises anything
        raise DatasetError(f"{name}: the image is damaged or cut short ({type(error).__name__})") from error
    if height * width > max_pixels:
        size = f"{height} x {width} (height x width)"
        raise TooLarge(f"{name}: expected at most {max_pixels:,} pixels, got {size}; cut it into parts")
    if wanted.tile is not None and height and width:
        grid = Grid.of(height, width, wanted.tile, wanted.overlap)
        if (tiles := len(grid.tops) * len(grid.lefts)) > MOST_TILES:
            raise TooLarge(f"{name}: expected at most {MOST_TILES} tiles, got {tiles}; take larger ones")
