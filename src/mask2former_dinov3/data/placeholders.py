"""Leave out categories that an exporter writes and nobody annotates: its project, or a second one of a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping

from ..errors import mismatch
from .faults import FaultReport, quote
from .numbers import identifier


def used_categories(annotations: Iterable[object]) -> set[int]:
    """The ids of the categories that have annotations."""
    ids = (identifier(entry.get("category_id")) for entry in annotations if isinstance(entry, Mapping))
    return {one for one in ids if one is not None}


def project_category(entries: Iterable[object]) -> int | None:
    """The id of the category that is only the name of an exporter's project: 0, the only one under "none"."""
    above = {identifier(entry.get("id")): entry.get("supercategory") for entry in entries if isinstance(entry, Mapping)}
    others = [name for number, name in above.items() if number != 0]
    return 0 if above.get(0) == "none" and others and "none" not in others else None


def drop_placeholders(found: dict[int, str], used: Container[int], faults: FaultReport, project: int | None) -> None:
    """Take out categories without instances that have another's name or are a project's; other shared names are errors.

    found: id -> name. used: ids of the categories that have annotations. project: see `project_category`.

    Roboflow writes its project as category 0, sometimes under the name of the one real class.
    """
    if project in found and project not in used:
        name = found.pop(project)
        faults.add_note(
            f"category {project} {quote(name)}: left out, the name of an exporter's project, without instances",
            "unused category",
        )
    names = Counter(found.values())
    if all(count == 1 for count in names.values()):
        return
    for category_id, name in list(found.items()):
        if names[name] > 1 and category_id not in used:
            names[name] -= 1
            del found[category_id]
            both = f"category {category_id} {quote(name)}"
            faults.add_note(f"{both}: left out, a name of two categories and no instances", "unused category")
    for name, count in names.items():
        if count > 1:
            got = f"{count} called {quote(name)}"
            reason = f"categories: {mismatch('a name of its own for each', got, 'rename or merge them')}"
            faults.add_error(reason, kind="category name")
