"""List folders of a data set: its splits by the names of folders, its files by their stem; read lines of text."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from ...errors import DatasetError, mismatch
from ..file_kinds import IMAGE_SUFFIXES

SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "stage1_train"),
    "valid": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
"""Split -> names of its folder, in lower case."""

_LOOKED_AT = 5000  # entries of a folder


def split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder under `root`; a root without such folders is all of it: train."""
    if not root.is_dir():
        return {}
    folders = {entry.name.lower(): entry for entry in sorted(root.iterdir()) if entry.is_dir()}
    found = {
        split: folders[name] for split, names in SPLIT_FOLDERS.items() for name in reversed(names) if name in folders
    }
    return found or {"train": root}


def look_into(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder, sorted, hidden ones not: enough to see what it is, not all of a large one."""
    if not folder.is_dir():
        return [], []
    with os.scandir(folder) as found:
        shown = (entry for entry in found if not entry.name.startswith("."))
        entries = sorted(islice(shown, _LOOKED_AT), key=lambda entry: entry.name)
        folders = [Path(entry.path) for entry in entries if os.path.isdir(entry.path)]  # also of links to themselves
        return [Path(entry.path) for entry in entries if not os.path.isdir(entry.path)], folders


def files_under(folder: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """The files with these endings (lower case) in a folder and all folders in it, in order; hidden ones not."""
    wanted = frozenset(suffixes)
    for path in sorted(folder.rglob("*")):
        hidden = any(name.startswith(".") for name in path.relative_to(folder).parts)
        if path.suffix.lower() in wanted and not hidden and path.is_file():
            yield path


def image_files(folder: Path) -> Iterator[Path]:
    """The images in a folder and all folders in it, in order."""
    return files_under(folder, IMAGE_SUFFIXES)


def by_stem(paths: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Path under `root` without its ending -> the files of this name."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        found[path.relative_to(root).with_suffix("").as_posix()].append(path)
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, or UTF-16 with its mark. Raises DatasetError for bytes that are not text."""
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: {mismatch('lines of text', f'bytes that are not text ({error.reason})')}"
        ) from error
