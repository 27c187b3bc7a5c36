"""The data: checked, moved to the device, and cut to what fits into memory."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sized

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

__all__ = [
    "MOST_SAMPLES",
    "Data",
    "as_batches",
    "can_be_read_again",
    "first_samples",
    "iterate",
    "memory_budget",
    "most_samples",
    "split",
]

Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]

# A CPU gains nothing from more than this; a GPU is filled.
_CPU_BYTES = 2**30
# On a CPU a forward pass is up to twice as fast when its maps stay in the cache, and in memory that
# the allocator keeps instead of handing it back to the system after every batch. The more weights
# there are to read for every batch, the more samples it takes to make up for that.
_CPU_CACHE_BYTES = 24 * 2**20
_CPU_SAMPLES = 16
MOST_SAMPLES = 256


def as_batches(data: Data, *, twice: bool) -> Iterable[tuple[Tensor, Tensor]]:
    """Return the batches, unchecked; to be read twice, what may be read once becomes a list.

    Raises:
        ValueError: If the data are something else.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        return [(data[0], data[1])]
    if not isinstance(data, Iterable):
        raise ValueError(
            "`data` must be (inputs, targets) or an iterable of such batches but got"
            f" {type(data).__name__}"
        )
    return list(data) if twice and not can_be_read_again(data) else data


def can_be_read_again(data: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Return whether every iteration starts anew: of what has no length it may be one stream."""
    return isinstance(data, Sized) and not isinstance(data, Iterator)


def iterate(
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield checked batches on the device in the measure's precision.

    Args:
        batches: Pairs of inputs (N, ...) and class indices (N,).
        device: Where to.
        dtype: Of the inputs.
        batch_size: The most samples at a time.

    Yields:
        (inputs, targets), none of them empty.

    Raises:
        ValueError: If a batch is not such a pair.
        TypeError: If its parts are no tensors, or the inputs no floating-point numbers.
    """
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError("`data` must be (inputs, targets) or an iterable of such batches")
        x, y = batch
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise TypeError(f"inputs and targets must be tensors but got {type(x)}, {type(y)}")
        if not x.is_floating_point():
            raise TypeError(f"inputs must be floating-point images but got {x.dtype}")
        if x.layout != torch.strided or x.is_meta or is_fake(x):
            kind = "on a meta device" if x.is_meta else f"a {type(x).__name__}, {x.layout}"
            raise TypeError(f"inputs must be dense tensors with values but are {kind}")
        if y.is_floating_point():
            raise ValueError(
                f"targets must be {len(x)} class indices but are {y.dtype}: soft targets (label"
                " smoothing, mixup) are not covered, the loss is the plain cross-entropy"
            )
        if y.ndim != 1 or len(x) != len(y) or y.dtype == torch.bool:
            raise ValueError(
                f"targets must be {len(x)} class indices but are {y.dtype}, shape {tuple(y.shape)}"
            )
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            yield x[part].detach().to(device, dtype), y[part].to(device, torch.int64)


def first_samples(source: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the first batch, of two samples where there are two: one alone cannot be mixed up.

    Raises:
        ValueError: If there are no samples, or inputs of several shapes.
    """
    first = next(source, None)
    if first is None:
        raise ValueError("`data` has no samples")
    if len(first[0]) == 1:
        second = next(source, None)
        if second is not None and second[0].shape[1:] == first[0].shape[1:]:
            first = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
        elif second is not None:
            raise ValueError(f"inputs have several shapes: {first[0].shape}, {second[0].shape}")
    return first


def split(
    first: tuple[Tensor, Tensor], rest: Iterable[tuple[Tensor, Tensor]], size: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield batches of at most `size` samples."""
    for x, y in itertools.chain([first], rest):
        yield from zip(torch.split(x, size), torch.split(y, size), strict=True)


def memory_budget(device: torch.device) -> int:
    """Return how many bytes the measure may use beside the model: a fraction of what is free.

    On a CPU at most one GiB, more would not be faster.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + cached) // 2
    import psutil

    return min(_CPU_BYTES, int(psutil.virtual_memory().available) // 4)


def most_samples(
    budget: int, graph_bytes: int, map_bytes: int, weights: int, device: torch.device
) -> int:
    """Return how many samples to work on at a time.

    As many as fit into the budget, at most 256; on a CPU about as many as have their maps in the
    cache.

    Args:
        budget: Bytes.
        graph_bytes: What the recorded graph keeps, per sample.
        map_bytes: What a forward pass holds beside it at any moment, per sample.
        weights: Bytes of the model.
        device: Where it computes.

    Returns:
        At least 1.

    Example:
        >>> gpu, cpu = torch.device("cuda"), torch.device("cpu")
        >>> most_samples(10_000, 3_000, 1_000, 0, gpu), most_samples(10**9, 0, 1, 0, gpu)
        (2, 256)
        >>> most_samples(10**9, 0, 10**6, 0, cpu), most_samples(10**9, 0, 10**6, 40 * 10**6, cpu)
        (25, 65)
    """
    samples = min(MOST_SAMPLES, max(1, budget // max(1, graph_bytes + map_bytes)))
    if device.type == "cpu":
        fast = (_CPU_CACHE_BYTES + weights) // max(1, map_bytes)
        samples = min(samples, max(_CPU_SAMPLES, fast))
    return samples
