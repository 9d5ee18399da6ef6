"""Several processes: sums over them, failures that reach all of them, and the end of the process group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from ..errors import UserError, is_shared, mark_shared

JobResult = TypeVar("JobResult")
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Timed out", "timed out", "Broken pipe", "NCCL")


class PeerError(UserError):
    """Another process has failed: the message is its."""


@contextmanager
def end_processes_at_exit(accelerator: Accelerator, timeout: int) -> Iterator[None]:
    """Close the trackers and the process group after the block, also after an error.

    timeout: after so many seconds without an answer a process is given up. Raises UserError, instead of torch's error,
    when another process has ended or is given up.
    The pause avoids a deadlock in torch 2.13: the thread that frees the process group holds the interpreter's lock,
    and a thread of gloo needs that lock to drop the tensors of the last exchange. Sleeping releases it.
    """
    try:
        yield
    except RuntimeError as error:
        if is_lost_peer(error, accelerator.num_processes):
            raise UserError(
                f"process {accelerator.process_index}: expected an answer of the other processes, got none: one has "
                f"ended or has not answered for {timeout} seconds (process_group_timeout); resume with "
                "--resume-from-checkpoint latest"
            ) from error
        raise
    finally:
        if accelerator.num_processes > 1:
            time.sleep(0.5)
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)  # or a second run could not choose its own precision


def is_lost_peer(error: BaseException, num_processes: int) -> bool:
    """Whether an error is torch's for a process that does not answer."""
    return (
        num_processes > 1
        and isinstance(error, RuntimeError)
        and not is_shared(error)
        and any(words in str(error) for words in _LOST_PEER)
    )


def run_on_all(accelerator: Accelerator, job: Callable[[], JobResult]) -> JobResult:
    """Run a job on every process and return its result; every process must call this.

    If the job fails or is interrupted on any process, all of them raise: otherwise the others would wait for the failed
    one in their next exchange. Raises the job's own error where it failed; on the other processes KeyboardInterrupt
    after an interruption, otherwise PeerError with the message of the process that failed.
    """
    error: BaseException | None = None
    try:
        result = job()
    except (Exception, KeyboardInterrupt) as caught:
        error = caught
    if not int(sum_over_processes(accelerator, torch.tensor([float(error is not None)]))[0]):
        return result
    found = [] if error is None else [(accelerator.process_index, isinstance(error, KeyboardInterrupt), _name(error))]
    everywhere: list[tuple[int, bool, str]] = gather_object(found)
    if error is not None:
        raise mark_shared(error)
    rank, is_stop, message = everywhere[0]
    raise mark_shared(KeyboardInterrupt(message) if is_stop else PeerError(f"process {rank}: {message}"))


def _name(error: BaseException) -> str:
    """The message of an error, with its class where no user has caused it."""
    return str(error) if isinstance(error, UserError | KeyboardInterrupt) else f"{type(error).__name__}: {error}"


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
