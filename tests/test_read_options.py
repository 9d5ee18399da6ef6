"""How image files are read: values that mean something, and a message for the others."""

from __future__ import annotations

from typing import Any

import pytest

from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.read_options import ReadOptions, check_channels


@pytest.mark.parametrize(
    ("text", "limits"), [("full", None), ("percentile", None), ("0,4095", (0, 4095)), ("-9.5,1e3", (-9.5, 1000))]
)
def test_value_range__is_a_word_or_two_limits(text: str, limits: tuple[float, float] | None) -> None:
    assert ReadOptions(text).limits == limits


@pytest.mark.parametrize("text", ["", "auto", "0", "5,5", "9,3", "0,nan", "0,inf", "1,2,3", "a,b"])
def test_value_range__refuses_other_text(text: str) -> None:
    with pytest.raises(OptionError, match='value_range: expected "full", "percentile" or "LOW,HIGH"'):
        ReadOptions(text)


@pytest.mark.parametrize(
    ("given", "channels"),
    [
        ("2", (2,)),
        ("3, 2,1", (3, 2, 1)),
        ([1, 1, 4], (1, 1, 4)),
        (5, (5,)),
        ("1,2", (1, 2)),
        ([9, 1, 2, 3], (9, 1, 2, 3)),
        (" ALL", "all"),
    ],
)
def test_channels__are_numbers_or_all(given: Any, channels: tuple[int, ...] | str) -> None:
    assert check_channels(given) == channels
    assert ReadOptions(channels=given).numbers == (None if channels == "all" else channels)


@pytest.mark.parametrize("given", ["", "0", "1,,2", [1.5], [True], None, "a", "1,all", [], [1] * 513, "99999"])
def test_channels__refuse_others(given: Any) -> None:
    with pytest.raises(OptionError, match=r'channels: expected one channel .* or more, .* or "all"'):
        check_channels(given)


@pytest.mark.parametrize("given", ["", "  ", 5])
def test_extra_images__are_a_folder_or_a_pattern(given: Any) -> None:
    with pytest.raises(OptionError, match="extra_images: expected a folder, or a pattern"):
        ReadOptions(extra_images=given)


@pytest.mark.parametrize("page", [0, -1, True, 1.0])
def test_page__counts_from_one(page: Any) -> None:
    with pytest.raises(OptionError, match="page: expected a whole number from 1"):
        ReadOptions(page=page)
