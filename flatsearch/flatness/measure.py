"""`relative_flatness`: the public function and its result."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsearch.errors import NonFiniteError, UnsupportedModelError
from flatsearch.flatness.contraction import ConvGeometry, filter_grams, quadratic_forms
from flatsearch.flatness.locate import Layer, Pass, State, forward, locate
from flatsearch.flatness.tail import TailDerivatives, differentiate_tail
from flatsearch.models import eval_mode

__all__ = ["FlatnessResult", "LayerFlatness", "relative_flatness"]

Kind = Literal["hessian", "gauss-newton"]
Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]

_DEFAULT_BATCH_SIZE = 256
# Entries of M and of the intermediate arrays that are worked on at a time: about what stays in
# a CPU core's cache, and enough to fill a GPU.
_CHUNK_ENTRIES = {"cpu": 2**18, "other": 2**25}
# Both sides of the separability check are the same sums times a power of two, so they agree to the
# last bits; the margin is for devices that sum in another order each time.
_SEPARABLE_TOLERANCE = 200.0


@dataclass(frozen=True)
class LayerFlatness:
    """One convolution's measure.

    Attributes:
        relative_flatness: kappa = sum_cc' <w_c, w_c'> Tr(H_cc'); small is flat.
        hessian_trace: Tr(H) of the mean cross-entropy's Hessian in the kernel.
        standard_error: Of `relative_flatness` as a mean over samples; NaN for one sample.
    """

    relative_flatness: float
    hessian_trace: float
    standard_error: float


@dataclass(frozen=True)
class FlatnessResult:
    """What `relative_flatness` returns; the first three are sums over the measured layers.

    Attributes:
        relative_flatness: kappa. Small is flat; 0 for a constant predictor, and shrinking with
            the loss, so read it beside `loss`.
        hessian_trace: Trace of the kernels' Hessians.
        standard_error: Of `relative_flatness`, from its spread over the samples.
        loss: Mean cross-entropy, in nats.
        accuracy: Fraction of the samples classified correctly.
        n_samples: N.
        kind: "hessian" where the numbers are those of the Hessian, "gauss-newton" where the
            second derivatives of the layers after the kernel could not be included.
        layers: The same three numbers per layer, by module name, in order of execution.
    """

    relative_flatness: float
    hessian_trace: float
    standard_error: float
    loss: float
    accuracy: float
    n_samples: int
    kind: Kind
    layers: Mapping[str, LayerFlatness]


@dataclass
class _Sums:
    """Per-sample columns of one layer, a tensor per batch, still on the device."""

    kappa: list[Tensor] = field(default_factory=list)
    trace: list[Tensor] = field(default_factory=list)
    kappa_second: list[Tensor] = field(default_factory=list)
    trace_second: list[Tensor] = field(default_factory=list)
    not_separable: list[Tensor] = field(default_factory=list)
    not_elementwise: list[Tensor] = field(default_factory=list)


def relative_flatness(
    model: nn.Module,
    data: Data,
    layers: str | Sequence[str] = "last",
    normalize: None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
) -> FlatnessResult:
    """Compute the exact relative flatness of a classifier's convolution kernels.

    For the kernel W (C filters w_c of fan-in d) of a convolution whose output is pooled
    globally and classified linearly, with H the Hessian of the mean cross-entropy in W,

        kappa = sum_cc' <w_c, w_c'> Tr(H_cc')

    in closed form: no random probes, no second backward pass through the network. Piecewise
    linear tails (ReLU, batch norm, residual sums, pooling) need first derivatives only; smooth
    tails (GELU, SiLU) add their second derivative exactly. That the tail treats channels and
    samples separately is verified on every batch.

    Relative flatness: Petzka et al., "Relative Flatness and Generalization", NeurIPS 2021,
    arXiv 2001.00939, definition 3. The closed form for kernels is derived in `contraction`.

    Args:
        model: Any module that maps inputs to logits (N, K), ending in global pooling and one
            `nn.Linear`. Measured in eval mode; its mode, weights, and gradients are left alone.
        data: A pair (inputs, integer targets) of tensors, or an iterable of such batches.
            Moved to the model's device batch by batch.
        layers: "last" for the last convolution executed, "all", a name, or several names. Every
            named layer must itself be covered.
        normalize: Only None: the measure as defined, without input normalisation.
        dtype: torch.float32 or torch.float64; the model's own where None, and float32 for
            half-precision models. float32 is computed without TF32.
        batch_size: Samples per forward pass; 256 where None and `data` is a pair, the batches
            as they come otherwise. The result does not depend on it.

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
        ...     _ = net[0].weight.fill_(2.0), net[2].bias.zero_()
        ...     _ = net[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> r = relative_flatness(net, (torch.ones(1, 1, 1, 1), torch.tensor([0])))
        >>> p = 1 / (1 + math.exp(-4))
        >>> abs(r.relative_flatness - 16 * p * (1 - p)) < 1e-6
        True
    """
    if normalize is not None:
        raise ValueError(f"`normalize` must be None but got {normalize!r}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"`batch_size` must be at least 1 but got {batch_size!r}")
    if not (isinstance(layers, (str, Sequence)) and layers) or not all(
        isinstance(name, str) for name in layers
    ):
        raise ValueError(f"`layers` must be 'last', 'all', or layer names but got {layers!r}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    device, dtype = _device_and_dtype(model, dtype)
    batches = _batches(data, device, dtype, batch_size)
    with _measuring(model, device):
        first = next(batches, None)
        if first is None:
            raise ValueError("`data` has no samples")
        state = _state(model, dtype)
        found, classifier = locate(model, state, first[0], layers)
        sums = {layer.name: _Sums() for layer in found}
        losses, hits = [], []
        for x, y in itertools.chain([first], batches):
            run = forward(model, state, x, found, classifier)
            logits = run.logits
            _check_targets(y, logits)
            losses.append(F.cross_entropy(logits, y, reduction="none"))
            hits.append(logits.argmax(1) == y)
            for layer in found:
                V = state[f"{classifier}.weight"]
                W = state[f"{layer.name}.weight"]
                keep_graph = layer is not found[-1]
                tail = differentiate_tail(
                    run.features, run.outputs[layer.name], keep_graph=keep_graph
                )
                _add_batch(sums[layer.name], layer, run, tail, W, V, y)
    return _summarise(sums, torch.cat(losses), torch.cat(hits))


def _device_and_dtype(
    model: nn.Module, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UnsupportedModelError("the model has no parameters")
    if dtype is None:
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    if dtype not in {torch.float32, torch.float64}:
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64 but got {dtype}")
    return parameter.device, dtype


def _batches(
    data: Data, device: torch.device, dtype: torch.dtype, batch_size: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield checked batches on the device in the measure's precision."""
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor)
    source: Iterable[tuple[Tensor, Tensor]] = [data] if pair else data  # type: ignore[list-item,assignment]
    size = _DEFAULT_BATCH_SIZE if pair and batch_size is None else batch_size
    for batch in source:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError("`data` must be (inputs, targets) or an iterable of such batches")
        x, y = batch
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise TypeError(f"inputs and targets must be tensors but got {type(x)}, {type(y)}")
        if not x.is_floating_point():
            raise TypeError(f"inputs must be floating-point images but got {x.dtype}")
        if y.ndim != 1 or len(x) != len(y) or y.is_floating_point() or y.dtype == torch.bool:
            raise ValueError(
                f"targets must be {len(x)} class indices but are {y.dtype}, shape {tuple(y.shape)}"
            )
        step = size or max(len(x), 1)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            yield x[part].to(device, dtype), y[part].to(device, torch.int64)


def _check_targets(y: Tensor, logits: Tensor) -> None:
    classes = logits.shape[1]
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"targets must be in [0, {classes - 1}], the model's classes,"
            f" but range from {int(y.min())} to {int(y.max())}"
        )


def _state(model: nn.Module, dtype: torch.dtype) -> State:
    """Return detached parameters and buffers, floating-point ones in the measure's precision."""
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    return {
        name: value.detach().to(dtype) if value.is_floating_point() else value.detach()
        for name, value in named
    }


@contextlib.contextmanager
def _measuring(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, full precision and gradients on; everything as it was afterwards."""
    backends: Any = torch.backends
    attribute: str
    exact: str | bool
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # since torch 2.9
        attribute, exact = "fp32_precision", "ieee"
        switches = [
            backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv,
        ]  # fmt: skip
    else:
        attribute, exact = "allow_tf32", False
        switches = [backends.cuda.matmul, backends.cudnn]
    precisions = [getattr(switch, attribute) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, attribute, exact)
        with (
            eval_mode(model),
            torch.inference_mode(False),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        for switch, precision in zip(switches, precisions, strict=True):
            setattr(switch, attribute, precision)


def _chunk(layer: ConvGeometry, x: Tensor, channels: int, classes: int) -> int:
    """Return how many samples to contract at a time."""
    rows, columns = layer.output_size(x.shape[2], x.shape[3])
    entries = max(channels**2, channels * classes, channels * rows * columns)
    budget = _CHUNK_ENTRIES["cpu" if x.device.type == "cpu" else "other"]
    return max(1, budget // entries)


def _add_batch(
    sums: _Sums,
    layer: Layer,
    run: Pass,
    tail: TailDerivatives,
    W: Tensor,
    V: Tensor,
    y: Tensor,
) -> None:
    """Append one batch's per-sample trace and kappa of one layer."""
    x = run.inputs[layer.name]
    p = run.logits.softmax(1)
    filters = W.flatten(1)
    Q = filters @ filters.T
    mean = p @ V
    size = _chunk(layer.geometry, x, len(W), len(V))
    for part in (slice(i, i + size) for i in range(0, len(x), size)):
        M = filter_grams(x[part], tail.first[part], layer.geometry)
        b = p[part].sqrt()[:, :, None] * (V - mean[part, None, :])
        trace, kappa = quadratic_forms(M, Q, b)
        sums.trace.append(trace)
        sums.kappa.append(kappa)
    sums.not_separable.append(tail.not_separable)
    sums.not_elementwise.append(tail.not_elementwise)
    if tail.second is None:
        zeros = x.new_zeros(len(x))
        sums.trace_second.append(zeros)
        sums.kappa_second.append(zeros)
        return
    # r_c sum_p f''_c(p) |Z(:, p)|^2, the diagonal blocks' second-order traces
    residual = mean - V[y]
    padded = layer.geometry.pad(x).square().sum(1)
    shifts = layer.geometry.shifts(*tail.second.shape[2:])
    norms = sum(padded[:, rows, columns] for rows, columns in shifts)
    added = residual * (tail.second * norms[:, None]).sum((2, 3))  # type: ignore[index]
    sums.trace_second.append(added.sum(1))
    sums.kappa_second.append(added @ Q.diagonal())


def _summarise(sums: dict[str, _Sums], losses: Tensor, hits: Tensor) -> FlatnessResult:
    """Judge the checks, and reduce per-sample columns to means and standard errors."""
    if not bool(losses.isfinite().all()):
        raise NonFiniteError("the model gives NaN or infinite logits on these data")
    tolerance = _SEPARABLE_TOLERANCE * torch.finfo(losses.dtype).eps
    kind: Kind = "hessian"
    results: dict[str, LayerFlatness] = {}
    total = torch.zeros(len(losses), dtype=torch.float64, device=losses.device)
    for name, layer in sums.items():
        separable = torch.stack(layer.not_separable)
        if bool(separable.isnan().any()):
            raise NonFiniteError(f"layer {name!r}: the layers after it have NaN derivatives")
        if not bool((separable <= tolerance).all()):
            raise UnsupportedModelError(
                f"layer {name!r}: the layers after it mix its channels (or samples) before the"
                " classifier, so the closed form does not apply"
            )
        kappa, trace = torch.cat(layer.kappa).double(), torch.cat(layer.trace).double()
        if bool((torch.stack(layer.not_elementwise) <= tolerance).all()):
            kappa = kappa + torch.cat(layer.kappa_second)
            trace = trace + torch.cat(layer.trace_second)
        else:
            kind = "gauss-newton"
        total = total + kappa
        results[name] = LayerFlatness(float(kappa.mean()), float(trace.mean()), _error(kappa))
        if not math.isfinite(results[name].relative_flatness + results[name].hessian_trace):
            raise NonFiniteError(
                f"layer {name!r}: the measure overflows; dtype=torch.float64 may help"
            )
    return FlatnessResult(
        relative_flatness=float(total.mean()),
        hessian_trace=math.fsum(layer.hessian_trace for layer in results.values()),
        standard_error=_error(total),
        loss=float(losses.double().mean()),
        accuracy=float(hits.double().mean()),
        n_samples=len(losses),
        kind=kind,
        layers=results,
    )


def _error(per_sample: Tensor) -> float:
    """Return the standard error of the mean; NaN for one sample."""
    n = len(per_sample)
    return float(per_sample.std() / math.sqrt(n)) if n > 1 else math.nan
