"""Sizes of the canvas: which are refused, in which words, and what tensors become of them."""

from __future__ import annotations

import pickle

import pytest

from mask2former_dinov3.canvas import check_canvas, padded_size
from mask2former_dinov3.errors import OptionError


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1000, 1024), "image_height: expected a multiple of 16, got 1000; 992 and 1008 are the nearest"),
        ((1024, 8), "image_width: expected a multiple of 16, got 8; 16 is the nearest"),
        ((0, 16), "image_height: expected a multiple of 16, got 0; 16 is the nearest"),
        ((16, 65_552), "image_width: expected at most 65,536 pixels, got 65552"),
        ((-16, 16), "image_height: expected a multiple of 16, got -16; 16 is the nearest"),
    ],
)
def test_check_canvas__names_the_side_and_the_nearest_sizes(size: tuple[int, int], message: str) -> None:
    with pytest.raises(OptionError) as error:
        check_canvas(*size)
    assert str(error.value) == message
    assert str(pickle.loads(pickle.dumps(error.value))) == message


def test_check_canvas__takes_the_callers_names() -> None:
    with pytest.raises(OptionError, match=r"^size: expected a multiple of 16, got 8"):
        check_canvas(16, 8, options=("size", "size"))


def test_padded_size__rounds_up_to_the_stride() -> None:
    check_canvas(48, 64)
    check_canvas(65_536, 16)
    assert padded_size(48, 64) == (64, 64)
