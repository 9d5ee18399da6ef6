"""The reader of JSON files: what it takes, and the message for each way in which a file can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask2former_dinov3.errors import ConfigError, UserError
from mask2former_dinov3.json_files import describe, read_json, read_json_object


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_read_json__takes_every_encoding_of_json(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"name": "ä"}', encoding=encoding)
    assert read_json_object(tmp_path / "a.json") == {"name": "ä"}


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "invalid JSON (line 1, column 1: Expecting value); check whether the file is complete"),
        (b'{"a": 1,\n', "invalid JSON (line 2, column 1: "),
        (b'"\xff"', "bytes that are not text"),
        (b"[" * 100_000, "JSON that is nested too deeply"),
        (b"[1]", "a list"),
        (b"null", "null"),
        (b"true", "true"),
        (b"1.5", "a number"),
    ],
)
def test_read_json_object__says_what_the_file_is_instead(content: bytes, got: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_json_object(path, "options", raises=ConfigError)
    assert str(error.value).startswith(f"{path}: expected options, got {got}")


def test_read_json__missing_files_folders_and_repeated_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: expected a JSON file, got no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="expected a JSON file, got a folder"):
        read_json(tmp_path)
    (tmp_path / "a.json").write_text('{"b": 1, "a": {"c": 1, "c": 2}}')
    assert read_json(tmp_path / "a.json") == {"b": 1, "a": {"c": 2}}
    with pytest.raises(UserError, match=r"a\.json: keys given twice: c; keep one of each"):
        read_json(tmp_path / "a.json", unique_keys=True)
    assert describe(object()) == "another kind of value"
