"""Rename tensors by patterns: `#` matches a number, `*` weight or bias, `**` any rest.

A row of a table is a pair of patterns with the same placeholders. Read from either side, it gives the other name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def match_name(pattern: str, name: str) -> re.Match[str] | None:
    """Match a tensor's name with a pattern; the groups are what its placeholders stand for."""
    placeholders = {r"\#": r"(\d+)", r"\*\*": r"(.+)", r"\*": r"(weight|bias)"}
    regex = re.escape(pattern)
    for mark, group in placeholders.items():
        regex = regex.replace(mark, group)
    return re.fullmatch(regex, name)


def rename(name: str, rows: Iterable[tuple[str, str]]) -> str | None:
    """The name by the first row (pattern, replacement) whose pattern matches, None if none does."""
    for pattern, replacement in rows:
        found = match_name(pattern, name)
        if found is not None:
            parts = re.split(r"#|\*\*|\*", replacement)
            return "".join(f"{part}{group}" for part, group in zip(parts, (*found.groups(), ""), strict=True))
    return None
