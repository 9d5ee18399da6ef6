"""Simulated power cuts and kills: what may be on the disk after each step of a piece of work.

A disk holds of a file what was flushed (fsync), else possibly nothing, and of a folder its names as they were at any
moment since the folder was flushed. `PowerCuts` notes the tree after each rename, flush and removal. Its `states` are
all trees that a cut between two of them may leave, with files that were not flushed empty and the names of new folders
that were not flushed missing. Metadata are taken to reach the disk in order, as journals keep them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Names = dict[str, tuple[int, bool]]
"""Name in a folder -> inode, and whether it is a folder."""


class PowerCuts:
    """Notes what happens below `root` inside `watch`. store: a folder beside it that keeps the flushed contents."""

    def __init__(self, root: Path, store: Path) -> None:
        self.root, self.store = root, store
        self.folders: list[dict[int, Names]] = []  # by moment: inode of a folder -> what is in it
        self.versions: list[dict[int, int]] = []  # by moment: inode of a file -> time of the version on the disk
        self.flushed: list[dict[int, int]] = []  # by moment: inode of a folder -> moment whose names are on the disk
        store.mkdir()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note each rename, flush and removal until the block ends."""
        there = [path.stat() for path in (self.root, *self.root.rglob("*"))]  # from before, so on the disk
        inodes = {status.st_ino: status.st_mtime_ns for status in there}
        self._note(inodes, dict.fromkeys(inodes, 0))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("rename", "replace", "fsync", "unlink", "rmdir"):
                patch.setattr(os, name, self._noting(name, getattr(os, name)))
            yield

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            versions, flushed = dict(self.versions[-1]), dict(self.flushed[-1])
            if name == "fsync":
                status = os.fstat(args[0])
                versions[status.st_ino] = status.st_mtime_ns
                flushed[status.st_ino] = len(self.folders)
            self._note(versions, flushed)
            return result

        return call

    def _note(self, versions: dict[int, int], flushed: dict[int, int]) -> None:
        found: dict[int, Names] = {}
        for folder in (self.root, *(path for path in self.root.rglob("*") if path.is_dir())):
            found[folder.stat().st_ino] = {path.name: (path.stat().st_ino, path.is_dir()) for path in folder.iterdir()}
        for path in (path for path in self.root.rglob("*") if path.is_file()):
            status = path.stat()
            kept, held = self._version(status.st_ino, status.st_mtime_ns), self.store / f"{status.st_ino}-held"
            if versions.get(status.st_ino) == status.st_mtime_ns and not kept.exists():
                shutil.copyfile(path, kept)
            if not held.exists():
                os.link(path, held)  # keeps the inode's number from being used again
        self.folders.append(found)
        self.versions.append(versions)
        self.flushed.append(flushed)

    def states(self, target: Path, *, at_end: bool = False) -> Iterator[Path]:
        """Each tree that a cut may leave, built at `target`, one after the other. at_end: a cut after all was done."""
        root, seen = self.root.stat().st_ino, set()
        for moment in range(len(self.folders) - 1 if at_end else 0, len(self.folders)):
            for names in range(self.flushed[moment][root], moment + 1):
                tree = dict(self._tree(root, "", names, moment))
                if (key := tuple(sorted(tree.items()))) in seen:
                    continue
                seen.add(key)
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
                for name, (inode, version) in tree.items():
                    if inode == 0:
                        (target / name).mkdir()
                    elif version:
                        os.link(self._version(inode, version), target / name)
                    else:
                        (target / name).touch()
                yield target

    def _tree(self, folder: int, prefix: str, names: int, moment: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """Paths with (inode, version) when the power fails at `moment` and the disk has the names of `names` or later.

        Inode 0: a folder. Version 0: a file whose content was not flushed.
        """
        flushed = self.flushed[moment].get(folder)
        if flushed is None:
            return
        for name, (inode, is_folder) in self.folders[max(names, flushed)].get(folder, {}).items():
            yield prefix + name, (0, 0) if is_folder else (inode, self.versions[moment].get(inode, 0))
            if is_folder:
                yield from self._tree(inode, f"{prefix}{name}/", names, moment)

    def _version(self, inode: int, time: int) -> Path:
        return self.store / f"{inode}-{time}"


def end_at(number: int) -> None:
    """Let this process end, as if it were killed, at its n-th rename, flush, removal or new folder from now on."""
    counted = [0]

    def ending(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counted[0] += 1
            if counted[0] > number:
                os._exit(9)
            return function(*args, **options)

        return call

    for name in ("rename", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, name, ending(getattr(os, name)))
