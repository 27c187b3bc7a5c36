"""What a candidate costs, before it is trained: parameters, FLOPs, latency; and limits on them."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from flatsearch.models import count_flops, count_parameters, eval_mode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = ["excess", "measure_cost", "measure_latency", "over_limit"]

_WARM_UP = 5
_RUNS = 25
_UNITS = {"parameters": "", "flops": "", "latency": " ms"}


def measure_latency(
    model: nn.Module, in_channels: int, image_size: int, batch_size: int = 1
) -> float:
    """Return the time of one forward pass in eval mode, in milliseconds.

    The median of 25 passes after 5 to warm up, each with the device's queue empty before and
    after, in float32, where the model is.

    Args:
        model: On the device that is of interest.
        in_channels: Channels of the images.
        image_size: Height and width.
        batch_size: Images at a time.

    Returns:
        Milliseconds.

    Example:
        >>> measure_latency(torch.nn.Conv2d(3, 8, 3), 3, 8) > 0
        True
    """
    parameter = next(model.parameters(), torch.empty(0))
    images = torch.zeros(batch_size, in_channels, image_size, image_size).to(parameter)

    def synchronise() -> None:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)

    times = []
    with eval_mode(model), torch.inference_mode():
        for _ in range(_WARM_UP + _RUNS):
            synchronise()
            started = time.perf_counter()
            model(images)
            synchronise()
            times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[_WARM_UP:])


def measure_cost(
    model: nn.Module, in_channels: int, image_size: int, *, latency: bool = False
) -> dict[str, float | int]:
    """Return what a model costs, by the names of the objectives.

    Args:
        model: The candidate, on its device.
        in_channels: Channels of the images.
        image_size: Height and width.
        latency: Whether to time it.

    Returns:
        "parameters", "flops" of one image and, if asked for, "latency" of one image in
        milliseconds.

    Example:
        >>> measure_cost(torch.nn.Conv2d(1, 1, 1), 1, 2)
        {'parameters': 2, 'flops': 8}
    """
    cost: dict[str, float | int] = {
        "parameters": count_parameters(model),
        "flops": count_flops(model, in_channels, image_size),
    }
    if latency:
        cost["latency"] = measure_latency(model, in_channels, image_size)
    return cost


def excess(cost: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """Return how far a candidate is over each limit.

    Args:
        cost: From `measure_cost`.
        limits: By the same names.

    Returns:
        cost / limit - 1 by name, at most 0 where the limit is kept.

    Example:
        >>> excess({"parameters": 150, "flops": 10}, {"parameters": 100, "flops": 20})
        {'parameters': 0.5, 'flops': -0.5}
    """
    return {name: cost[name] / limit - 1 for name, limit in limits.items()}


def over_limit(cost: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Say which limit a candidate is most over; nothing if it keeps them all.

    Args:
        cost: From `measure_cost`.
        limits: By the same names.

    Returns:
        One line, or an empty string.

    Example:
        >>> over_limit({"parameters": 150}, {"parameters": 100})
        'over the limit: 150 parameters, at most 100'
    """
    over = excess(cost, limits)
    worst = max(over, key=over.__getitem__, default="")
    if not worst or over[worst] <= 0:
        return ""
    unit = _UNITS[worst]
    return f"over the limit: {cost[worst]:g}{unit} {worst}, at most {limits[worst]:g}{unit}"
