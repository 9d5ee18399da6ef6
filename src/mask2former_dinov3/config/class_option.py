"""The options `classes` (old names and new names; also of the verbs that read data) and `class_weights`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..errors import mismatch
from ..json_files import describe
from .presets import LARGEST

AUTO = "auto"
_EXAMPLE = 'an object of names such as {"crack": "defect", "dust": null}'


def parse_class_map(value: object) -> dict[str, str | None]:
    """The map of a JSON object, or of its text: old name -> new name, or None for a class that is left out.

    Raises ValueError for anything else, and for an empty map.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=_refuse_repeated)
        except json.JSONDecodeError as error:
            raise ValueError(mismatch(_EXAMPLE, f"text that is no JSON ({error})")) from error
    if not isinstance(value, Mapping) or not value:
        raise ValueError(mismatch(_EXAMPLE, "an empty object" if isinstance(value, Mapping) else describe(value)))
    found: dict[str, str | None] = {}
    for old, new in value.items():
        name = new.strip() if isinstance(new, str) else new
        if not isinstance(old, str) or not (name is None or (isinstance(name, str) and name)):
            raise ValueError(f"{json.dumps(old)}: {mismatch('a new name or null', json.dumps(new, default=str))}")
        found[old.strip()] = name
    return found


def parse_class_weights(value: object) -> dict[str, float] | str:
    """The weights of a JSON object, or of its text: class name -> number above 0; or the word "auto".

    Raises ValueError for anything else, and for an empty object.
    """
    expected = '"auto", or an object of class names and numbers such as {"crack": 5}'
    if isinstance(value, str) and value.strip() != AUTO:
        try:
            value = json.loads(value, object_pairs_hook=_refuse_repeated)
        except json.JSONDecodeError as error:
            raise ValueError(mismatch(expected, json.dumps(value, ensure_ascii=False))) from error
    if isinstance(value, str):
        return AUTO
    if not isinstance(value, Mapping) or not value:
        raise ValueError(mismatch(expected, "an empty object" if isinstance(value, Mapping) else describe(value)))
    for name, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= LARGEST:
            raise ValueError(f"{json.dumps(name)}: {mismatch('a number above 0', json.dumps(weight, default=str))}")
    return {str(name).strip(): float(weight) for name, weight in value.items()}


def _refuse_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(mismatch("each name once", ", ".join(repeated)))
    return dict(pairs)
