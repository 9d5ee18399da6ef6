"""Graceful stop: the first Ctrl-C or SIGTERM asks the run to finish its step and save, a second one stops at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], object] | int | None  # what `signal.signal` takes and returns


class StopRequest:
    """`requested` becomes true on the first SIGINT, SIGTERM or SIGHUP inside the block.

    A second signal raises KeyboardInterrupt, and inside `at_once` the first one does. Outside the main thread the block
    handles no signals.
    """

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._previous: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Long work that nothing is lost of: a signal, also one from before, raises KeyboardInterrupt."""
        self._at_once = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or self.requested:
            self.requested = True
            raise KeyboardInterrupt
        self.requested = True
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        logger.warning("\nstopping after this step and saving; a second %s stops at once without saving", name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """Make a data worker ignore the signals: Ctrl-C reaches all processes, but only the main one decides to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
