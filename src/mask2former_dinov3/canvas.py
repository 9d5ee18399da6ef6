"""Sizes of the canvas: images are fitted into whole patches, and tensors are padded to the coarsest stride."""

from __future__ import annotations

from .errors import OptionError

PATCH_SIZE = 16  # of the DINOv3 ViTs: both sides of a canvas are multiples of it
LARGEST_SIDE = 65_536  # pixels: one row of patches more needs memory that no machine has, and OpenCV fails beyond int32
LARGEST_IMAGE_SIDE = 1_000_000  # pixels, of an image before it is fitted into the canvas
PADDING = 32  # the coarsest stride of the model: both sides of a tensor are multiples of it


def check_canvas(height: int, width: int, options: tuple[str, str] = ("image_height", "image_width")) -> None:
    """Raise OptionError, with the nearest valid sizes, unless both are multiples of 16 from 16 to 65,536.

    options: the names that the error gives to height and width.
    """
    for option, size in zip(options, (height, width), strict=True):
        check_side(option, size)


def check_side(option: str, size: int) -> None:
    """As `check_canvas`, for one side."""
    if size > LARGEST_SIDE:
        raise OptionError(option, f"at most {LARGEST_SIDE:,} pixels", size)
    if size < PATCH_SIZE or size % PATCH_SIZE:
        below = size // PATCH_SIZE * PATCH_SIZE
        nearest = f"{below} and {below + PATCH_SIZE} are" if below >= PATCH_SIZE else f"{PATCH_SIZE} is"
        raise OptionError(option, f"a multiple of {PATCH_SIZE}", size, f"{nearest} the nearest")


def padded_size(height: int, width: int) -> tuple[int, int]:
    """The tensor size (H, W) of a canvas: each side rounded up to a multiple of 32."""
    return -(-height // PADDING) * PADDING, -(-width // PADDING) * PADDING
