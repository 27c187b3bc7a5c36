"""Memory of the CPU that training frees and needs again in the next step.

What glibc's `malloc` gets back it returns to the operating system where it lies at the end of the
heap, or is larger than a threshold (32 MiB at most); the next step gets it anew, a page fault for
every 4 KiB, which was a quarter to more than half of the time of training steps on images of 32x32.
So it is kept while a network is trained, and returned after (mallopt(3), malloc_trim(3)).

In other threads than the main one glibc goes on to return large blocks. Other allocators, and what
the environment says of glibc's, are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["freed_memory_kept"]

# Of malloc.h. Nothing is trimmed from the heap's end, and nothing lies outside of the heap.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def _glibc() -> Any:
    """Return the C library where it is glibc; None elsewhere."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def _is_chosen() -> bool:
    """Return whether somebody has said how memory is to be kept."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(name in os.environ for name in _ENVIRONMENT)


@functools.cache
def _keep() -> Any:
    """Let this process keep the memory that it frees; return the C library, None where it can't."""
    glibc = _glibc()
    if glibc is None or _is_chosen():
        return None
    kept = glibc.mallopt(_TRIM_THRESHOLD, -1) and glibc.mallopt(_MMAP_MAX, 0)
    return glibc if kept else None


@contextlib.contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep the memory that training on a CPU frees; return it to the operating system in the end.

    The process goes on to keep what it frees later: glibc does not tell what held before.

    Args:
        device: Where the network is trained; nothing is done but for a CPU.
    """
    glibc = _keep() if device.type == "cpu" else None
    try:
        yield
    finally:
        if glibc is not None:
            glibc.malloc_trim(0)
