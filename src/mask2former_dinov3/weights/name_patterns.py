"""Patterns of tensor names: `#` stands for a number, `*` for weight or bias, `**` for any rest.

A row of a table is a pair of patterns with the same places; read from either side, it gives the name on the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def matched(pattern: str, key: str) -> re.Match[str] | None:
    """The places of a pattern in a name, None when it is another name."""
    places = {r"\#": r"(\d+)", r"\*\*": r"(.+)", r"\*": r"(weight|bias)"}
    regex = re.escape(pattern)
    for mark, place in places.items():
        regex = regex.replace(mark, place)
    return re.fullmatch(regex, key)


def renamed(key: str, rows: Iterable[tuple[str, str]]) -> str | None:
    """The name on the other side of the first row (pattern, replacement) that matches, None when none does."""
    for pattern, replacement in rows:
        found = matched(pattern, key)
        if found is not None:
            places = found.groups()
            parts = re.split(r"#|\*\*|\*", replacement)
            return "".join(f"{part}{place}" for part, place in zip(parts, (*places, ""), strict=True))
    return None
