"""Options as text: read from a JSON file and from the words of a command line, and complained of in such words."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import ErrorDetails

from ..errors import ConfigError, OptionError


def read_json(path: Path) -> dict[str, Any]:
    """A flat JSON object; every way in which it can fail to be one is a ConfigError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = sorted({key for key, _ in pairs if [other for other, _ in pairs].count(key) > 1})
        if twice:
            raise ConfigError(f"{path}: given twice: {', '.join(twice)}; keep one of each")
        return dict(pairs)

    try:
        found: object = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: no valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no text in UTF-8 ({error.reason}); expected a JSON file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a JSON file with --config") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object of options, got a {type(found).__name__}")
    return found


def read_flags(words: Sequence[str], nullable: Collection[str], faults: list[str]) -> dict[str, Any]:
    """Command-line words as options; a flag without a value is true, `none` and `null` clear the `nullable` ones.

    Words that are no option are added to `faults`.
    """
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            faults.append(f"{word}: expected --key value")
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals and rest and not rest[0].startswith("--"):
            value, equals = rest.pop(0), "="
        clears = key in nullable and value.lower() in ("none", "null")
        given[key] = None if clears else value if equals else True
    return given


_EITHER = {
    "checkpointing_steps": 'a number of steps above 0, "epoch", or null',
    "num_queries": 'a number above 0 or "auto"',
}
_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a string"}


def complaint(item: ErrorDetails) -> str:
    """pydantic's complaint in the words of a JSON file."""
    kind, got, context = item["type"], item["input"], item.get("ctx", {})
    if item["loc"][0] in _EITHER:
        return f"expected {_EITHER[str(item['loc'][0])]}, got {json.dumps(got, default=str)}"
    if kind == "missing":
        return "required; the folder that the run is written to"  # output_dir is the only field without a default
    if kind == "value_error":
        error = context["error"]
        return error.reason if isinstance(error, OptionError) else str(error)
    if kind == "literal_error":
        return f"expected one of {context['expected']}, got {json.dumps(got, default=str)}"
    expected = _EXPECTED.get(kind.split("_")[0], item["msg"].removeprefix("Input should be ").lower())
    return f"expected {expected}, got {json.dumps(got, default=str)}"
