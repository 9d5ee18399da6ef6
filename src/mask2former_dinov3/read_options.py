"""How image files are read where the file leaves a choice: range of values, page, channels. Saved with the model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any

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


@dataclass(frozen=True, slots=True)
class ReadChanges:
    """What a caller asks for instead of the `ReadOptions` that are saved with a model; None: as saved.

    channels: also as text such as "3,2,1". Raises OptionError as `ReadOptions` does.
    """

    value_range: str | None = None
    page: int | None = None
    channels: tuple[int, ...] | str | None = None

    def __post_init__(self) -> None:
        if self.channels is not None:
            object.__setattr__(self, "channels", check_channels(self.channels))
        self.apply(ReadOptions())

    @property
    def given(self) -> dict[str, Any]:
        """The values that replace the saved ones, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def apply(self, saved: ReadOptions) -> ReadOptions:
        """The saved options with the values of this one."""
        return replace(saved, **self.given)

    def describe(self, saved: ReadOptions) -> str:
        """How the result differs from `saved`, in one line; empty if it does not."""
        before, after = asdict(saved), asdict(self.apply(saved))
        parts = [
            f"{name} {_as_text(value)} instead of {_as_text(before[name])}"
            for name, value in after.items()
            if value != before[name]
        ]
        return f"images are read otherwise than saved with the model: {', '.join(parts)}" if parts else ""


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


def _as_text(value: object) -> str:
    """A value as it is written in an option; None as what it stands for."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_count(value: object) -> bool:
    return type(value) is not bool and isinstance(value, Integral) and int(value) >= 1


AS_STORED = ReadOptions()
AS_SAVED = ReadChanges()
