"""Keep freed memory in this process, where the C library allows it."""

from __future__ import annotations

import ctypes
import sys

# Names and values of mallopt(3), glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory for its next tensors; False where that cannot be set (not Linux with glibc).

    By default glibc returns large blocks to the system at once and gets new ones page by page, each page cleared again.
    A network on a CPU allocates and frees hundreds of such blocks per step: keeping them saved a third of the time of
    inference and of training (measured in this project). The process then stays at its peak size until it ends, so only
    the command line calls this; a program that uses the package as a library decides for itself.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    # Never allocate blocks by mmap, never return memory at the heap's end: the manual's values for "never".
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def give_back_freed_memory() -> None:
    """Give memory that this process has freed back to the system, where the C library can do that."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
