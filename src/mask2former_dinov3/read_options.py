"""How images are read and scaled where there is a choice: values, page, channels, scale. Saved with the model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any, TypeAlias

from .errors import OptionError

FULL, PERCENTILE = "full", "percentile"
ALL = "all"
FIT, NATIVE = "fit", "native"
LARGEST_SCALE = 16.0
ImageScale: TypeAlias = str | float
"""FIT, NATIVE, or pixels of the network per pixel of the image."""
LARGEST_CHANNEL = 2**16  # a TIFF has no more samples
MOST_CHANNELS = 512  # of a file or a model; OpenCV's arrays have no more
PERCENTILES = (0.1, 99.9)  # of all values of an image; "percentile" maps these two to 0 and 255


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What of an image file becomes channels of 8 bits; the table is in `data.images`.

    value_range: which values become 0 and 255, in files of more than 8 bits per channel: "full" (the range of the
    type), "percentile" (of each image, 0.1 and 99.9 percent of all its values; with other than one or three channels,
    of each channel), or "LOW,HIGH". page: the page or frame that is read, from 1. channels: one channel, read as grey,
    three, read as red, green and blue, or another number of them, counted from 1; "all": all but alpha; None: a grey
    or RGB image, and the first of a file that stores its channels as pages. extra_images: where the second file of each
    image is, whose channels follow the image's own; see `data.extra_files`. grey_as_rgb: a single channel is repeated
    three times, as networks for RGB take it; False only for second files. image_scale: "fit": every image is fitted
    into the canvas; "native": every image keeps its own scale, and the canvas shows a part of a larger one; a number:
    as "native", enlarged by this factor.

    Raises OptionError for any other value.
    """

    value_range: str = FULL
    page: int = 1
    channels: tuple[int, ...] | str | None = None
    extra_images: str | None = None
    grey_as_rgb: bool = True
    image_scale: ImageScale = FIT

    def __post_init__(self) -> None:
        if self.value_range not in (FULL, PERCENTILE):
            _parse_limits(self.value_range)
        if not _is_count(self.page):
            raise OptionError("page", "a whole number from 1", self.page)
        if self.channels is not None:
            object.__setattr__(self, "channels", check_channels(self.channels))
        object.__setattr__(self, "image_scale", check_image_scale(self.image_scale))
        if self.extra_images is not None and not (isinstance(self.extra_images, str) and self.extra_images.strip()):
            raise OptionError("extra_images", "a folder, or a pattern such as {folder}/../depth/{stem}.png", "none")

    @property
    def factor(self) -> float | None:
        """Pixels of the network per pixel of the image; None for "fit", where they depend on the image."""
        return scale_factor(self.image_scale)

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The channels that are named by their numbers; None where none is."""
        return self.channels if isinstance(self.channels, tuple) else None

    @property
    def of_extra(self) -> ReadOptions:
        """How the second file of an image is read: all its channels, by the same range of values."""
        return ReadOptions(self.value_range, channels=ALL, grey_as_rgb=False)

    @property
    def of_image(self) -> ReadOptions:
        """How the image itself is read, without its second file."""
        return replace(self, extra_images=None)

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
    extra_images: str | None = None
    image_scale: ImageScale | None = None

    def __post_init__(self) -> None:
        if self.channels is not None:
            object.__setattr__(self, "channels", check_channels(self.channels))
        if self.image_scale is not None:
            object.__setattr__(self, "image_scale", check_image_scale(self.image_scale))
        self.apply(ReadOptions())

    @property
    def given(self) -> dict[str, Any]:
        """The values that replace the saved ones, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def apply(self, saved: ReadOptions) -> ReadOptions:
        """The saved options with the values of this one."""
        return replace(saved, **self.given)

    def describe(self, saved: ReadOptions) -> str:
        """How the result differs from `saved`, in one line; empty if it does not.

        extra_images is not saved with a model, so that it differs from nothing.
        """
        before, after = asdict(saved.of_image), asdict(self.apply(saved).of_image)
        parts = [
            f"{name} {_as_text(value)} instead of {_as_text(before[name])}"
            for name, value in after.items()
            if value != before[name]
        ]
        return f"images are read otherwise than saved with the model: {', '.join(parts)}" if parts else ""


def check_image_scale(value: object) -> ImageScale:
    """FIT, NATIVE (also for 1), or a factor; given as a word, a number, or text such as "2.0". Raises OptionError."""
    expected = f'"fit", "native", or a factor above 0, at most {LARGEST_SCALE:g}, such as 2.0'
    if isinstance(value, str) and value.strip().lower() in (FIT, NATIVE):
        return value.strip().lower()
    try:
        factor = float(value) if type(value) is not bool and isinstance(value, str | Real) else math.nan
    except ValueError:
        factor = math.nan
    if not 0 < factor <= LARGEST_SCALE:
        raise OptionError("image_scale", expected, value)
    return NATIVE if factor == 1 else factor


def scale_factor(image_scale: ImageScale) -> float | None:
    """The factor of a checked `image_scale`; None for "fit"."""
    if isinstance(image_scale, str):
        return None if image_scale == FIT else 1.0
    return image_scale


def check_channels(value: object) -> tuple[int, ...] | str:
    """ "all", or channels as a tuple of numbers from 1; given as a list, or as text such as "2" or "3,2,1".

    Raises OptionError for anything else.
    """
    expected = 'one channel (read as grey), three (red, green, blue) or more, from 1, such as 2 or 3,2,1, or "all"'
    if isinstance(value, str) and value.strip().lower() == ALL:
        return ALL
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    numbers = [part.strip() if isinstance(part, str) else part for part in parts]
    if not 1 <= len(numbers) <= MOST_CHANNELS or not all(
        number.isdecimal() and 1 <= int(number) <= LARGEST_CHANNEL if isinstance(number, str) else _is_count(number)
        for number in numbers
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


def as_channels(stored: object) -> tuple[int, ...] | str | None:
    """`ReadOptions.channels` from what JSON stores: numbers, "all", or null. Raises OptionError for anything else."""
    return None if stored is None else check_channels(stored)


def _as_text(value: object) -> str:
    """A value as it is written in an option; None as what it stands for."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_count(value: object) -> bool:
    return type(value) is not bool and isinstance(value, Integral) and int(value) >= 1


AS_STORED = ReadOptions()
AS_SAVED = ReadChanges()
