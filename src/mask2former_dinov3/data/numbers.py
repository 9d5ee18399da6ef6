"""Parse numbers and ids as annotation files hold them: 12, 12.0 and "12" are the same number."""

from __future__ import annotations

import re
from numbers import Integral, Real

# Python's int() and float() also take spaces, underscores and digits of other scripts: those are typing errors here.
_WHOLE = re.compile(r"[+-]?\d{1,100}", re.ASCII)  # int() refuses thousands of digits
_EXACT = 2.0**53  # above it a float is not one whole number: two ids of a file may have become the same
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def whole_number(value: object) -> int | None:
    """Return an id, a size or a run length as an int; None if `value` is not a whole number. Booleans are not."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):  # NumPy's integers too
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    found = number(value)
    return int(found) if found is not None and found.is_integer() and abs(found) <= _EXACT else None


def identifier(value: object) -> int | None:
    """Return an id as an int; None if it is no whole number, or one of more than 64 bits."""
    found = value if type(value) is int else whole_number(value)
    return found if found is not None and -(2**63) <= found < 2**63 else None


def number(value: object) -> float | None:
    """Return `value` as a float, which may be NaN or infinite; None if it is not a number. Booleans are not."""
    if isinstance(value, str):
        return float(value) if _DECIMAL.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
