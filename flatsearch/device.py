"""The device to compute on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from flatsearch.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["resolve_device", "wait_for_memory", "worker_device"]

# What others have of a device's memory is worth waiting for from this share of it on.
_OTHERS = 0.1
# What ran out of memory needs more than it had by then: at least so many times as much.
_MORE = 1.25


def worker_device(device: str, index: int) -> str:
    """Return the device of a worker: GPUs in turn where the choice is free.

    Example:
        >>> worker_device("cpu", 3)
        'cpu'
    """
    if device == "auto" and torch.cuda.device_count() > 1:
        return f"cuda:{index % torch.cuda.device_count()}"
    return device


def resolve_device(name: str) -> torch.device:
    """Return the device of a name: "auto" (CUDA where there is one), "cpu", "cuda:1", ...

    Raises:
        SettingsError: If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, ValueError):
        raise SettingsError(
            f"device {name!r} is not available here; use auto, cpu, cuda or cuda:INDEX"
            f" ({torch.cuda.device_count()} CUDA devices found)"
        ) from None
    return device


def wait_for_memory(
    device: torch.device, check: Callable[[], None], seconds: float = 600.0
) -> bool:
    """Wait, where memory has run out, for what other processes have of it.

    Args:
        device: Where it has run out.
        check: Called every second; what it raises ends the waiting.
        seconds: How long to wait at most.

    Returns:
        Whether there is more now than this process had when it ran out; False at once where others
        have hardly any.
    """
    if device.type != "cuda":
        return False
    had = torch.cuda.memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    torch.cuda.empty_cache()
    if total - free - had < _OTHERS * total:
        return False
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        if free > _MORE * had:
            return True
        check()
        time.sleep(1)
    return False
