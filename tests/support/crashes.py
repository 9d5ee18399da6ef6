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

Tree = dict[str, int]
"""Path below the root -> inode."""


class PowerCuts:
    """Notes what happens below `root` inside `watch`. store: a folder beside it that keeps the flushed contents."""

    def __init__(self, root: Path, store: Path) -> None:
        self.root, self.store = root, store
        self.trees: list[Tree] = []
        self.flushed: list[set[tuple[int, int]]] = []  # (inode, mtime) of files and folders on the disk, by moment
        self.root_flushed: list[int] = []  # the moment whose names in the root are surely on the disk
        store.mkdir()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note each rename, flush and removal until the block ends."""
        there = [path.stat() for path in self.root.rglob("*")]  # from before, so on the disk
        self._note({(status.st_ino, status.st_mtime_ns) for status in there}, 0)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("rename", "replace", "fsync", "unlink", "rmdir"):
                patch.setattr(os, name, self._noting(name, getattr(os, name)))
            yield

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            flushed, root_flushed = set(self.flushed[-1]), self.root_flushed[-1]
            if name == "fsync":
                status = os.fstat(args[0])
                flushed.add((status.st_ino, status.st_mtime_ns))
                if status.st_ino == self.root.stat().st_ino:
                    root_flushed = len(self.trees)
            self._note(flushed, root_flushed)
            return result

        return call

    def _note(self, flushed: set[tuple[int, int]], root_flushed: int) -> None:
        tree: Tree = {}
        for path in sorted(self.root.rglob("*")):
            status = path.stat()
            tree[str(path.relative_to(self.root))] = status.st_ino
            kept = self.store / str(status.st_ino)
            if path.is_file() and (status.st_ino, status.st_mtime_ns) in flushed and not kept.exists():
                os.link(path, kept)  # which also keeps the inode's number from being used again
        self.trees.append(tree)
        self.flushed.append(flushed)
        self.root_flushed.append(root_flushed)

    def states(self, target: Path) -> Iterator[Path]:
        """Each tree that a cut may leave, built at `target`, one after the other."""
        seen: set[tuple[tuple[str, bool], ...]] = set()
        for moment in range(len(self.trees)):
            inodes = {inode for inode, _ in self.flushed[moment]}
            for names in range(self.root_flushed[moment], moment + 1):
                tree = self.trees[names]
                there = {name: inode in inodes for name, inode in tree.items()}
                lost = {name for name, is_flushed in there.items() if not is_flushed and self._is_folder(name, tree)}
                kept = {
                    name: is_flushed
                    for name, is_flushed in there.items()
                    if not any(name.startswith(f"{folder}/") for folder in lost)
                }
                if (key := tuple(sorted((f"{name}:{tree[name]}", on) for name, on in kept.items()))) in seen:
                    continue
                seen.add(key)
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
                for name, is_flushed in kept.items():
                    self._build(target / name, tree, name, is_flushed)
                yield target

    def _is_folder(self, name: str, tree: Tree) -> bool:
        return not (self.store / str(tree[name])).exists() and any(one.startswith(f"{name}/") for one in tree)

    def _build(self, path: Path, tree: Tree, name: str, is_flushed: bool) -> None:
        content = self.store / str(tree[name])
        if content.exists() and is_flushed:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(content, path)
        elif self._is_folder(name, tree):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


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
