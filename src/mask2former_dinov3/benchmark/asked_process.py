"""A process of its own that answers questions: one line in on standard input, one line of JSON out.

It never shares memory, threads or signal handlers with the others, and its peak memory is its own. It ends when its
standard input ends, so that none is left behind when the process that asks is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from ..errors import UserError, is_out_of_memory, memory_reason

Answer = dict[str, Any]


class ProcessFailedError(Exception):
    """A process ended, or answered with the reason why it cannot do what it was asked.

    of_user: the reason is an error that the user can fix, in the wording of this package.
    """

    def __init__(self, reason: str, *, of_user: bool = False) -> None:
        super().__init__(reason)
        self.of_user = of_user


class AskedProcess:
    """A Python process that `answer_questions`, or prints a line of JSON for every line on its standard input."""

    def __init__(self, words: Sequence[str], errors: Path | None = None) -> None:
        """words: the arguments of the interpreter. errors: file for its stderr, otherwise that of this process."""
        self._errors = errors
        stderr = None if errors is None else errors.open("w", encoding="utf-8")
        # A session of its own: Ctrl-C on the terminal goes to the process that asks, which then ends this one.
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        if stderr is not None:
            stderr.close()

    def ask(self, question: str = "") -> Answer:
        """The answer. Raises ProcessFailedError if it is an error, or the process has ended."""
        try:
            self._stream("stdin").write(f"{question}\n")
            self._stream("stdin").flush()
            line = self._stream("stdout").readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ProcessFailedError(self._why_ended())
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise ProcessFailedError(answer["error"], of_user=answer["of_user"])
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(self, name: str) -> IO[str]:
        stream: IO[str] | None = getattr(self.process, name)
        assert stream is not None
        return stream

    def _why_ended(self) -> str:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, as happens when memory runs out"
        said = self._errors.read_text(encoding="utf-8", errors="replace").split("\n") if self._errors else []
        last = next((f": {line.strip()}" for line in reversed(said) if line.strip()), "")
        return f"its process ended with {code}{last}"


def answer_questions(load: Callable[[], Mapping[str, Callable[[], Answer]]]) -> None:
    """Answer every line on standard input until it ends. load: called at the first; question -> its answer.

    An error is an answer, too. What libraries print goes to stderr.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for answer in _answers(load):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _answers(load: Callable[[], Mapping[str, Callable[[], Answer]]]) -> Iterator[Answer]:
    known: Mapping[str, Callable[[], Answer]] | None = None
    for line in sys.stdin:
        try:
            known = load() if known is None else known
            answer = known[line.strip()]()
        except Exception as error:  # of any runtime; what was asked next may still work
            answer = {"error": reason_of(error), "of_user": isinstance(error, UserError)}
        yield answer


def reason_of(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory: {memory_reason(error)}"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
