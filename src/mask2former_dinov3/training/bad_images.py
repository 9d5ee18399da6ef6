"""How many images of a split may be unreadable before a run ends."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import DatasetError, mismatch


def bad_images_allowed(fraction: float, count: int) -> int:
    """How many of `count` images a run may go on without: the fraction `max_bad_images`, rounded up, but not all."""
    return min(math.ceil(fraction * count), count - 1)


def too_many_unreadable(split: str, reasons: Iterable[str], allowed: int, count: int) -> DatasetError:
    """The error for more unreadable images than `max_bad_images` allows."""
    lines = [f"\n  {reason}" for reason in reasons]
    expected = f"at most {allowed} of {count} images that cannot be read (max_bad_images)"
    advice = "repair or remove them, or raise --max-bad-images"
    return DatasetError(f"{split}: {mismatch(expected, len(lines), advice)}:{''.join(lines)}")
