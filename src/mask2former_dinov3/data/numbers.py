"""Numbers and ids as annotation files write them."""

from __future__ import annotations

from numbers import Integral


def whole_number(value: object) -> int | None:
    """An id or size as an int, also where a tool wrote it as "12" or 12.0; None when it is no whole number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):  # NumPy's too, in what a program hands over
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = number(value)  # "12.0"
    return int(value) if isinstance(value, float) and value.is_integer() else None


def number(value: object) -> float | None:
    """A value as a float, also where a tool wrote it as a string; None when it is none. May be NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
