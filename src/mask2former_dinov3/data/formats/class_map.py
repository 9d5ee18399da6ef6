"""Keep, drop, merge and rename classes by name, in what was read of a split: the option `classes`.

A map has old names as keys and new names as values; null leaves a class out, with its objects: nothing of them remains,
so they are background, in training and in evaluation. Two classes with one new name become one. A class that is no key
keeps its name, unless the key `*` says what happens to all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from ...errors import mismatch, suggest
from ..faults import FaultReport, count_of, quote
from ..numbers import whole_number

ALL_OTHERS = "*"

ClassMap = Mapping[str, str | None]


def map_classes(content: Mapping[str, object], classes: ClassMap, split: str, report: FaultReport) -> dict[str, object]:
    """The content of a split with its classes mapped, and a note on what became of how many objects.

    A merged class has the smallest of the ids. Entries that are malformed stay, for the parser to report. A name that
    the file does not have is an error, in `valid` and `test` a note: they may lack a class.
    """
    categories, annotations = content.get("categories"), content.get("annotations")
    if not isinstance(categories, list) or not isinstance(annotations, list):
        return dict(content)
    names = _names_by_id(categories)
    _check_names(classes, list(names.values()), split, report)
    targets = {number: _target(name, classes) for number, name in names.items()}
    first: dict[str, int] = {}  # new name -> id
    for number in sorted(number for number in targets if number is not None):
        target = targets[number]
        if target is not None:
            first.setdefault(target, number)
    if not first:
        got = "a map that leaves out all of them"
        report.add_error(f"classes: {mismatch('at least one class to keep', got)}", kind="no class kept")
    counts: Counter[int | None] = Counter()
    kept = [_map_annotation(entry, targets, first, counts) for entry in annotations]
    _add_note(names, targets, counts, report)
    return {
        **content,
        "annotations": [entry for entry in kept if entry is not None],
        "categories": _map_categories(categories, targets, first),
    }


def applicable(classes: ClassMap, names: Sequence[str]) -> dict[str, str | None]:
    """The part of a map whose names a file has: for a model's map and a file that may lack some classes."""
    return {old: new for old, new in classes.items() if old in names or old == ALL_OTHERS}


def leave_out(classes: ClassMap | None, names: Sequence[str], unwanted: Collection[str]) -> dict[str, str | None]:
    """A map like `classes` that also leaves out the new names in `unwanted`. names: those of the file."""
    known = classes or {}
    return {**known, **{name: None for name in names if _target(name, known) in unwanted}}


def class_names(content: Mapping[str, object]) -> list[str]:
    """The names of the classes in what was read of a split."""
    categories = content.get("categories")
    return list(_names_by_id(categories).values()) if isinstance(categories, list) else []


def _names_by_id(categories: Sequence[object]) -> dict[int | None, str]:
    return {
        whole_number(entry.get("id")): str(entry.get("name") or "").strip()
        for entry in categories
        if isinstance(entry, Mapping) and whole_number(entry.get("id")) is not None
    }


def _target(name: str, classes: ClassMap) -> str | None:
    return classes[name] if name in classes else classes.get(ALL_OTHERS, name)


def _check_names(classes: ClassMap, names: Sequence[str], split: str, report: FaultReport) -> None:
    for old in classes:
        if old == ALL_OTHERS or old in names:
            continue
        reason = mismatch(f"names of classes in {report.name}", quote(old), suggest(old, names, _list(names)))
        if split in ("valid", "test"):
            report.add_note(f"classes: no class {quote(old)} in this file", kind="class map")
        else:
            report.add_error(f"classes: {reason}", kind="unknown class in classes")


def _list(names: Sequence[str]) -> str:
    return f"it has {', '.join(names)}" if names else ""


def _map_annotation(
    entry: object, targets: Mapping[int | None, str | None], first: Mapping[str, int], counts: Counter[int | None]
) -> object | None:
    """The annotation with its new category; None where its class is left out."""
    number = whole_number(entry.get("category_id")) if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or number is None or number not in targets:
        return entry
    counts[number] += 1
    target = targets[number]
    return None if target is None else {**entry, "category_id": first[target]}


def _map_categories(
    categories: Sequence[object], targets: Mapping[int | None, str | None], first: Mapping[str, int]
) -> list[object]:
    mapped: list[object] = []
    for entry in categories:
        number = whole_number(entry.get("id")) if isinstance(entry, Mapping) else None
        if not isinstance(entry, Mapping) or number not in targets:
            mapped.append(entry)
            continue
        target = targets[number]
        if target is not None and first[target] == number:
            mapped.append({**entry, "name": target})
    return mapped


def _add_note(
    names: Mapping[int | None, str],
    targets: Mapping[int | None, str | None],
    counts: Mapping[int | None, int],
    report: FaultReport,
) -> None:
    """Say which classes became which, with the number of their objects."""
    members: dict[str | None, list[str]] = {}
    for number, name in names.items():
        if targets[number] != name or list(targets.values()).count(name) > 1:
            text = f"{quote(name)} ({count_of(counts.get(number, 0), 'object')})"
            members.setdefault(targets[number], []).append(text)
    for target, texts in members.items():
        verb = "is" if len(texts) == 1 else "are"
        became = "left out: background from now on" if target is None else f"now {quote(target)}"
        report.add_note(f"classes: {', '.join(texts)} {verb} {became}", kind="class map")
