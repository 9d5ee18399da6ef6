"""Unpack a data set that comes as a zip file, once, into the user's cache; refuse archives that could do harm."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..atomic_files import remove_folder
from ..errors import DatasetError, mismatch, system_reason
from .image_folders import is_hidden

MOST_FILES = 5_000_000
_FREE_OF_SUSPICION = 2**30  # bytes: an archive that unpacks to fewer may be compressed as much as it likes
_MOST_COMPRESSED = 100  # times; images are compressed already, and annotations shrink to about a tenth
_CHUNK = 2**20


def is_zip(path: Path) -> bool:
    """Whether a path is meant as a zip file."""
    return path.suffix.lower() == ".zip" and path.is_file()


def unpack(path: Path) -> Path:
    """The folder that holds the content of a zip file: unpacked now, or by an earlier call with the same file.

    It lies below `mask2former-dinov3/unpacked` in the user's cache (XDG_CACHE_HOME, or ~/.cache). Where the archive
    holds one folder alone, that folder is returned. Raises DatasetError for a file that is no zip file, is damaged or
    encrypted, holds names that lead elsewhere or links, or unpacks to far more than its size, and where the disk is too
    small.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mask2former-dinov3" / "unpacked"
    try:
        status = path.stat()
        with zipfile.ZipFile(path) as archive:
            entries = [one for one in archive.infolist() if not one.is_dir()]
            content = [(one.filename, one.CRC) for one in entries]
            key = repr((str(path.resolve()), status.st_size, status.st_mtime_ns, content))
            target = cache / f"{path.stem[:80]}-{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:16]}"
            if not target.is_dir():
                names = _check(path, entries, status.st_size)
                cache.mkdir(parents=True, exist_ok=True)
                _check_space(path, cache, sum(one.file_size for one in entries))
                _write(archive, entries, names, target)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, zlib.error, RuntimeError) as error:
        raise DatasetError(f"{path}: {mismatch('a zip file that can be read', str(error))}") from error
    except OSError as error:
        got = f"an error ({system_reason(error)})"
        raise DatasetError(f"{path}: {mismatch(f'a zip file that can be unpacked below {cache}', got)}") from error
    while len(inside := list(target.iterdir())) == 1 and inside[0].is_dir():
        target = inside[0]
    return target


def _check(path: Path, entries: Sequence[zipfile.ZipInfo], size: int) -> list[PurePosixPath | None]:
    """Where each file goes, None for those that systems add. Raises DatasetError for an archive that could do harm."""
    if len(entries) > MOST_FILES:
        raise DatasetError(f"{path}: {mismatch(f'at most {MOST_FILES:,} files', f'{len(entries):,}')}")
    total = sum(one.file_size for one in entries)
    if total > max(_FREE_OF_SUSPICION, _MOST_COMPRESSED * size):
        got = f"{total / 2**30:.3g} GiB in {size / 2**20:.3g} MiB"
        expected = f"files of at most {_MOST_COMPRESSED} times the size of the archive"
        raise DatasetError(f"{path}: {mismatch(expected, got, 'if that is right, unpack it yourself')}")
    names: list[PurePosixPath | None] = []
    for one in entries:
        name = PurePosixPath(one.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0] or "\0" in one.filename:
            raise DatasetError(f"{path}: {mismatch('names of files inside the archive', repr(one.filename))}")
        if stat.S_ISLNK(one.external_attr >> 16):
            raise DatasetError(f"{path}: {one.filename}: {mismatch('a file', 'a link')}")
        if one.flag_bits & 1:
            raise DatasetError(f"{path}: {one.filename}: {mismatch('a file without a password', 'an encrypted one')}")
        names.append(None if any(map(is_hidden, name.parts)) else name)
    return names


def _check_space(path: Path, cache: Path, total: int) -> None:
    free = shutil.disk_usage(cache).free
    if total > free:
        expected = f"{total / 2**30:.3g} GiB free in {cache}, to unpack it"
        got = f"{free / 2**30:.3g} GiB"
        raise DatasetError(f"{path}: {mismatch(expected, got, 'set XDG_CACHE_HOME to a folder on a larger disk')}")


def _write(
    archive: zipfile.ZipFile,
    entries: Sequence[zipfile.ZipInfo],
    names: Sequence[PurePosixPath | None],
    target: Path,
) -> None:
    """Unpack into a new folder that then becomes `target`; another process may do the same at the same time."""
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        for entry, name in zip(entries, names, strict=True):
            if name is not None:
                place = temporary / name
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, place.open("xb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else the other process was first
                raise
    finally:
        if temporary.exists():
            remove_folder(temporary)
