"""Atomic writes: what a kill between two operations of the file system or a power cut leaves is old or new, whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mask2former_dinov3.atomic_files import (
    check_writable,
    move_folder,
    remove_folder,
    sweep,
    write_bytes,
    write_folder,
    write_text,
)
from mask2former_dinov3.errors import CheckpointError
from support.crashes import PowerCuts, end_at


def write_version(folder: Path, text: str) -> None:
    with write_folder(folder) as new:
        (new / "inner").mkdir()
        (new / "one").write_text(text)
        (new / "inner" / "two").write_text(text)


def version(folder: Path) -> str:
    one, two = (folder / name for name in ("one", "inner/two"))
    assert one.read_text() == two.read_text()
    return one.read_text()


def test_write_folder__is_old_or_new_after_a_power_cut_at_any_moment(tmp_path: Path) -> None:
    root = tmp_path / "run"
    write_version(root / "best", "old")
    cuts = PowerCuts(root, tmp_path / "store")
    with cuts.watch():
        write_version(root / "best", "new")
        write_version(root / "checkpoint-1", "new")
        remove_folder(root / "best")
    found: list[str] = []
    for state in cuts.states(tmp_path / "state"):
        sweep(state)
        assert all(not path.name.startswith(".") for path in state.iterdir())
        found += [version(path) for path in state.iterdir()] or ["none"]
        assert "none" not in found
    assert found.count("old") > 3
    assert found.count("new") > 3


def test_power_cuts__show_that_a_rename_alone_is_not_enough(tmp_path: Path) -> None:
    """The simulation finds what it is made for: a file renamed before it was flushed is empty afterwards."""
    root = tmp_path / "run"
    root.mkdir()
    cuts = PowerCuts(root, tmp_path / "store")
    with cuts.watch():
        (root / ".text.writing").write_text("new")
        os.rename(root / ".text.writing", root / "text")
    assert "" in [(state / "text").read_text() for state in cuts.states(tmp_path / "s") if (state / "text").exists()]


@pytest.mark.parametrize("write", [write_text, lambda path, text: write_bytes(path, text.encode())])
def test_write_text__is_old_or_new_after_a_power_cut(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    write(root / "text", "old")
    cuts = PowerCuts(root, tmp_path / "store")
    with cuts.watch():
        write(root / "text", "new")
    found = [(state / "text").read_text() for state in cuts.states(tmp_path / "state")]
    assert set(found) == {"old", "new"}
    assert [(state / "text").read_text() for state in cuts.states(tmp_path / "state", at_end=True)] == ["new"]


def test_write_folder__is_whole_after_a_kill_at_any_operation(tmp_path: Path) -> None:
    """A child ends at its n-th operation, for every n; the next start brings back or sweeps."""
    seen = set()
    for number in range(100):
        folder = tmp_path / str(number)
        write_version(folder / "best", "old")
        write_version(folder / "checkpoint-1", "old")
        child = os.fork()
        if not child:
            end_at(number)
            write_version(folder / "best", "new")
            remove_folder(folder / "checkpoint-1")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sweep(folder)
        assert not list(folder.glob(".*"))
        seen.add(version(folder / "best"))
        if (folder / "checkpoint-1").exists():
            assert version(folder / "checkpoint-1") == "old"
        if code == 0:
            break
    assert code == 0
    assert number > 15
    assert seen == {"old", "new"}


def test_write_folder__names_a_flush_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails when the data reach it has written nothing; a file system without the call is no fault."""

    def fail(code: int) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        return fsync

    monkeypatch.setattr(os, "fsync", fail(5))
    with pytest.raises(CheckpointError, match=r"text: could not be written \(input/output error\)"):
        write_text(tmp_path / "text", "new")
    monkeypatch.setattr(os, "fsync", fail(22))
    write_text(tmp_path / "text", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_move_folder__makes_the_folder_of_the_new_name(tmp_path: Path) -> None:
    write_version(tmp_path / "last", "old")
    move_folder(tmp_path / "last", tmp_path / "aside" / "1" / "last")
    assert version(tmp_path / "aside" / "1" / "last") == "old"
    assert not (tmp_path / "last").exists()


def test_check_writable__leaves_folders_as_they_were(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    check_writable(tmp_path / "a")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/b: the folder cannot be made"):
        check_writable(tmp_path / "file" / "b")


def test_write_text__makes_the_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "text", "new")
    assert (tmp_path / "a" / "b" / "text").read_text() == "new"
    with pytest.raises(CheckpointError, match=r"text/b: could not be written \((file exists|not a directory)\)"):
        write_text(tmp_path / "a" / "b" / "text" / "b", "new")
