"""Label Studio's run-length code against what its converter writes and reads (label_studio_converter 0.0.59)."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mask2former_dinov3.data.formats.brushes import decode_brush, encode_brush
from mask2former_dinov3.data.rle import Window
from mask2former_dinov3.errors import DatasetError

RING = np.zeros((6, 9), dtype=bool)  # with a hole, a second part, and a third that begins at the first pixel
RING[1:5, 1:5], RING[2:4, 2:4], RING[4:, 7:], RING[0, 0] = True, False, True, True
FAR = np.zeros((300, 400), dtype=bool)  # runs of more than 2**16 values
FAR[250, 399] = True
# brush.mask2rle(255 * mask.astype(np.uint8))
CODES = {
    "ring": (
        RING,
        [
            *(0, 0, 0, 216, 57, 27, 252, 127, 248, 140, 2, 255, 254, 19, 0, 143, 254, 112, 8, 255, 240, 152, 4, 127),
            *(243, 128, 71, 255, 132, 192, 47, 255, 206, 1, 63, 254, 27, 0, 159, 252),
        ],
    ),
    "far": (
        FAR,
        [
            *(0, 7, 83, 0, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 255, 255, 128, 127, 255, 240, 15),
            *(255, 254, 1, 200, 46, 192, 35, 255, 255, 255, 224, 28, 200, 252, 0),
        ],
    ),
}


def window_of(mask: NDArray[np.bool_]) -> Window:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Window(part.astype(np.uint8), int(rows[0]), int(columns[0]))


@pytest.mark.parametrize("name", CODES)
def test_encode_brush__writes_the_bytes_of_the_converter(name: str) -> None:
    mask, code = CODES[name]
    assert encode_brush(window_of(mask), *mask.shape) == code
    np.testing.assert_array_equal(decode_brush(code, *mask.shape), mask)


def test_decode_brush__reads_values_one_by_one_and_takes_any_alpha() -> None:
    """As a browser writes them, with soft edges: lengths of four sizes, other sizes than the converter's."""
    alpha = np.arange(12).reshape(3, 4) % 3 * 60
    values = np.repeat(alpha.ravel(), 4)
    bits = f"{values.size:032b}{7:05b}{1:04b}{2:04b}{5:04b}{11:04b}" + f"010{values.size - 1:06b}"
    bits += "".join(f"{value:08b}" for value in values.tolist())
    bits += "0" * (-len(bits) % 8)
    code = [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
    np.testing.assert_array_equal(decode_brush(code, 3, 4), alpha > 0)


def test_brushes__equal_the_converter_on_random_masks() -> None:
    converter = pytest.importorskip("label_studio_converter.brush")
    for seed in range(40):
        rng = np.random.default_rng(seed)
        mask = np.kron(rng.random(rng.integers(2, 9, 2)) < 0.5, np.ones((seed % 4 + 1, 7))).astype(bool)
        mask[-1, -1] = True
        code = encode_brush(window_of(mask), *mask.shape)
        assert code == converter.mask2rle(255 * mask.astype(np.uint8))
        read = converter.decode_rle(code).reshape(*mask.shape, 4)[:, :, 3]
        np.testing.assert_array_equal(read, 255 * mask)
        np.testing.assert_array_equal(decode_brush(code, *mask.shape), mask)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (CODES["ring"][1][:20], "rle: expected a whole code, got one that is cut short"),
        ([0, 0, 0, 1, *CODES["ring"][1][4:]], "rle: expected 4 values for each of 6 x 9 pixels, got 1 values"),
        (
            [*CODES["ring"][1], 256],
            "rle: expected a list of at least 8 bytes, numbers from 0 to 255, got other content",
        ),
        ([*CODES["ring"][1], 10**30], "rle: expected a list of at least 8 bytes, numbers from 0 to 255"),
        ([], "rle: expected a list of at least 8 bytes, numbers from 0 to 255, got other content"),
    ],
)
def test_decode_brush__says_what_is_wrong(code: list[int], told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        decode_brush(code, 6, 9)


def test_encode_brush__refuses_an_image_that_the_code_cannot_hold() -> None:
    with pytest.raises(DatasetError, match="brush: expected an image of at most 1,073,741,823 pixels"):
        encode_brush(window_of(RING), 2**15, 2**15)
