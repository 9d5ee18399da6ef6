"""Masks as brushes of Label Studio: its own run-length code, a list of bytes, which keeps holes and separate parts.

The code is that of the npm package rle-pack, as `label_studio_converter.brush` writes and reads it: a stream of bits
with the number of values (32 bits), their size less one (5), four sizes of lengths less one (4 each); then, up to that
number, a bit (1: one value repeated, 0: values one by one), which size the length has (2), the length less one, and the
values.
The values are the bytes of an image (H, W, 4), row by row; the fourth, alpha, is the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...errors import DatasetError, mismatch
from ..rle import Window
from .mask_codes import runs_of_window

_SIZES = (3, 4, 8, 16)  # bits of a length, as the converter writes them
_CHANNELS = 4
_LARGEST = 2**32 // _CHANNELS - 1  # pixels whose values a head of 32 bits counts
_VALUES = ("00000000", "11111111")


def encode_brush(window: Window, height: int, width: int) -> list[int]:
    """The code of a mask in an image of height x width pixels: what the converter's `mask2rle` gives for 0 and 255.

    Raises DatasetError for an image of more than 2**30 - 1 pixels, which the code cannot hold.
    """
    if height * width > _LARGEST:
        raise DatasetError(f"brush: {mismatch(f'an image of at most {_LARGEST:,} pixels', f'{height * width:,}')}")
    runs = _CHANNELS * runs_of_window(window.transpose(), width, height)  # along rows
    bits = [f"{_CHANNELS * height * width:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for place, run in enumerate(runs.tolist()):
        value = _VALUES[place % 2]
        whole, rest = divmod(max(run - 1, 0), 2 ** _SIZES[-1])
        bits.append(f"111{2 ** _SIZES[-1] - 1:016b}{value}" * whole)
        if run:
            kind = next(kind for kind, size in enumerate(_SIZES) if rest < 2**size)
            bits.append(f"1{kind:02b}{rest:0{_SIZES[kind]}b}{value}")
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)  # the converter, too, adds a whole byte where none is needed
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(code: Sequence[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The mask (height, width), the pixels whose alpha is not 0. Raises DatasetError for a code that is not of it."""
    if len(code) < 8 or min(code) < 0 or max(code) > 255:
        raise DatasetError(f"rle: {mismatch('a list of at least 8 bytes, numbers from 0 to 255', 'other content')}")
    bits = _Bits(np.array(code, dtype=np.uint8))
    count, word = bits.read(32), bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in range(4)]
    if count != _CHANNELS * height * width:
        expected = f"{_CHANNELS} values for each of {height} x {width} pixels"
        raise DatasetError(f"rle: {mismatch(expected, f'{count} values')}")
    values: list[int] = []
    lengths: list[int] = []
    done = 0
    while done < count:
        repeated = bits.read(1)
        length = bits.read(sizes[bits.read(2)]) + 1
        done += length
        values.extend(bits.read(word) for _ in range(1 if repeated else length))
        lengths.extend([length] if repeated else [1] * length)
    flat = np.repeat(np.array(values) != 0, lengths)[:count]
    return flat.reshape(height, width, _CHANNELS)[:, :, 3]


class _Bits:
    """A stream of bits. Raises DatasetError where it ends too early."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self._text = (np.unpackbits(data) + ord("0")).tobytes()
        self._place = 0

    def read(self, size: int) -> int:
        """The number in the next `size` bits."""
        end = self._place + size
        if end > len(self._text):
            raise DatasetError(f"rle: {mismatch('a whole code', 'one that is cut short')}")
        found = int(self._text[self._place : end], 2)
        self._place = end
        return found
