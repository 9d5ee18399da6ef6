"""Ctrl-C and SIGTERM asked for once are a request; and what one process meets, all processes learn."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """`requested` turns true on the first SIGINT, SIGTERM or SIGHUP inside the block; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        logger.warning("\nstopping: this step is finished and saved first; a second %s stops at once, unsaved", name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """For data workers: Ctrl-C reaches the whole process group, but stopping is the main process's decision."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
