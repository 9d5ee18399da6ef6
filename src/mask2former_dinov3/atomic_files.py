"""Write files and folders atomically and durably: under a temporary name first, flushed to the disk, then renamed.

The order is that of `publish`: the files and their folder are flushed, renamed, and the parent folder is flushed; only
then is the old version removed. So neither a kill nor a power cut leaves a file or folder that is there in part.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from .errors import CheckpointError, system_reason

_WRITING, _REPLACED, _REMOVING = "writing", "replaced", "removing"  # endings of hidden names beside the real one
_CANNOT_FLUSH = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EROFS, errno.EBADF})


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that replaces it when the block ends without an error.

    Raises CheckpointError when the folder cannot be written, for example because the disk is full: for an OSError or
    SafetensorError of the block. After these and any other error, what stood at `path` is unchanged.
    """
    temporary = _beside(path, _WRITING)
    try:
        _restore(path)
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        yield temporary
        publish(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _restore(path)
        if isinstance(error, OSError | SafetensorError):
            raise _could_not_write(path, error) from error
        raise


@contextmanager
def write_file(path: Path) -> Iterator[TextIO]:
    """Give a text file under a temporary name that replaces `path` when the block ends without an error.

    Its folder is made if needed. The text is UTF-8. A name that is not, a lone surrogate in Python, is written as an
    escape that JSON has too.
    Raises CheckpointError when it cannot be written; what stood at `path` is then unchanged.
    """
    with (
        _replace(path) as temporary,
        temporary.open("x", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `write_file`."""
    with write_file(path) as file:
        file.write(text)


def write_json(path: Path, content: object) -> None:
    """As `write_text`, for a value as JSON that people can read. Raises CheckpointError."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file of bytes; see `write_file`."""
    with _replace(path) as temporary, temporary.open("xb") as file:
        file.write(data)


def publish(temporary: Path, path: Path) -> None:
    """Give a complete file or folder its final name: the end of every atomic write. Raises OSError.

    Both names are on one file system. A folder that stands at `path` is moved away first, since a rename does not
    replace it; `sweep` and the next write bring it back if the process ends between the two renames.
    """
    _flush_tree(temporary)
    if temporary.is_dir() and (path.exists() or path.is_symlink()):
        old = _beside(path, _REPLACED)
        _discard(old)
        path.rename(old)
    temporary.rename(path)
    flush(path.parent)
    _discard(_beside(path, _REPLACED))


def remove_folder(path: Path) -> None:
    """Remove a folder so that it is never there in part: it first gets a name that `sweep` knows. Raises OSError."""
    hidden = _beside(path, _REMOVING)
    _discard(hidden)
    path.rename(hidden)
    flush(path.parent)
    _discard(hidden)


def move_folder(path: Path, target: Path) -> None:
    """Rename a folder or file to a name that does not exist, in a folder that is made if needed. Raises OSError."""
    make_folder(target.parent)
    path.rename(target)
    flush(target.parent)
    flush(path.parent)


def sweep(folder: Path) -> list[Path]:
    """Remove from a folder what killed processes left under temporary names; returns what was brought back.

    A folder whose replacement had not got its name yet is brought back. Call it with the folder's lock held.
    """
    restored = []
    for leftover in sorted(folder.glob(".*")):
        name, _, word = leftover.name[1:].rpartition(".")
        if not name or word not in (_WRITING, _REPLACED, _REMOVING):
            continue
        if word == _REPLACED and _restore(folder / name):
            restored.append(folder / name)
        else:
            _discard(leftover)
    return restored


def make_folder(path: Path) -> None:
    """Make a folder and those above it, durably. Raises OSError."""
    missing = missing_folders(path)
    path.mkdir(parents=True, exist_ok=True)
    for one in missing:
        flush(one.parent)


def missing_folders(path: Path) -> list[Path]:
    """A folder and those above it that do not exist, the deepest first."""
    return [one for one in (path, *path.parents) if not one.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the deepest first, up to one that holds something or is gone."""
    with suppress(OSError):
        for one in folders:
            one.rmdir()


def check_writable(folder: Path) -> None:
    """Make the folder and a file in it, so that an output folder that cannot be written is reported before the work.

    Folders that this makes are removed again: a command that is refused later leaves none. Raises CheckpointError.
    """
    made = missing_folders(folder)
    try:
        make_folder(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the folder cannot be made ({system_reason(error)}); choose another"
        ) from error
    write_text(folder / ".probe", "")
    (folder / ".probe").unlink()
    remove_empty(made)


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk (fsync). Raises OSError when that fails.

    File systems without this call, such as some of network disks for folders, are left to their own order.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def _flush_tree(path: Path) -> None:
    """Flush a file, or a folder with all that is in it, from the inside."""
    if path.is_dir() and not path.is_symlink():
        for one in path.iterdir():
            _flush_tree(one)
    if path.exists():  # not a dangling link
        flush(path)


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f".{path.name}.{word}")


def _restore(path: Path) -> bool:
    """Bring back what stood at `path` when its replacement did not get there."""
    old = _beside(path, _REPLACED)
    if path.exists() or path.is_symlink() or not old.exists():
        return False
    old.rename(path)
    flush(path.parent)
    return True


def _discard(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there, as far as possible: what stays is swept later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _replace(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that is renamed to it when the block ends without an error."""
    temporary = _beside(path, _WRITING)
    try:
        make_folder(path.parent)
        temporary.unlink(missing_ok=True)  # if it is a link, opening it would write to the link's target
        yield temporary
        publish(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # its folder is a file, or went away
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _could_not_write(path, error) from error
        raise


def _could_not_write(path: Path, error: Exception) -> CheckpointError:
    reason = system_reason(error) if isinstance(error, OSError) else str(error)
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    free = shutil.disk_usage(folder).free / 1e9
    return CheckpointError(
        f"{path}: could not be written ({reason}); {free:.1f} GB are free there, make room or choose "
        f"another folder. What was saved before is unchanged"
    )
