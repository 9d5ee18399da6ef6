"""Files and folders on disk, written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from safetensors import SafetensorError

from .errors import CheckpointError


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its place once the block ends without an error.

    Raises CheckpointError when the disk is full or the folder cannot be written; what stood at `path` is then as it
    was.
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
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        raise CheckpointError(f"{path}: could not be written ({error}); {_space_left(path)}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def write_file(path: Path, mode: Literal["x", "xb"] = "x") -> Iterator[IO[Any]]:
    """Give a file, of text or of bytes, under a temporary name that takes its place when the block ends without error.

    Raises CheckpointError when it cannot be written; what stood at `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.unlink(missing_ok=True)  # were it a link, the content would go where it leads
        with temporary.open(mode, encoding="utf-8" if mode == "x" else None) as file:
            yield file
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: could not be written ({error}); {_space_left(path)}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it. Raises CheckpointError when that fails."""
    with write_file(path) as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it. Raises CheckpointError when that fails."""
    with write_file(path, "xb") as file:
        file.write(data)


def _space_left(path: Path) -> str:
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    free = shutil.disk_usage(folder).free / 1e9
    return f"{free:.1f} GB are free there. Make room or choose another output_dir; what was saved before is untouched"


def check_writable(folder: Path) -> None:
    """Raise CheckpointError now rather than after the first epoch."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"output_dir {folder}: cannot be made ({error}); choose another") from error
    write_text(folder / ".probe", "")
    (folder / ".probe").unlink()
