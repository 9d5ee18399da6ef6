"""The only reader of JSON files: a file that is not JSON raises an error that names it and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from .errors import UserError, mismatch


def read_json(
    path: Path, expected: str = "a JSON file", *, raises: type[UserError] = UserError, unique_keys: bool = False
) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    expected: what the file should be, for the message, such as "COCO annotations (JSON)". raises: the class of the
    error. unique_keys: refuse an object that has a key twice (costs time on large files).
    Raises `raises` when the file is missing, a folder, not text, not JSON, or nested too deeply.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise raises(f"{path}: {mismatch(expected, 'no such file')}") from error
    except IsADirectoryError as error:
        raise raises(f"{path}: {mismatch(expected, 'a folder')}") from error
    except OSError as error:
        raise raises(f"{path}: {mismatch(expected, f'a file that cannot be read ({error.strerror})')}") from error
    return parse_json(data, path, expected, raises=raises, unique_keys=unique_keys)


def parse_json(
    data: bytes, path: Path | str, expected: str, *, raises: type[UserError] = UserError, unique_keys: bool = False
) -> Any:
    """As `read_json`, for the bytes of a file that are read already. path: how messages call it."""

    def check_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise raises(f"{path}: keys given twice: {', '.join(repeated)}; keep one of each")
        return dict(pairs)

    try:
        return json.loads(data, object_pairs_hook=check_keys if unique_keys else None)
    except json.JSONDecodeError as error:
        got = f"invalid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        raise raises(f"{path}: {mismatch(expected, got, 'check whether the file is complete')}") from error
    except UnicodeDecodeError as error:
        raise raises(f"{path}: {mismatch(expected, 'bytes that are not text')}") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise raises(f"{path}: {mismatch(expected, f'JSON that cannot be read ({error})')}") from error
    except RecursionError as error:
        raise raises(f"{path}: {mismatch(expected, 'JSON that is nested too deeply')}") from error


def read_json_object(
    path: Path, expected: str = "a JSON object", *, raises: type[UserError] = UserError, unique_keys: bool = False
) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object. Raises `raises` for any other content."""
    return _check_object(read_json(path, expected, raises=raises, unique_keys=unique_keys), path, expected, raises)


def parse_json_object(
    data: bytes, path: Path | str, expected: str, *, raises: type[UserError] = UserError
) -> dict[str, object]:
    """As `read_json_object`, for the bytes of a file that are read already. path: how messages call it."""
    return _check_object(parse_json(data, path, expected, raises=raises), path, expected, raises)


def _check_object(content: object, path: Path | str, expected: str, raises: type[UserError]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise raises(f"{path}: {mismatch(expected, describe(content))}")
    return content


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a JSON value is a whole number; true and false, which Python counts as 1 and 0, are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a number; true and false are not."""
    return isinstance(value, float) or is_integer(value)


def describe(value: object) -> str:
    """The kind of a JSON value in the words of JSON, such as "a list", for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {dict: "an object", list: "a list", tuple: "a list", str: "a string", int: "a number", float: "a number"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "another kind of value")
