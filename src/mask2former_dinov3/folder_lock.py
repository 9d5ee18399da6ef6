"""One command at a time in an output folder: a lock that the system drops when its process ends, however it ends.

The lock is a record lock of POSIX (`fcntl.lockf`) on a hidden file that says who holds it. Forked data workers do not
inherit it, so a killed run can be resumed at once. Where the file system has no locks, the file alone decides: one left
by a process of this machine that no longer runs is recognised by the process id and its start time.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from .atomic_files import make_folder, missing_folders, remove_empty
from .errors import CheckpointError, OptionError, system_reason
from .json_files import is_integer, is_number

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)
LOCK_FILE = ".in-use.json"
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_START_TOLERANCE = 2.0  # seconds: the start of a process is computed from its age and the clock

_held: set[str] = set()  # by this process, which its own locks do not stop
_guard = threading.Lock()


@contextmanager
def hold_folder(folder: Path, option: str, verb: str, file: str = LOCK_FILE) -> Iterator[None]:
    """Hold the lock of an output folder, which is made if needed, until the block ends.

    option: the option that named the folder, for the message. verb: the command, named in the refusal of others. file:
    name of the lock's file; another one than the default locks a single output of the folder.
    Raises OptionError when another process, or another call in this one, holds it, CheckpointError when the folder
    cannot be written.
    """
    path = folder.absolute() / file
    with _guard:
        if str(path) in _held:
            raise _refusal(option, folder, "a command of this process")
        _held.add(str(path))
    made = missing_folders(folder)
    try:
        descriptor = _acquire(path, option, folder, verb)
    except BaseException:
        _held.discard(str(path))
        raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes: the next holder makes a file of its own
        os.close(descriptor)
        _held.discard(str(path))
        remove_empty(made)  # of a command that was refused before anything was written


def _acquire(path: Path, option: str, folder: Path, verb: str) -> int:
    """The open file that holds the lock, with this process written into it."""
    try:
        make_folder(folder)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            try:
                _lock(descriptor, path, option, folder)
                if _is_at(descriptor, path):
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its holder has removed it in between
        me = psutil.Process()
        record = {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time(), "verb": verb}
        record["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(record).encode() + b"\n", 0)
        return descriptor
    except OSError as error:
        reason = system_reason(error)
        raise CheckpointError(f"{folder}: the folder cannot be made or written ({reason}); choose another") from error


def _lock(descriptor: int, path: Path, option: str, folder: Path) -> None:
    """Take the lock, or decide by the file's content where the file system has none. Raises OptionError if held."""
    try:
        if sys.platform == "win32":
            raise OSError(errno.ENOLCK, "no locks")
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        record = _read(descriptor)
        if error.errno in _HELD_BY_ANOTHER:
            raise _refusal(option, folder, _describe(record)) from error
        if record and _may_run(record):
            advice = f"; if it has ended, remove {path} (this file system has no locks)"
            raise _refusal(option, folder, _describe(record), advice) from error
        logger.warning(
            "%s: this file system has no locks (%s); two commands that start there at the same moment are not noticed",
            folder,
            system_reason(error),
        )


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, object]:
    """What the holder wrote; empty if it was not written or is damaged."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _may_run(record: dict[str, object]) -> bool:
    """Whether the process of a record may still run: on another machine nobody can tell."""
    if record.get("host") != socket.gethostname():
        return True
    pid, started = record.get("pid"), record.get("started")
    if not is_integer(pid) or not is_number(started):
        return False
    try:
        return bool(abs(psutil.Process(pid).create_time() - started) < _START_TOLERANCE)
    except psutil.Error:
        return False


def _describe(record: dict[str, object]) -> str:
    if not record:
        return "another command"
    return f"{record.get('verb')} (process {record.get('pid')} on {record.get('host')}, since {record.get('since')})"


def _refusal(option: str, folder: Path, holder: str, advice: str = "") -> OptionError:
    what = "a folder that no other command is writing to"
    return OptionError(option, what, f"{folder}, in use by {holder}", f"wait for it, or choose another{advice}")
