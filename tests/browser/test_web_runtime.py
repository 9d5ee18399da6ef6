"""onnxruntime-web from npm: what is fetched, kept, refused. npm is a script here that does what a test says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask2former_dinov3.browser.web_runtime import RUNTIME_VERSION, find_runtime
from mask2former_dinov3.errors import OptionError

ARCHIVE = f"onnxruntime-web-{RUNTIME_VERSION}.tgz"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the archive, in a cache of the test's own; there is no npm."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "cache" / "mask2former-dinov3"


def write_npm(tmp_path: Path, script: str) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)


def test_find_runtime__says_what_to_do_without_npm(cache: Path) -> None:
    with pytest.raises(OptionError) as caught:
        find_runtime()
    assert str(caught.value) == (
        f"web: expected npm, which fetches onnxruntime-web@{RUNTIME_VERSION}, got no npm on this machine; install npm "
        f"and see that it reaches its registry, or run `npm pack onnxruntime-web@{RUNTIME_VERSION}` on another machine "
        f"and copy the file to {cache / ARCHIVE}"
    )


def test_find_runtime__shows_what_npm_says(cache: Path, tmp_path: Path) -> None:
    write_npm(tmp_path, 'echo "npm error code ENOTFOUND" >&2; echo "npm error no network" >&2; exit 1')
    with pytest.raises(OptionError, match=r"got an error of npm \(code ENOTFOUND; no network\); install npm"):
        find_runtime()
    write_npm(tmp_path, "exit 0")  # and wrote nothing
    with pytest.raises(OptionError, match=r"got an error of npm \(exit code 0\)"):
        find_runtime()
    assert list(cache.iterdir()) == []


def test_find_runtime__refuses_another_file_than_the_published_one(cache: Path, tmp_path: Path) -> None:
    write_npm(tmp_path, f'echo "$1 $2 $3" > "$4/{ARCHIVE}"')  # pack NAME --pack-destination FOLDER
    with pytest.raises(OptionError, match=r"got another one \(sha512 .{12}…\); npm's registry has another file"):
        find_runtime()
    assert list(cache.iterdir()) == []
    (cache / ARCHIVE).write_bytes(b"cut short")
    with pytest.raises(OptionError, match=r"got another one \(sha512 .{12}…\); remove it; npm fetches it again"):
        find_runtime()
