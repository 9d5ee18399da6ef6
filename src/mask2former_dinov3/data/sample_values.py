"""Values of any type to channels of 8 bits: the one rule of both decoders (Pillow for whole files, GDAL for parts)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, mismatch
from ..read_options import FULL, PERCENTILE, PERCENTILES, ReadOptions

Values = npt.NDArray[Any]
"""(h, w, c) numbers of the file's own type."""

SIXTEEN_BITS = 65535


@dataclass(frozen=True, slots=True)
class SampleType:
    """What the numbers of a file mean. bits: significant bits of a sample. inverted: 0 is white, as in some grey TIFFs.

    limits: the values of the whole image that become 0 and 255, where the options ask for percentiles: those of all
    channels, or one pair per channel where they are no colours (see `limits_per_channel`).
    """

    bits: int = 8
    inverted: bool = False
    limits: tuple[tuple[float, float], ...] | None = None


def to_eight_bits(values: Values, kind: SampleType, options: ReadOptions) -> npt.NDArray[np.uint8]:
    """Values (h, w, c) of any type with 8 bits: of grey (c = 1) RGB, (h, w, 3); of others (h, w, c) uint8.

    Up to 8 bits: the type's range becomes 0..255, whatever `options` say. More bits, with "full": grey is scaled from
    the type's range (of types wider than 16 bits: 0..65535) and rounded, colours keep their 8 highest bits; otherwise
    the values between the two limits are scaled and rounded, values beyond them become 0 or 255, and so does infinity;
    NaN becomes 0. With c other than 1 and 3 each channel is scaled as grey is, and has percentiles of its own. A second
    file (`grey_as_rgb` False) keeps its one channel.

    Raises DatasetError, with "full", for values outside the range and for floating point, which has none.
    """
    count = values.shape[2]
    if not limits_per_channel(count):
        result = _to_bytes(values, kind, options)
        repeated = count == 1 and options.grey_as_rgb
        return np.repeat(result, 3, axis=2) if repeated else np.ascontiguousarray(result)
    result = np.empty(values.shape, np.uint8)
    for channel in range(count):
        limits = kind.limits if kind.limits is None else kind.limits[channel : channel + 1]
        own = replace(kind, limits=limits)
        result[:, :, channel : channel + 1] = _to_bytes(values[:, :, channel : channel + 1], own, options)
    return result


def limits_per_channel(count: int) -> bool:
    """Whether each of so many channels has limits of its own: they are neither grey nor colours."""
    return count not in (1, 3)


def _to_bytes(values: Values, kind: SampleType, options: ReadOptions) -> npt.NDArray[np.uint8]:
    """Grey values (h, w, 1) or colours (h, w, 3) with 8 bits, of the same shape."""
    if values.dtype.kind != "f" and values.dtype.itemsize <= 2 and not (values.dtype == np.uint8 and kind.bits == 8):
        table = np.arange(2 ** (8 * values.dtype.itemsize), dtype=np.int64).astype(values.dtype.newbyteorder("="))
        check_full_range(values, kind, options)
        table_of_bytes = _scale(table, kind, options, _limits_of(values, kind, options), values.shape[2])
        index = values.view(np.dtype(f"u{values.dtype.itemsize}").newbyteorder(values.dtype.byteorder))
        result: npt.NDArray[np.uint8] = table_of_bytes[index]
    elif values.dtype == np.uint8:
        result = values
    else:
        check_full_range(values, kind, options)
        result = _scale(values, kind, options, _limits_of(values, kind, options), values.shape[2])
    return 255 - result if kind.inverted else result


def check_full_range(values: Values, kind: SampleType, options: ReadOptions) -> None:
    """Raise DatasetError where "full" has no meaning for these values."""
    if _has_range(values, kind) and options.value_range != FULL:
        return
    advice = 'set value_range to "LOW,HIGH" or "percentile", or save the image with 8 or 16 bits per channel'
    if values.dtype.kind == "f":
        low, high = finite_range(values)
        got = f"floating point values ({low:g}..{high:g}), which have no agreed range"
        raise DatasetError(mismatch("grey or colour values of 8 or 16 bits", got, advice))
    top = 2 ** min(kind.bits, 16) - 1
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high > top:
        sign = "signed" if values.dtype.kind == "i" else "unsigned"
        got = f"{low}..{high} in an image of {8 * values.dtype.itemsize}-bit {sign} integers"
        raise DatasetError(mismatch(f"values in 0..{top}", got, advice))


def finite_range(values: Values) -> tuple[float, float]:
    """Lowest and highest value, leaving out NaN and infinity; (0, 0) where there is none."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def percentile_limits(values: Values) -> tuple[float, float]:
    """The two percentiles of all finite values, (h, w, c): the values at these ranks, not interpolated."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return float(low), float(high)


def histogram_limits(counts: npt.NDArray[np.int64], first: int) -> tuple[float, float]:
    """As `percentile_limits`, from the number of pixels with each value; `counts[0]` counts the value `first`."""
    total, below = int(counts.sum()), np.cumsum(counts)
    ranks = [max(int(np.ceil(share / 100 * total)), 1) for share in PERCENTILES]
    low, high = (first + int(np.searchsorted(below, rank)) for rank in ranks)
    return float(low), float(high)


def _has_range(values: Values, kind: SampleType) -> bool:
    """Whether the option `value_range` applies: unsigned values of up to 8 bits use their whole range."""
    return kind.bits > 8 or values.dtype.kind != "u"


def _limits_of(values: Values, kind: SampleType, options: ReadOptions) -> tuple[float, float] | None:
    """The values that become 0 and 255; None: the range of the type."""
    if not _has_range(values, kind) or options.value_range == FULL:
        return None
    if options.value_range == PERCENTILE:
        return kind.limits[0] if kind.limits else percentile_limits(values)
    return options.limits


def _scale(
    values: Values, kind: SampleType, options: ReadOptions, limits: tuple[float, float] | None, channels: int
) -> npt.NDArray[np.uint8]:
    """Values as bytes; what is outside the range of the type (of a table that is not used) is clipped."""
    if limits is not None:
        low, high = limits
        if high <= low:  # an image of one value
            return np.where(values > low, 255, 0).astype(np.uint8)
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (values.astype(np.float64) - low) * (255 / (high - low))
        rounded: npt.NDArray[np.float64] = np.floor(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255) + 0.5)
        return rounded.astype(np.uint8)
    bits = min(kind.bits, 16)
    top = 2**bits - 1
    wide = np.clip(values, 0, top).astype(np.uint32)
    if channels > 1 and bits > 8:
        return (wide >> (bits - 8)).astype(np.uint8)  # as Pillow reads colours of 16 bits
    scaled_up: npt.NDArray[np.uint32] = (wide * 255 + top // 2) // top
    return scaled_up.astype(np.uint8)
