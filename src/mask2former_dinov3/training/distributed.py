"""Several processes: sums over them, failures that reach all of them, and the end of the process group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..errors import UserError

JobResult = TypeVar("JobResult")


@contextmanager
def end_processes_at_exit(accelerator: Accelerator) -> Iterator[None]:
    """Close the trackers and the process group after the block, also after an error.

    The pause avoids a deadlock in torch 2.13: the thread that frees the process group holds the interpreter's lock,
    and a thread of gloo needs that lock to drop the tensors of the last exchange. Sleeping releases it.
    """
    try:
        yield
    finally:
        if accelerator.num_processes > 1:
            time.sleep(0.5)
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)  # or a second run could not choose its own precision


def run_on_all(accelerator: Accelerator, job: Callable[[], JobResult]) -> JobResult:
    """Run a job on every process and return its result; every process must call this.

    If the job fails on any process, all of them raise: otherwise the others would wait for the failed one in their
    next exchange. Raises the job's own error where it failed, UserError on the other processes.
    """
    error: Exception | None = None
    try:
        result = job()
    except Exception as caught:
        error = caught
    if int(sum_over_processes(accelerator, torch.tensor([float(error is not None)]))[0]):
        raise error or UserError(
            f"process {accelerator.process_index}: stopped because another process failed; see its message"
        )
    return result


def run_on_main(accelerator: Accelerator, job: Callable[[], JobResult]) -> JobResult | None:
    """As `run_on_all`, but only the main process runs the job; the others return None."""
    if accelerator.is_main_process:
        return run_on_all(accelerator, job)
    return run_on_all(accelerator, lambda: None)


def sum_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Sum of a small tensor over all processes, on the CPU in float64."""
    if accelerator.num_processes == 1:
        return values.double().cpu()
    summed: torch.Tensor = accelerator.reduce(values.to(accelerator.device, torch.float32), reduction="sum")
    return summed.double().cpu()
