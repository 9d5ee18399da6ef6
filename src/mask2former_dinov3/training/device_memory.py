"""Memory of the device that a run computes on: how much there is for this process, and what a piece of work takes."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from ..errors import UserError, is_out_of_memory, memory_reason

SHARE = 0.9  # of the memory for this process that a run may plan with: batches differ, and memory is fragmented
CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_LITTLE = 100_000_000
_UNLIMITED = 1 << 60  # version 1 writes a number near 2 ** 63 for "no limit"


def usable_memory(device: torch.device) -> int:
    """Bytes that this process may use in all: what it has now, and its part of what is free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return resident_memory() + free_cpu_memory() // processes


def resident_memory() -> int:
    """Bytes of this process that are in memory now."""
    return int(psutil.Process().memory_info().rss)


def free_cpu_memory() -> int:
    """Bytes that processes here can still take: from the machine, their control groups, and this process's limit."""
    found = [int(psutil.virtual_memory().available), *free_in_cgroups()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(limit - int(psutil.Process().memory_info().vms))
    return max(0, min(found))


def free_in_cgroups(root: Path = CGROUPS, own_groups: Path = _OWN_GROUPS) -> list[int]:
    """Bytes that are free in each control group of this process that has a limit: version 2 and 1 of Linux."""
    try:
        lines = own_groups.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    found: list[int] = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        for folder in _with_parents(top, place):
            found += _free_in(folder, *names)
    return found


def _with_parents(top: Path, place: str) -> Iterator[Path]:
    """The folder of a group and of all groups above it; in a container `top` is that of the container's group."""
    folder = top / place.lstrip("/")
    while folder != top and folder.is_relative_to(top):
        yield folder
        folder = folder.parent
    yield top


def _free_in(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Bytes free in one group, if it has a limit. The cache of files counts as used there, and is given back."""
    try:
        most = int((folder / limit).read_text())
        used = int((folder / usage).read_text())
        entries = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []  # no limit ("max"), or no such group
    return [] if most > _UNLIMITED else [most - used + int(entries.get(cache, 0))]


def is_full_memory(error: BaseException) -> bool:
    """Whether an error comes of full memory: `is_out_of_memory`, or oneDNN's, which names no cause, with none free."""
    unnamed = isinstance(error, RuntimeError) and str(error).startswith("could not create a ")
    return is_out_of_memory(error) or (unnamed and free_cpu_memory() < _LITTLE)


def peak_memory(device: torch.device, job: Callable[[], object]) -> int | None:
    """Bytes that this process has at most while it does a job; None where the memory does not suffice.

    On a CPU it is the highest number since the process began, which a larger job raises.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        job()
    except (RuntimeError, MemoryError) as error:
        if not is_full_memory(error):
            raise
        return None
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def explain_full_evaluation(batch_size: int) -> Iterator[None]:
    """Turn an error for full memory in an evaluation into a UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full_memory(error):
            raise
        smaller = "--per-device-eval-batch-size 1" if batch_size > 1 else "--image-height and --image-width"
        advice = f"set {smaller}" if batch_size > 1 else f"lower {smaller}"
        raise UserError(f"evaluation: out of memory on the device: {memory_reason(error)}; {advice}") from error
