"""Ctrl-C and SIGTERM asked for once are a request; and what one process meets, all processes learn."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")
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


@contextmanager
def torn_down(accelerator: Accelerator) -> Iterator[None]:
    """Close trackers and the process group after the block, however it ends.

    A process group must not be freed while one of gloo's threads still drops the tensors of the last exchange: it
    needs the interpreter's lock for that, which the freeing thread holds, and both would wait for ever (torch 2.13).
    Sleeping lets go of the lock.
    """
    try:
        yield
    finally:
        if accelerator.num_processes > 1:
            time.sleep(0.5)
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)  # or a second run could not choose its own precision


def ignore_signals(worker: int) -> None:
    """For data workers: Ctrl-C reaches the whole process group, but stopping is the main process's decision."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def together(accelerator: Accelerator, job: Callable[[], T], *, main_only: bool = False) -> T | None:
    """Run a job on every process (or on the main one) and fail on all of them if it fails on any.

    Without this, the others would wait for the failed one in their next exchange. Returns the job's result (None
    where it did not run). Raises the job's own error where it failed, UserError elsewhere.
    """
    result: T | None = None
    error: Exception | None = None
    if accelerator.is_main_process or not main_only:
        try:
            result = job()
        except Exception as caught:
            error = caught
    if int(total(accelerator, torch.tensor([float(error is not None)]))[0]):
        raise error or UserError(
            f"process {accelerator.process_index}: stopped, since another process failed (see there)"
        )
    return result


def total(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Sum of a small tensor over all processes, on the CPU in float64."""
    if accelerator.num_processes == 1:
        return values.double().cpu()
    summed: torch.Tensor = accelerator.reduce(values.to(accelerator.device, torch.float32), reduction="sum")
    return summed.double().cpu()
