"""Write files and folders atomically: under a temporary name first, renamed once they are complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from .errors import CheckpointError, system_reason


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that replaces it when the block ends without an error.

    Raises CheckpointError when the folder cannot be written, for example because the disk is full: for an OSError or
    SafetensorError of the block. After these and any other error, what stood at `path` is unchanged.
    """
    temporary, old = (path.with_name(f".{path.name}.{word}") for word in ("writing", "replaced"))
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        if isinstance(error, OSError | SafetensorError):
            raise _could_not_write(path, error) from error
        raise


@contextmanager
def write_file(path: Path) -> Iterator[TextIO]:
    """Give a text file under a temporary name that replaces `path` when the block ends without an error.

    The text is UTF-8. A name that is not, a lone surrogate in Python, is written as an escape that JSON has too.
    Raises CheckpointError when it cannot be written; what stood at `path` is then unchanged.
    """
    with _replace(path) as temporary, temporary.open("x", encoding="utf-8", errors="backslashreplace") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `write_file`."""
    with write_file(path) as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file of bytes; see `write_file`."""
    with _replace(path) as temporary, temporary.open("xb") as file:
        file.write(data)


def check_writable(folder: Path) -> None:
    """Make the folder and a file in it, so that an output folder that cannot be written is reported before the work.

    Raises CheckpointError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the folder cannot be made ({system_reason(error)}); choose another"
        ) from error
    write_text(folder / ".probe", "")
    (folder / ".probe").unlink()


@contextmanager
def _replace(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that is renamed to it when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.unlink(missing_ok=True)  # if it is a link, opening it would write to the link's target
        yield temporary
        temporary.rename(path)
    except BaseException as error:
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
