"""The device to compute on."""

from __future__ import annotations

import torch

from flatsearch.errors import SettingsError

__all__ = ["resolve_device", "worker_device"]


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
