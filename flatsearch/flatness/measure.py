"""`relative_flatness`: the public function."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.accumulator import Accumulator
from flatsearch.flatness.batches import (
    MOST_SAMPLES,
    Data,
    as_batches,
    iterate,
    memory_budget,
    most_samples,
)
from flatsearch.flatness.layers import locate
from flatsearch.flatness.normalise import input_scales
from flatsearch.flatness.precision import exact_arithmetic
from flatsearch.flatness.result import FlatnessResult, LayerFlatness
from flatsearch.flatness.watch import keep_random_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flatsearch.flatness.watch import RandomState

__all__ = ["FlatnessResult", "LayerFlatness", "relative_flatness"]

Normalize = Literal["input"]


def relative_flatness(
    model: nn.Module,
    data: Data,
    layers: str | Sequence[str] = "last",
    normalize: Normalize | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    classes: int | None = None,
    skip_unsupported: bool = False,
) -> FlatnessResult:
    """Compute the exact relative flatness of a classifier's convolution kernels.

    For a kernel W (C filters w_c of fan-in d), with H the Hessian of the mean cross-entropy in W,

        kappa = sum_cc' <w_c, w_c'> Tr(H_cc')

    exactly, without random probes, and beside it the trace and `noise_loss`: by how much the loss
    is expected to rise when every filter is disturbed by noise of a relative size. Where the
    features after global pooling treat the convolution's channels separately (batch norm, residual
    sums, activations, pooling) it is one contraction beside the forward pass, second derivatives of
    smooth activations included. Any other convolution takes K - 1 backward passes, which serve all
    layers together, and gives the Hessian where the rest of the network is piecewise linear, the
    Gauss-Newton matrix elsewhere. Which of it holds is proved from the recorded operations of every
    batch.

    Relative flatness: Petzka et al., "Relative Flatness and Generalization", NeurIPS 2021,
    arXiv 2001.00939, definition 3; its exact closed form for the kernels of convolutional networks:
    Taleghani, Mohammadi and Marchetti, arXiv 2603.09016. The forms used here are derived in
    `contraction`, `noise_loss` in `result`.

    Args:
        model: Any convolutional network that maps inputs to logits (N, K) with global pooling
            before the classifier. Measured in eval mode; its mode, weights and gradients are left
            alone. The loss is the plain mean cross-entropy, whatever it was trained with.
        data: A pair (inputs, integer targets) of tensors, or an iterable of such batches.
            Moved to the model's device batch by batch.
        layers: "last" for the last convolution executed, "main" for the last one of the longest
            path, gates and shortcuts aside, see `main_path`; "all" for every one, a name, or
            several names, of convolutions or of the linear classifier; "head" for the latter.
        normalize: None for the measure as defined; "input" for kernels on inputs of unit standard
            deviation per channel, which makes it invariant to a rescaling of the layer before,
            for one more forward pass.
        dtype: torch.float32 or torch.float64; the model's own where None, and float32 for
            half-precision models. float32 is computed without TF32, and layers whose numbers lose
            more than three digits to cancellation are measured again in float64, if `data` can be
            read again; see `rounding`.
        batch_size: The most samples at a time; where None, as many as suit the device and fit into
            the free memory, whatever the size of the batches in `data`. The result does not
            depend on it.
        classes: The most backward passes per batch. Convolutions that take one per class are
            estimated from that many where there are more: without bias, and with standard errors
            that contain it; see `FlatnessResult.classes`. None for exact values.
        skip_unsupported: Whether layers that the derivation does not cover are left out and listed
            in `result.skipped`, where others are measured.

    Returns:
        The measure with its standard error, the loss and the accuracy.

    Raises:
        UnsupportedModelError: If the derivation does not cover the model; names the layer.
        NonFiniteError: If the logits are NaN or infinite.
        ValueError: If the data are empty or malformed, or an argument is out of range.
        TypeError: If the inputs are not floating-point tensors.

    Example:
        Two classes, one 1x1 filter w = 2 on one pixel of value 1, classifier v = (1, -1):
        the features are g = 2, p = sigmoid(4), H = p (1 - p) (v_1 - v_2)^2 x^2 and
        kappa = w^2 H = 16 p (1 - p).

        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(1, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.fill_(2), net[2].bias.zero_()
        ...     _ = net[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> r = relative_flatness(net, (torch.ones(1, 1, 1, 1), torch.tensor([0])))
        >>> p = torch.sigmoid(torch.tensor(4.0))
        >>> abs(r.relative_flatness - float(16 * p * (1 - p))) < 1e-6
        True

        One filter of one weight: nu is kappa, and noise of 50% costs 0.5^2 / 2 of it.

        >>> abs(r.noise_loss(sigma=0.5) - float(2 * p * (1 - p))) < 1e-6
        True
    """
    measured = accumulate(
        model,
        data,
        layers,
        normalize,
        dtype,
        batch_size,
        classes,
        skip_unsupported=skip_unsupported,
    )
    return measured.result(normalize)


def accumulate(
    model: nn.Module,
    data: Data,
    layers: str | Sequence[str],
    normalize: Normalize | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    classes: int | None = None,
    *,
    skip_unsupported: bool = False,
) -> Accumulator:
    """Return the numbers of every sample that `relative_flatness` reduces."""
    if normalize not in {None, "input"}:
        raise ValueError(f"`normalize` must be None or 'input' but got {normalize!r}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"`batch_size` must be at least 1 but got {batch_size!r}")
    if classes is not None and (not isinstance(classes, int) or classes < 1):
        raise ValueError(f"`classes` must be at least 1 but got {classes!r}")
    if not (isinstance(layers, (str, Sequence)) and layers) or not all(
        isinstance(name, str) for name in layers
    ):
        raise ValueError(
            f"`layers` must be 'last', 'main', 'all', 'head', or names but got {layers!r}"
        )
    compiled: Any = getattr(model, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        model = compiled
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    device, dtype = _device_and_dtype(model, dtype)
    batches = as_batches(data, twice=normalize is not None)
    with exact_arithmetic(device), keep_random_state(device) as random:
        measure = functools.partial(
            _measure,
            model,
            batches,
            normalize=normalize,
            classes=classes,
            skip_unsupported=skip_unsupported,
            random=random,
        )
        measured = measure(layers, dtype, batch_size)
        uncertain = measured.uncertain()
        if uncertain and dtype == torch.float32 and not isinstance(batches, Iterator):
            size = None if batch_size is None else max(1, batch_size // 2)
            # Not every model and device can: then it is left at saying so, in `rounding`.
            with contextlib.suppress(RuntimeError, TypeError, UnsupportedModelError):
                measured.replace(measure(uncertain, torch.float64, size))
    return measured


def _measure(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    layers: str | Sequence[str],
    dtype: torch.dtype,
    batch_size: int | None,
    *,
    normalize: Normalize | None,
    classes: int | None,
    skip_unsupported: bool,
    random: RandomState,
) -> Accumulator:
    device = next(model.parameters()).device
    source = iterate(batches, device, dtype, MOST_SAMPLES)
    first = _first_samples(source)
    network, found = locate(
        model, dtype, first[0], layers, skip_unsupported=skip_unsupported, random=random
    )
    # A third for the graph, a quarter for the factors: what is freed between is not at once used
    # again, and backward passes hold maps of their own.
    budget = memory_budget(device)
    weights = sum(parameter.nbytes for parameter in network.model.parameters())
    size = batch_size or most_samples(
        budget // 3, found.graph_bytes, found.map_bytes, weights, device
    )
    scales: dict[str, Tensor] = {}
    chunks = _resume(first, source, size)
    if normalize == "input":
        # One pass after the other: some loaders have only one iterator.
        source.close()
        scales = input_scales(network, found.names, iterate(batches, device, dtype, size))
        chunks = iterate(batches, device, dtype, size)
    measured = Accumulator(network, found, scales, budget // 4, classes)
    for x, y in chunks:
        measured.add(x, y)
    return measured


def _device_and_dtype(
    model: nn.Module, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UnsupportedModelError("the model has no parameters")
    devices = sorted({str(p.device) for p in model.parameters()})
    if len(devices) > 1:
        raise UnsupportedModelError(f"the model is spread over several devices: {devices}")
    if dtype is None:
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    if dtype not in {torch.float32, torch.float64}:
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64 but got {dtype}")
    return parameter.device, dtype


def _first_samples(source: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the first batch, of two samples where there are two: one alone cannot be mixed up."""
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


def _resume(
    first: tuple[Tensor, Tensor], rest: Iterable[tuple[Tensor, Tensor]], size: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield batches of at most `size` samples."""
    for x, y in itertools.chain([first], rest):
        yield from zip(torch.split(x, size), torch.split(y, size), strict=True)
