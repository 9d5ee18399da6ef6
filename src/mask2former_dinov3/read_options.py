"""How image files are read where the file leaves a choice: range of values, page, channels. Saved with the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

from .errors import OptionError

FULL, PERCENTILE = "full", "percentile"
PERCENTILES = (0.1, 99.9)  # of all values of an image; "percentile" maps these two to 0 and 255


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What of an image file becomes grey or RGB of 8 bits; the table is in `data.images`.

    value_range: which values become 0 and 255, in files of more than 8 bits per channel: "full" (the range of the
    type), "percentile" (of each image, 0.1 and 99.9 percent of all its values), or "LOW,HIGH". page: the page or frame
    that is read, from 1. channels: one channel, read as grey, or three, read as red, green and blue, counted from 1;
    None: all of a grey or RGB image, and the first of a file that stores its channels as pages.

    Raises OptionError for any other value.
    """

    value_range: str = FULL
    page: int = 1
    channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.value_range not in (FULL, PERCENTILE):
            _parse_limits(self.value_range)
        if not _is_count(self.page):
            raise OptionError("page", "a whole number from 1", self.page)
        if self.channels is not None:
            object.__setattr__(self, "channels", check_channels(self.channels))

    @property
    def limits(self) -> tuple[float, float] | None:
        """LOW and HIGH; None for "full" and "percentile"."""
        return None if self.value_range in (FULL, PERCENTILE) else _parse_limits(self.value_range)


def check_channels(value: object) -> tuple[int, ...]:
    """Channels as a tuple of one or three numbers from 1; given as a list, or as text such as "2" or "3,2,1".

    Raises OptionError for anything else.
    """
    expected = "one channel (read as grey) or three (read as red, green, blue), counted from 1, such as 2 or 3,2,1"
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    numbers = [part.strip() if isinstance(part, str) else part for part in parts]
    if len(numbers) not in (1, 3) or not all(
        number.isdecimal() and int(number) >= 1 if isinstance(number, str) else _is_count(number) for number in numbers
    ):
        raise OptionError("channels", expected, value)
    return tuple(int(str(number)) for number in numbers)


def _parse_limits(value: object) -> tuple[float, float]:
    """LOW and HIGH of the text "LOW,HIGH". Raises OptionError."""
    expected = '"full", "percentile" or "LOW,HIGH" with LOW below HIGH, such as "0,4095"'
    try:
        low, high = map(float, str(value).split(","))
    except ValueError:
        raise OptionError("value_range", expected, value) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise OptionError("value_range", expected, value)
    return low, high


def _is_count(value: object) -> bool:
    return type(value) is not bool and isinstance(value, Integral) and int(value) >= 1


AS_STORED = ReadOptions()
