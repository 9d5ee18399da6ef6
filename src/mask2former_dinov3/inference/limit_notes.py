"""Sentences on what is not among the instances: beyond a limit, dropped as copies, or below the threshold."""

from __future__ import annotations

from dataclasses import dataclass

from ..instances import Unreported


@dataclass
class LimitNotes:
    """Counts of `Unreported` over images, and the lines that say so. limited, filled, copied: numbers of images."""

    limited: int = 0
    limit: int = 0
    filled: int = 0
    full: int = 0
    copied: int = 0
    copies: int = 0

    def add(self, left_out: Unreported) -> None:
        """Count one image."""
        self.limited += left_out.limit > 0
        self.limit += left_out.limit
        self.filled += left_out.full > 0
        self.full += left_out.full
        self.copied += left_out.copies > 0
        self.copies += left_out.copies

    def lines(self, max_detections: int, *, tiles: bool = False) -> list[str]:
        """One line for each kind that there is; none if nothing is left out. max_detections: in use."""
        lines = []
        if self.limit:
            per = "tile" if tiles else "image"
            lines.append(
                f"max_detections: {_count(self.limit, 'instance')} above the threshold left out in "
                f"{_count(self.limited, 'image')}, beyond {max_detections} per {per}; raise it to keep them"
            )
        if self.full:
            where = f"{_count(self.full, 'tile')} of {_count(self.filled, 'image')}" if tiles else ""
            lines.append(
                f"queries: all queries of the model are instances in {where or _count(self.filled, 'image')}; there "
                f"may be more objects: use {'smaller ' if tiles else ''}tiles, or train with more num_queries"
            )
        if self.copies:
            lines.append(
                f"copy_overlap: {_count(self.copies, 'instance')} in {_count(self.copied, 'image')} dropped as copies "
                f"of better ones"
            )
        return lines


def limit_lines(left_out: Unreported, max_detections: int, *, tiles: bool = False) -> list[str]:
    """The lines of `LimitNotes` for one image."""
    notes = LimitNotes()
    notes.add(left_out)
    return notes.lines(max_detections, tiles=tiles)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
