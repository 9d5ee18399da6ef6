"""Propagation of a failure from one process to all, sums over processes, and the end of the process group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..errors import UserError

T = TypeVar("T")


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
