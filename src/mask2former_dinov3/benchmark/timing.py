"""The clock, turns of several works, and the peak memory of this process."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Timed = Callable[[], float]
"""Does its work once and returns the seconds it took."""


def timed(work: Callable[[], object], device: torch.device | str) -> Timed:
    """A function that runs `work` and returns its seconds; on a GPU it waits for the device."""

    def run() -> float:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start

    return run


def take_turns(works: Mapping[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in `rounds` rounds, in which every one has its turn.

    A machine that slows down for a while (heat, neighbours) then slows all of them, and their ratios stand.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(work())
    return taken


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has done its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def memory_peak(device: torch.device | str) -> int:
    """Peak memory of this process in bytes: resident in main memory, or allocated by torch on a GPU."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux a new process starts with the size of the one that launched it.
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
