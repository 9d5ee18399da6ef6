"""Give memory that tests freed back to the system: the allocator of Linux keeps it, and a process would only grow."""

from __future__ import annotations

import ctypes
import gc
import sys

import psutil

MUCH = 700_000_000  # bytes: torch, transformers and the package take 0.5 GB
GROWTH = 100_000_000  # bytes, since the last time

_after_last_time = 0


def give_back_memory(file_is_done: bool) -> None:
    """Call after each test. file_is_done: nothing that its file has made is needed any more."""
    global _after_last_time
    used = psutil.Process().memory_info().rss
    if used < MUCH or not (file_is_done or used > _after_last_time + GROWTH):
        return
    if file_is_done:
        if "torch._dynamo" in sys.modules:
            sys.modules["torch._dynamo"].reset()  # else it keeps what was compiled, and the networks in it
        gc.collect()
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    _after_last_time = psutil.Process().memory_info().rss
