"""What a corrected copy of an annotation file changed and what it left, by kind."""

from __future__ import annotations

from dataclasses import dataclass, field

from .faults import Place, Severity, count_of

_SHOWN_IDS = 5


@dataclass(slots=True)
class FixLog:
    """Changes and faults that were left, of one file. A kind is a short sentence in lower case; a place has its ids."""

    changed: dict[str, list[Place]] = field(default_factory=dict)
    left: dict[str, list[Place]] = field(default_factory=dict)
    new_ids: dict[int, tuple[Place, int]] = field(default_factory=dict)  # position in the file -> old place, new id

    def change(self, kind: str, image_id: int | None, annotation_id: int | None = None) -> None:
        """Note that something was changed at a place."""
        self.changed.setdefault(kind, []).append((image_id, annotation_id))

    def leave(self, kind: str, image_id: int | None, annotation_id: int | None = None) -> None:
        """Note a fault that was left as it is, because its right value is not certain."""
        self.left.setdefault(kind, []).append((image_id, annotation_id))

    def lines(self) -> list[str]:
        """The log for people: a line per kind with its count and first ids."""
        lines = [f"  changed: {kind}: {_count(places)}" for kind, places in self.changed.items()]
        lines += [f"  not changed: {kind}: {_count(places)}" for kind, places in self.left.items()]
        return lines or ["  nothing to change"]

    def to_json(self) -> dict[str, object]:
        """The log as a JSON object, with all ids."""
        return {
            "changed": [_kind_to_json(*pair) for pair in self.changed.items()],
            "not_changed": [_kind_to_json(*pair) for pair in self.left.items()],
            "new_annotation_ids": [
                {"position": position, "image_id": image, "old": old, "new": new}
                for position, ((image, old), new) in self.new_ids.items()
            ],
        }


@dataclass(frozen=True, slots=True)
class LeftFault:
    """A fault that `check_data` finds in the corrected copy."""

    split: str
    severity: Severity
    text: str


def _kind_to_json(kind: str, places: list[Place]) -> dict[str, object]:
    shown = [{"image_id": image, "annotation_id": annotation} for image, annotation in places]
    return {"kind": kind, "count": len(places), "places": shown}


def _count(places: list[Place]) -> str:
    """The number of places and the first ids, in words."""
    annotations = [annotation for _, annotation in places if annotation is not None]
    noun, ids = ("annotation", annotations) if annotations else ("image", [one for one, _ in places if one is not None])
    if not ids:
        return count_of(len(places), "entry", "entries")
    more = ", …" if len(ids) > _SHOWN_IDS else ""
    return f"{count_of(len(places), noun)} (ids {', '.join(map(str, ids[:_SHOWN_IDS]))}{more})"
