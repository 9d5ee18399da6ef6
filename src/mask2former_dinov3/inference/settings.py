"""What a caller asks of a model in use: checked once, carried through every verb that predicts."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from ..errors import OptionError

LARGEST_COUNT = 2**31 - 1  # COCO's evaluation counts in 32 bits
SMALLEST_TILE = 32  # pixels a side
LARGEST_OVERLAP = 0.5  # fraction of a tile; at half, a pixel would lie in three tiles of one row


@dataclass(frozen=True)
class InferenceSettings:
    """How a model is used.

    threshold: minimum score of a reported instance, 0 to 1. max_detections: maximum number of instances per image, or
    per tile where there are tiles. batch_size: images (or tiles) per forward pass. tile: side of a tile in pixels, None
    for whole images. overlap: fraction of a tile that it shares with each neighbour.

    Raises OptionError for a value that is not in its range; NaN is in none.
    """

    threshold: float = 0.5
    max_detections: int = 100
    batch_size: int = 1
    tile: int | None = None
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise OptionError("threshold", "a score from 0 to 1", self.threshold)
        for name, value in (("max_detections", self.max_detections), ("batch_size", self.batch_size)):
            if not _is_whole(value) or value < 1:
                raise OptionError(name, "a whole number above 0", value)
            if value > LARGEST_COUNT:
                raise OptionError(name, f"at most {LARGEST_COUNT:,}", value)
        if self.tile is not None and (not _is_whole(self.tile) or self.tile < SMALLEST_TILE):
            raise OptionError("tile", f"a whole number of pixels, at least {SMALLEST_TILE}", self.tile)
        if self.tile is not None and self.tile > LARGEST_COUNT:
            raise OptionError("tile", f"at most {LARGEST_COUNT:,} pixels", self.tile)
        if not 0 <= self.overlap < LARGEST_OVERLAP:
            raise OptionError("overlap", f"a fraction from 0 to below {LARGEST_OVERLAP}", self.overlap)


def _is_whole(value: object) -> bool:
    """Whether a value is an integer of Python or NumPy; callers without a type checker may give others."""
    return isinstance(value, Integral)


DEFAULTS = InferenceSettings()
