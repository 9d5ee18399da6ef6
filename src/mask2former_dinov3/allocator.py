"""What the C library does with memory that was given back."""

from __future__ import annotations

import ctypes
import sys

# Names and values of mallopt(3), glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensors. True where that can be had: Linux with glibc.

    glibc returns large blocks to the system at once and gets them back page by page, each page cleared anew. A network
    on a CPU makes and drops hundreds of such blocks per step; keeping them saved a third of inference and of training
    here. The process stays at its peak size until it ends, so only our own commands do this;
    a program that uses the package as a library decides for itself.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    # No block from mmap, none given back: the manual's own values for "never".
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
