"""onnxruntime-web, which runs ONNX files in browsers: fetched once with npm, checked, kept in the user's cache.

npm asks the registry that the user has configured for it. The archive is compared with a digest in this file, so what
runs in the browser is the published version and no other. It is not part of this package: 33 MB.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ..atomic_files import make_folder, publish
from ..errors import OptionError, system_reason

RUNTIME_VERSION = "1.30.0"
# As npm prints it (`npm view onnxruntime-web@1.30.0 dist.integrity`).
RUNTIME_DIGEST = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The smaller one has WebAssembly alone; a browser loads one of the two.
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
NPM_TIMEOUT = 900  # seconds
_PACKAGE = f"onnxruntime-web@{RUNTIME_VERSION}"
_ARCHIVE = f"onnxruntime-web-{RUNTIME_VERSION}.tgz"  # as `npm pack` names it
_NOTICES = ("LICENSE", "ThirdPartyNotices.txt")  # in the Python package, not in npm's


def find_runtime(say: Callable[[str], None] = lambda text: None) -> Path:
    """The archive of onnxruntime-web in the user's cache (XDG_CACHE_HOME, or ~/.cache), fetched if it is not there.

    say: called before it is fetched. Raises OptionError without npm, if npm fails, and for an archive that is not the
    published one.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mask2former-dinov3"
    archive = cache / _ARCHIVE
    if not archive.exists():
        say(f"fetching {_PACKAGE} with npm (33 MB, once)")
        try:
            make_folder(cache)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as folder:
                fetched = _run_npm(Path(folder), archive)
                check_runtime(fetched, "npm's registry has another file under this name: see `npm config get registry`")
                publish(fetched, archive)
        except OSError as error:
            raise _missing(archive, f"an error ({system_reason(error)})") from error
    check_runtime(archive, "remove it; npm fetches it again")
    return archive


def _run_npm(folder: Path, archive: Path) -> Path:
    """Have npm put the archive into a folder; returns its path. archive: where it is kept, for an OptionError."""
    npm = shutil.which("npm")
    if npm is None:
        raise _missing(archive, "no npm on this machine")
    command = [npm, "pack", _PACKAGE, "--pack-destination", str(folder), "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=NPM_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise _missing(archive, f"no end of `npm pack` within {NPM_TIMEOUT} seconds") from None
    if done.returncode or not (folder / _ARCHIVE).is_file():
        lines = [line.removeprefix("npm error ") for line in done.stderr.splitlines() if line.strip()]
        raise _missing(archive, f"an error of npm ({'; '.join(lines[:3]) or f'exit code {done.returncode}'})")
    return folder / _ARCHIVE


def _missing(archive: Path, got: str) -> OptionError:
    advice = (
        f"install npm and see that it reaches its registry, or run `npm pack {_PACKAGE}` on another machine and copy "
        f"the file to {archive}"
    )
    return OptionError("web", f"npm, which fetches {_PACKAGE}", got, advice)


def check_runtime(archive: Path, advice: str) -> None:
    """Raise OptionError, which ends with the advice, unless an archive is the published one."""
    try:
        with archive.open("rb") as file:
            digest = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode("ascii")
    except OSError as error:
        got = f"a file that cannot be read ({system_reason(error)})"
        raise OptionError("web", f"the archive of {_PACKAGE} at {archive}", got) from error
    if digest != RUNTIME_DIGEST:
        expected = f"the published archive of {_PACKAGE} (sha512 {RUNTIME_DIGEST[:12]}…) at {archive}"
        raise OptionError("web", expected, f"another one (sha512 {digest[:12]}…)", advice)


def unpack_runtime(archive: Path, folder: Path) -> None:
    """Write RUNTIME_FILES of a checked archive into a new folder, with the licences of onnxruntime. Raises OSError."""
    folder.mkdir()
    with tarfile.open(archive) as content:
        for name in RUNTIME_FILES:
            member = content.extractfile(f"package/dist/{name}")
            assert member is not None  # the digest is that of an archive that has it
            with member, (folder / name).open("wb") as file:
                shutil.copyfileobj(member, file)
    found = find_spec("onnxruntime")
    assert found is not None  # `export` requires it
    assert found.origin is not None
    for name in _NOTICES:
        shutil.copyfile(Path(found.origin).with_name(name), folder / name)
