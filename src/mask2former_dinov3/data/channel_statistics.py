"""Mean and standard deviation of every channel, measured on images of a split: what the model's input is scaled by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..read_options import ALL, ReadOptions
from .coco import ImageRecord
from .image_faults import sample_numbers
from .images import check_channel_count, read_header, read_image

MEASURED = 64
"""Images that are measured, evenly spread over the split; the same in every run."""


class ChannelStatistics(NamedTuple):
    """mean, std: C numbers each, of values in 0..1; of a constant channel std is 1. images: how many were measured.

    constant: numbers, from 1, of the channels that have one value.
    """

    mean: list[float]
    std: list[float]
    images: int
    constant: list[int]


def measure_channels(images: Sequence[ImageRecord], options: ReadOptions) -> ChannelStatistics:
    """Mean and std of the channels, from the counts of all values of `MEASURED` images: exact, in any order.

    Every pixel counts the same. Raises DatasetError for an image that cannot be read, and for one with another number
    of channels than the first.
    """
    numbers = sorted(sample_numbers(len(images), MEASURED))
    counts: list[np.ndarray] = []
    for number in numbers:
        record = images[number]
        pixels = read_image(record.path, options)
        found = [np.bincount(pixels[:, :, channel].ravel(), minlength=256) for channel in range(pixels.shape[2])]
        check_channel_count(str(record.path), len(counts or found), len(found))
        counts = [one + other for one, other in zip(counts, found, strict=True)] if counts else found
    values = np.arange(256) / 255
    table = np.array(counts, np.float64)  # (C, 256)
    shares = table / table.sum(1, keepdims=True)
    mean = shares @ values
    std = np.sqrt(np.maximum((shares * (values - mean[:, None]) ** 2).sum(1), 0))
    constant = [channel + 1 for channel in np.flatnonzero((table > 0).sum(1) < 2).tolist()]
    std[[channel - 1 for channel in constant]] = 1
    return ChannelStatistics(mean.tolist(), std.tolist(), len(numbers), constant)


def count_channels_of(images: Sequence[ImageRecord], options: ReadOptions) -> tuple[int, int]:
    """(channels, those of the second file among them) of the images of a split, by the header of the first.

    No file is opened where the options decide. Raises as `read_header`.
    """
    if options.extra_images is None and options.channels != ALL:
        count = len(options.numbers or ())
        return (count if count > 1 else 3), 0
    if not len(images):
        return 3, 0
    header = read_header(images[0].path, options)
    return header.channels, header.extra_channels
