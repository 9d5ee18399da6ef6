"""Python processes that start fast: forks of a server that has imported torch, transformers and the package.

A new interpreter spends 8 s of CPU time on these imports, a fork of the server 0.1 s. What a module reads from the
environment while it is imported is as it was in the server, so tests of such variables and tests of imports need a new
interpreter, `subprocess.run`; but what the hub's client reads (HF_...) is read again for each fork.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

import pytest

from support.paths import ROOT, SOURCE

PRELOADED = (
    "pytest",  # a fork imports the main module of its parent
    "mask2former_dinov3.cli.verbs",
    "mask2former_dinov3.training.train",
    "mask2former_dinov3.inference.files.predict_files",
)


_CONTEXT = multiprocessing.get_context("forkserver")


class StartedPython:
    """A running process, in a process group of its own; its output goes to files in `folder`."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.words = list(words)
        number = len(list(folder.glob("*.stdout")))
        self.files = tuple(folder / f"{number}.{name}" for name in ("stdout", "stderr"))
        for file in self.files:
            file.touch()
        self.process = _CONTEXT.Process(target=_run, args=(self.words, self.files, dict(environment)), daemon=True)
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    def poll(self) -> int | None:
        """The exit code, None while the process runs; -N after signal N."""
        return self.process.exitcode

    def finish(self, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """Wait for the end; a process that takes longer is killed, with its children. Raises TimeoutExpired then."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            os.killpg(self.pid, 9)
            self.process.join()
            raise subprocess.TimeoutExpired(self.words, timeout, *(file.read_bytes() for file in self.files))
        self.process.close()
        output, errors = (file.read_text(encoding="utf-8") for file in self.files)
        return subprocess.CompletedProcess(self.words, code, output, errors)


class PipedPython:
    """`subprocess.Popen` of an interpreter with pipes of text, as a fork of the server: what tests and benchmarks use.

    stdin, stdout and stderr are pipes when asked for by `subprocess.PIPE`, otherwise those of the server.
    """

    def __init__(self, command: Sequence[str], **options: object) -> None:
        """command: begins with the interpreter. options: those of Popen, of which only the three streams count."""
        _start_server()
        self.ends: dict[str, IO[str]] = {}
        its_ends: dict[int, Connection] = {}
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            if options.get(name) == subprocess.PIPE:
                reader, writer = _CONTEXT.Pipe(duplex=False)
                mine, its_ends[number] = (writer, reader) if number == 0 else (reader, writer)
                self.ends[name] = os.fdopen(os.dup(mine.fileno()), "w" if number == 0 else "r")
                mine.close()
        self.process = _CONTEXT.Process(target=_run_piped, args=(command[1:], its_ends), daemon=True)
        self.process.start()
        for end in its_ends.values():
            end.close()

    @property
    def stdin(self) -> IO[str]:
        return self.ends["stdin"]

    @property
    def stdout(self) -> IO[str]:
        return self.ends["stdout"]

    @property
    def stderr(self) -> IO[str]:
        return self.ends["stderr"]

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def communicate(self) -> None:
        """Close the pipes and wait for the end; what was not read is lost."""
        for end in self.ends.values():
            with suppress(BrokenPipeError):
                end.close()
        self.wait()


def start_python(words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> StartedPython:
    """Start `python WORDS`: "-m" and a module, or a script, then its arguments.

    folder: an existing one for the files of its output. environment: variables to set besides those of the tests.
    """
    _start_server()
    return StartedPython(words, folder, environment or {})


def start_two(words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> list[StartedPython]:
    """Two processes of one run, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= environment or {}
    return [start_python(words, folder, {**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]


def run_python(
    words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """As `start_python`, and wait for the end."""
    return start_python(words, folder, environment).finish(timeout)


def call_in_fork(function: Callable[..., object], *args: object, **options: object) -> None:
    """Call a function in a fork, which gives back to the system what memory it took. Fails when the function does."""
    _start_server()
    process = _CONTEXT.Process(target=function, args=args, kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == 0, f"{function.__name__} failed; its traceback is on stderr"
    process.close()


def _start_server() -> None:
    """Start the server of this test process unless it runs.

    It finds the preloaded modules by PYTHONPATH only, and would silently do without those it does not find. Its torch
    and that of the forks compute in one thread.
    """
    _CONTEXT.set_forkserver_preload(list(PRELOADED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", str(SOURCE), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


def _run(words: Sequence[str], files: Sequence[Path], environment: Mapping[str, str]) -> None:
    """In the fork: become `python WORDS` in a process group of its own."""
    os.setsid()
    for number, file in enumerate(files, start=1):
        with file.open("wb") as target:
            os.dup2(target.fileno(), number)
    os.environ.update(environment)
    if any(name.startswith("HF_") for name in environment):
        importlib.reload(sys.modules["huggingface_hub.constants"])  # where all of the hub's client looks them up
    _become(words)


def _run_piped(words: Sequence[str], ends: Mapping[int, Connection]) -> None:
    """In the fork: become `python WORDS` with these ends of pipes as its standard streams, by number."""
    for number, end in ends.items():
        os.dup2(end.fileno(), number)
        end.close()
    if 0 in ends:
        sys.stdin = os.fdopen(0)
    _become(words)


def _become(words: Sequence[str]) -> None:
    # A daemon, so that an interrupted test process ends its forks and does not wait for them; but one with children.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
