"""What a candidate costs, before it is trained, and limits on that."""

from __future__ import annotations

import statistics
import time
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from flatsearch.networks.inference import eval_mode, zero_images
from flatsearch.networks.onnx import count_onnx_memory, open_session, to_onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "LARGE_BATCH",
    "count_flops",
    "count_parameters",
    "excess",
    "measure_cost",
    "measure_latency",
    "measure_onnx",
    "median_time",
    "over_limit",
]


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters.

    Example:
        >>> count_parameters(nn.Conv2d(3, 8, 3))
        224
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_flops(model: nn.Module, in_channels: int, image_size: int) -> int:
    """Return the floating-point operations of one image's forward pass.

    Matrix products and convolutions, two operations per multiply-add, as PyTorch's own counter
    counts them. The model is measured in eval mode, and its mode restored.

    Example:
        A 1x1 convolution from 1 to 1 channel on 2x2 pixels is four multiply-adds:

        >>> count_flops(nn.Conv2d(1, 1, 1), 1, 2)
        8
    """
    image = zero_images(model, in_channels, image_size)
    with eval_mode(model), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return int(counter.get_total_flops())


# Images at a time for the objective "batch_latency".
LARGE_BATCH = 64
_WARM_UP = 5
_RUNS = 25
_UNITS = {
    **dict.fromkeys(("memory", "onnx_memory"), " bytes"),
    **dict.fromkeys(("latency", "batch_latency", "onnx_latency"), " ms"),
}


class _CostCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations return until they are freed, and adds up their FLOPs.

    FLOPs are by PyTorch's formulas. Its own counter gives the same sum, but attributes it to
    modules, which takes longer than the forward pass of a small network.

    Attributes:
        peak: The most bytes that were alive at once.
        flops: Of matrix products and convolutions.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.flops = 0
        self._live = 0
        # Views share a storage, and operations in place return one that is known.
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse tensors have none
            return
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self._live -= size


def _flops_and_memory(model: nn.Module, in_channels: int, image_size: int) -> tuple[int, int]:
    """Return the operations and the peak memory of one image's forward pass, in bytes.

    Memory is the most bytes that the image and the results of operations take at one time in eval
    mode, without gradients, each until nothing refers to it any more; what an operation needs
    inside is not seen, but what it returns is, such as the indices of a max pool. Weights do not
    count. Both are independent of machine and device.
    """
    image = zero_images(model, in_channels, image_size)
    known = [*model.parameters(), *model.buffers(), image]
    with eval_mode(model), torch.no_grad(), _CostCounter(known) as live:
        model(image)
    return live.flops, live.peak + image.untyped_storage().nbytes()


def measure_latency(
    model: nn.Module, in_channels: int, image_size: int, batch_size: int = 1
) -> float:
    """Return the time of one forward pass in eval mode, in milliseconds.

    The median of 25 passes after 5 to warm up, each with the device's queue empty before and
    after, in float32, where the model is.

    Example:
        >>> measure_latency(torch.nn.Conv2d(3, 8, 3), 3, 8) > 0
        True
    """
    images = zero_images(model, in_channels, image_size, batch_size)

    def run() -> None:
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)

    with eval_mode(model), torch.inference_mode():
        return median_time(run)


def measure_onnx(
    model: nn.Module, in_channels: int, image_size: int, asked: Iterable[str]
) -> dict[str, float | int]:
    """Return what a network costs that is exported as `flatsearch export` does it.

    Args:
        model: The network.
        in_channels: Channels of an image.
        image_size: Its height and width.
        asked: "onnx_latency", the time of one image in onnxruntime on the CPU in milliseconds, of
            25 runs after 5 to warm up the median; and "onnx_memory", see `count_onnx_memory`.

    Returns:
        What is asked for, by name.
    """
    images = zero_images(model, in_channels, image_size, 2).cpu()
    exported, found = to_onnx(model, images), {}
    if "onnx_latency" in asked:
        session = open_session(exported.SerializeToString())
        image = {"images": images[:1].numpy()}
        found["onnx_latency"] = median_time(lambda: session.run(None, image))
    if "onnx_memory" in asked:
        found["onnx_memory"] = count_onnx_memory(exported)
    return found


def median_time(run: Callable[[], object]) -> float:
    """Return the median time of 25 calls after 5 to warm up, in milliseconds."""
    times = []
    for _ in range(_WARM_UP + _RUNS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[_WARM_UP:])


def measure_cost(
    model: nn.Module, in_channels: int, image_size: int, timed: Iterable[str] = ()
) -> dict[str, float | int]:
    """Return what a model costs on its device, by the names of the objectives.

    "parameters", and for one image "flops" and "memory" in bytes; where `timed` has them, the
    "latency" of one image and the "batch_latency" of 64, in milliseconds, and what `measure_onnx`
    knows of the exported network.

    Example:
        >>> measure_cost(torch.nn.Conv2d(1, 1, 1), 1, 2)
        {'parameters': 2, 'flops': 8, 'memory': 32}
    """
    flops, memory = _flops_and_memory(model, in_channels, image_size)
    cost: dict[str, float | int] = {
        "parameters": count_parameters(model),
        "flops": flops,
        "memory": memory,
    }
    for name, batch_size in (("latency", 1), ("batch_latency", LARGE_BATCH)):
        if name in timed:
            cost[name] = measure_latency(model, in_channels, image_size, batch_size)
    if exported := {"onnx_latency", "onnx_memory"} & set(timed):
        cost |= measure_onnx(model, in_channels, image_size, exported)
    return cost


def excess(cost: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """Return how far a candidate is over each limit: cost / limit - 1, at most 0 if it is kept.

    Example:
        >>> excess({"parameters": 150, "flops": 10}, {"parameters": 100, "flops": 20})
        {'parameters': 0.5, 'flops': -0.5}
    """
    return {name: cost[name] / limit - 1 for name, limit in limits.items()}


def over_limit(cost: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Return in one line which limit a candidate is most over; nothing if it keeps them all.

    Example:
        >>> over_limit({"parameters": 150}, {"parameters": 100})
        'over the limit: 150 parameters, at most 100'
    """
    over = excess(cost, limits)
    worst = max(over, key=over.__getitem__, default="")
    if not worst or over[worst] <= 0:
        return ""
    unit = _UNITS.get(worst, "")
    given, most = (f"{_exact(by_name[worst])}{unit}" for by_name in (cost, limits))
    return f"over the limit: {given} {worst}, at most {most}"


def _exact(x: float) -> str:
    """Counts with every digit, times with a few."""
    return str(x) if isinstance(x, int) else f"{x:.4g}"
