"""The only reader of JSON files: a file that is not JSON raises an error that names it and the reason."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NotRequired, TypeGuard, get_args, get_origin, get_type_hints, is_typeddict

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

    if other := describe_other_format(data):
        raise raises(f"{path}: {mismatch(expected, *other)}")
    try:
        return json.loads(data, object_pairs_hook=check_keys if unique_keys else None)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.doc[: error.pos].rstrip().endswith(("}", "]")) and error.lineno > 1:
            got = f"several JSON values (the second in line {error.lineno}), as in a JSON Lines file"
            raise raises(f"{path}: {mismatch(expected, got, 'put them into one value')}") from error
        got = f"invalid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        raise raises(f"{path}: {mismatch(expected, got, 'check whether the file is complete')}") from error
    except UnicodeDecodeError as error:
        advice = "save it as UTF-8; files in Windows-1252 or Latin-1 are not read"
        raise raises(f"{path}: {mismatch(expected, 'bytes that are not text in UTF-8', advice)}") from error
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


_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file", "run `git lfs pull`"),
    (b"PK\x03\x04", "a zip file", "unzip it"),
    (b"PK\x05\x06", "an empty zip file", "download it again"),
    (b"\x1f\x8b", "a gzip file", "decompress it with gunzip or tar"),
    (b"BZh", "a bzip2 file", "decompress it with bunzip2"),
    (b"\xfd7zXZ\x00", "an xz file", "decompress it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "decompress it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file", "extract it"),
    (b"Rar!", "a RAR file", "extract it"),
    (b"PAR1", "a Parquet file", "export it as JSON"),
    (b"SQLite format 3", "an SQLite file", "export it as JSON"),
    (b"%PDF", "a PDF file", ""),
    (b"\x89PNG", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"II*\x00", "a TIFF image", ""),
    (b"MM\x00*", "a TIFF image", ""),
    (b"GIF8", "a GIF image", ""),
    *((bytes((0x80, version)), "a Python pickle", "export it as JSON") for version in (2, 3, 4, 5)),
    (b"\x89HDF", "an HDF5 file", "export it as JSON"),
)
_LOOKED_AT = 4096  # bytes


def describe_other_format(data: bytes) -> tuple[str, str] | None:
    """What a file is that is clearly no JSON, and what to do, for messages; None for what may be JSON."""
    for beginning, kind, advice in _BEGINNINGS:
        if data.startswith(beginning):
            return kind, advice
    start = data[:_LOOKED_AT]
    if not start.strip():
        return "an empty file", "check whether it was written or downloaded completely"
    if not start.strip(b"\x00"):
        return "a file of zeros", "copy or download it again"
    text = start.removeprefix(b"\xef\xbb\xbf").decode(
        "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1", "ignore"
    )
    if not text.lstrip().startswith("<"):
        return None
    if re.match(r"\s*<(!doctype html|html|head|body)\b", text, re.IGNORECASE):
        return "an HTML page", "it may be the page of a login or an error: download the file itself"
    return "an XML file", "export the annotations as JSON"


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a JSON value is a whole number; true and false, which Python counts as 1 and 0, are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a number; true and false are not."""
    return isinstance(value, float) or is_integer(value)


_SCALARS: tuple[tuple[object, str, Any], ...] = (
    (str, "a text", lambda value: isinstance(value, str)),
    (bool, "true or false", lambda value: isinstance(value, bool)),
    (int, "a whole number up to 2^53", lambda value: is_integer(value) and abs(value) <= 2**53),
    (float, "a number", lambda value: is_number(value) and abs(value) <= sys.float_info.max),  # false for NaN
)


def find_type_fault(value: object, kind: Any, place: str = "") -> tuple[str, str, object] | None:
    """Where a JSON value first differs from a type: the place, what is expected there, and what is there.

    kind: str, bool, int, float (finite), list[...], dict[str, ...], one of these or None, or a TypedDict of them. The
    place is made of keys and, in lists, numbers from 1, such as "per_class: bar: threshold"; it begins with `place`.
    """
    options = get_args(kind)
    if NoneType in options:
        (kind,) = (one for one in options if one is not NoneType)
        fault = None if value is None else find_type_fault(value, kind, place)
        return (place, f"{fault[1]}, or null", value) if fault and fault[0] == place else fault
    if (origin := get_origin(kind)) is list:
        if not isinstance(value, list):
            return place, "a list", value
        parts = [(f"{number}", one, options[0]) for number, one in enumerate(value, 1)]
    elif origin is dict or is_typeddict(kind):
        if not isinstance(value, Mapping):
            return place, "an object", value
        hints = dict.fromkeys(value, options[1]) if origin is dict else get_type_hints(kind, include_extras=True)
        plain = {key: get_args(one)[0] if _may_be_missing(one) else one for key, one in hints.items()}
        required = [key for key, one in hints.items() if getattr(kind, "__total__", True) and not _may_be_missing(one)]
        if missing := [key for key in required if key not in value]:
            return place, f"an object with {missing[0]}", value
        parts = [(str(key), value[key], one) for key, one in plain.items() if key in value]
    else:
        expected, is_right = next((words, test) for one, words, test in _SCALARS if one is kind)
        return None if is_right(value) else (place, expected, value)
    faults = (find_type_fault(one, wanted, f"{place}: {key}" if place else key) for key, one, wanted in parts)
    return next((fault for fault in faults if fault is not None), None)


def _may_be_missing(hint: Any) -> bool:
    """Whether this is the `NotRequired[...]` of a TypedDict."""
    origin: Any = get_origin(hint)
    return origin is NotRequired


def describe(value: object) -> str:
    """The kind of a JSON value in the words of JSON, such as "a list", for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {dict: "an object", list: "a list", tuple: "a list", str: "a string", int: "a number", float: "a number"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "another kind of value")
