"""The reader of JSON files: what it takes, and the message for each way in which a file can fail."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import zipfile
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
        (b"", "an empty file; check whether it was written or downloaded completely"),
        (b" \n", "an empty file"),
        (b'{"a": 1,\n', "invalid JSON (line 2, column 1: "),
        (b'"\xff"', "bytes that are not text in UTF-8; save it as UTF-8"),
        ('"café"'.encode("cp1252"), "bytes that are not text in UTF-8"),
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


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
            "a pointer of Git LFS, not the file; run `",
        ),
        (gzip.compress(b"{}", mtime=0), "a gzip file; decompress it"),
        (bz2.compress(b"{}"), "a bzip2 file; decompress it"),
        (lzma.compress(b"{}"), "an xz file; decompress it"),
        (b"PK\x03\x04rest", "a zip file; unzip it"),
        (b"PAR1....PAR1", "a Parquet file; export it as JSON"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"\xff\xd8\xff\xe0", "a JPEG image"),
        (pickle.dumps({}, protocol=4), "a Python pickle; export it as JSON"),
        (bytes(5000), "a file of zeros; copy or download it again"),
        (b"<!DOCTYPE html><html></html>", "an HTML page; it may be the page of a login or an error"),
        (b"\n\n  <HTML lang='en'>", "an HTML page"),
        ("\ufeff<html>".encode(), "an HTML page"),
        ("<html>".encode("utf-16"), "an HTML page"),
        (b"<?xml version='1.0'?><annotations/>", "an XML file; export the annotations as JSON"),
        (b'{"a": 1}\n{"a": 2}\n', "several JSON values (the second in line 2), as in a JSON Lines file"),
        (b'{"a": 1} x', "invalid JSON (line 1, column 10: Extra data)"),
    ],
)
def test_read_json__names_other_formats(content: bytes, got: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: expected a JSON file, got {got}")


def test_read_json__finds_a_zip_file_written_by_a_library(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.json", "w") as file:
        file.writestr("annotations.json", "{}")
    with pytest.raises(UserError, match="got a zip file; unzip it"):
        read_json(tmp_path / "a.json")
    with zipfile.ZipFile(tmp_path / "a.json", "w"):
        pass
    with pytest.raises(UserError, match="got an empty zip file"):
        read_json(tmp_path / "a.json")
