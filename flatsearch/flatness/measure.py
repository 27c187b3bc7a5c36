"""`relative_flatness`: the public function."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsearch.errors import NonFiniteError, UnsupportedModelError
from flatsearch.flatness.batches import Data, as_batches, iterate, memory_budget, most_samples
from flatsearch.flatness.contraction import by_factors, separable_norms
from flatsearch.flatness.gauss_newton import backpropagate, factor_sums, sample_coupling
from flatsearch.flatness.graph import Proof, examine
from flatsearch.flatness.locate import Located, locate
from flatsearch.flatness.normalise import ChannelMoments, scale_input, scale_kernel
from flatsearch.flatness.passes import Layer, Pass, State, copy_state, forward, measuring
from flatsearch.flatness.result import FlatnessResult, LayerFlatness, summarise
from flatsearch.flatness.softmax import SoftmaxRoot
from flatsearch.flatness.tail import differentiate_tail

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FlatnessResult", "LayerFlatness", "relative_flatness"]

Normalize = Literal["input"]

# Entries of the arrays in between that are worked on at a time: about what stays in a CPU core's
# cache, and enough to fill a GPU.
_CHUNK_ENTRIES = {"cpu": 2**18, "other": 2**25}
# Both sides of the coupling check are the same sums times a power of two, so they agree to the
# last bits; the margin is for devices that sum in another order each time.
_COUPLING_TOLERANCE = 200.0


def relative_flatness(
    model: nn.Module,
    data: Data,
    layers: str | Sequence[str] = "last",
    normalize: Normalize | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
) -> FlatnessResult:
    """Compute the exact relative flatness of a classifier's convolution kernels.

    For a kernel W (C filters w_c of fan-in d), with H the Hessian of the mean cross-entropy in W,

        kappa = sum_cc' <w_c, w_c'> Tr(H_cc')

    exactly, without random probes. Where the features after global pooling treat the
    convolution's channels separately (batch norm, residual sums, activations, pooling) it is
    one contraction beside the forward pass, second derivatives of smooth activations included.
    Any other convolution takes K - 1 backward passes, which serve all layers together, and gives
    the Hessian where the rest of the network is piecewise linear, the Gauss-Newton matrix
    elsewhere. Which of it holds is proved from the recorded operations of every batch.

    Relative flatness: Petzka et al., "Relative Flatness and Generalization", NeurIPS 2021,
    arXiv 2001.00939, definition 3. The forms for kernels are derived in `contraction`.

    Args:
        model: Any convolutional network that maps inputs to logits (N, K) with global pooling
            before the classifier. Measured in eval mode; its mode, weights and gradients are left
            alone. The loss is the plain mean cross-entropy, whatever it was trained with.
        data: A pair (inputs, integer targets) of tensors, or an iterable of such batches.
            Moved to the model's device batch by batch.
        layers: "last" for the last convolution executed, "all" for every one, a name, or several
            names, of convolutions or of the linear classifier; "head" for the latter.
        normalize: None for the measure as defined; "input" for kernels on inputs of unit standard
            deviation per channel, which makes it invariant to a rescaling of the layer before,
            for one more forward pass.
        dtype: torch.float32 or torch.float64; the model's own where None, and float32 for
            half-precision models. float32 is computed without TF32.
        batch_size: The most samples at a time; where None, as many as suit the device and fit into
            the free memory, whatever the size of the batches in `data`. The result does not
            depend on it.

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
    """
    if normalize not in {None, "input"}:
        raise ValueError(f"`normalize` must be None or 'input' but got {normalize!r}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"`batch_size` must be at least 1 but got {batch_size!r}")
    if not (isinstance(layers, (str, Sequence)) and layers) or not all(
        isinstance(name, str) for name in layers
    ):
        raise ValueError(
            f"`layers` must be 'last', 'all', 'head', or layer names but got {layers!r}"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    device, dtype = _device_and_dtype(model, dtype)
    batches = as_batches(data, twice=normalize is not None)
    with measuring(model, device):
        state = copy_state(model, dtype)
        source = iterate(batches, device, dtype)
        first = next(source, None)
        if first is None:
            raise ValueError("`data` has no samples")
        found = locate(model, state, first[0], layers)
        budget = memory_budget(device) // 2
        weights = sum(value.nbytes for value in state.values())
        size = batch_size or most_samples(
            budget, found.graph_bytes, found.map_bytes, weights, device
        )
        scales: dict[str, Tensor] = {}
        if normalize == "input":
            scales = _input_scales(model, state, found, iterate(batches, device, dtype, size))
        measured = _Measurement(model, state, found, scales, budget)
        for x, y in _resume(first, source, size):
            measured.add(x, y)
    return measured.result(normalize)


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


def _resume(
    first: tuple[Tensor, Tensor], rest: Iterable[tuple[Tensor, Tensor]], size: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield batches of at most `size` samples."""
    for x, y in itertools.chain([first], rest):
        yield from zip(torch.split(x, size), torch.split(y, size), strict=True)


def _input_scales(
    model: nn.Module, state: State, found: Located, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Return the standard deviation of every input channel of the measured layers."""
    moments = ChannelMoments()
    for x, _ in batches:
        run = forward(model, state, x, found.layers, found.classifier)
        moments.add(run.inputs)
        if found.head and found.classifier is not None:
            moments.add({found.classifier: run.features.detach()})
    return moments.scales(next(iter(state.values())).dtype)


@dataclass
class _Samples:
    """One number per sample for one layer, a tensor per batch, still on the device."""

    kappa: list[Tensor] = field(default_factory=list)
    trace: list[Tensor] = field(default_factory=list)
    kappa_second: list[Tensor] = field(default_factory=list)
    trace_second: list[Tensor] = field(default_factory=list)


class _Measurement:
    """Batches in, result out. Nothing in between waits for the device."""

    def __init__(
        self, model: nn.Module, state: State, found: Located, scales: dict[str, Tensor], budget: int
    ) -> None:
        self._model, self._state, self._found = model, state, found
        self._scales, self._budget = scales, budget
        # W (C, d) and Q = W W^T, once: for many filters Q costs as much as several samples.
        self._kernels = {layer.name: self._kernel(layer) for layer in found.layers}
        names = [*self._kernels, *([found.classifier] if found.head else [])]
        self._samples = {name: _Samples() for name in names if name is not None}
        self._hessian = True
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._irregular: list[Tensor] = []
        self._coupling: list[Tensor] = []
        self._classes = 0

    def _kernel(self, layer: Layer) -> tuple[Tensor, Tensor]:
        W = self._state[f"{layer.name}.weight"]
        if layer.name in self._scales:
            W = scale_kernel(W, self._scales[layer.name], layer.geometry.groups)
        W = W.flatten(1)
        return W, W @ W.T

    def _input(self, run: Pass, name: str) -> Tensor:
        x = run.inputs[name]
        return scale_input(x, self._scales[name]) if name in self._scales else x

    def add(self, x: Tensor, y: Tensor) -> None:
        """Measure one batch."""
        found = self._found
        run = forward(self._model, self._state, x, found.layers, found.classifier)
        logits = run.logits.detach()
        self._classes = logits.shape[1]
        self._targets.append(y)
        y = y.clamp(0, self._classes - 1)  # judged at the end, with all others
        self._losses.append(F.cross_entropy(logits, y, reduction="none"))
        self._hits.append(logits.argmax(1) == y)
        self._irregular.append(run.irregular)
        if found.head:
            self._add_head(run)
        if not found.layers:
            return
        proof = examine(run.logits, run.features, run.edges)
        exact = proof.linear | proof.pointwise
        self._hessian = self._hessian and all(layer.name in exact for layer in found.layers)
        closed = [layer for layer in found.layers if layer.name in proof.channelwise]
        others = [layer for layer in found.layers if layer.name not in proof.channelwise]
        for layer in closed:
            last = layer is closed[-1] and not others
            self._add_closed(layer, run, proof, y, keep_graph=not last)
        if others:
            self._add_others(others, run, proof)

    def _add_head(self, run: Pass) -> None:
        """Append the classifier's own kernel: H_kk' = (diag(p) - p p^T)_kk' g g^T."""
        name = self._found.classifier
        assert name is not None  # noqa: S101 - `locate` finds a head only with a classifier
        g, V = run.features.detach(), self._state[f"{name}.weight"]
        if name in self._scales:
            g, V = scale_input(g, self._scales[name]), scale_kernel(V, self._scales[name])
        norm = g.square().sum(1)
        root = SoftmaxRoot(run.logits.detach())
        samples = self._samples[name]
        samples.kappa.append(norm * root.times(V).square().sum((1, 2)))
        samples.trace.append(norm * root.trace())

    def _add_closed(
        self, layer: Layer, run: Pass, proof: Proof, y: Tensor, *, keep_graph: bool
    ) -> None:
        """Append a layer whose channels the features keep apart."""
        curved = self._hessian and layer.name not in proof.linear
        S, second = differentiate_tail(
            run.features, run.edges[layer.name], second=curved, keep_graph=keep_graph
        )
        classifier = self._found.classifier
        V = None if classifier is None else self._state[f"{classifier}.weight"]
        x, logits = self._input(run, layer.name), run.logits.detach()
        W, Q = self._kernels[layer.name]
        samples, classes = self._samples[layer.name], logits.shape[1]
        channels, positions = S.shape[1], S[0, 0].numel()
        if by_factors(channels, positions, classes - 1):
            entries = max(channels * positions * classes, x[0].numel())
        else:
            entries = max(channels**2, channels * classes, channels * positions)
        size = self._chunk(entries, x)
        for part in (slice(i, i + size) for i in range(0, len(x), size)):
            b = SoftmaxRoot(logits[part]).times(V)
            trace, kappa = separable_norms(x[part], S[part], b, W, Q, layer.geometry)
            samples.trace.append(trace)
            samples.kappa.append(kappa)
        added = x.new_zeros(len(x), channels)
        if second is not None:
            # r_c sum_p f''_c(p) |Z(:, p)|^2, the diagonal blocks' second-order traces
            residual = logits.softmax(1) - F.one_hot(y, classes)
            residual = residual if V is None else residual @ V
            added = residual * (second * _patch_norms(x, layer, second)).sum((2, 3))
        samples.trace_second.append(added.sum(1))
        samples.kappa_second.append(added @ Q.diagonal())

    def _add_others(self, layers: list[Layer], run: Pass, proof: Proof) -> None:
        """Append the layers that take a backward pass per class."""
        edges = [run.edges[layer.name] for layer in layers]
        if not proof.samplewise:
            self._coupling.append(sample_coupling(run.logits, edges))
        root, n = SoftmaxRoot(run.logits.detach()), len(run.logits)
        zeros = run.logits.new_zeros(n)
        sums = {layer.name: (zeros, zeros) for layer in layers}
        block = max(1, self._budget // max(1, n * self._found.factor_bytes))
        for start in range(0, root.columns, block):
            columns = range(start, min(start + block, root.columns))
            last = columns[-1] == root.columns - 1
            factors = backpropagate(run.logits, edges, root, columns, last=last)
            for layer, g in zip(layers, factors, strict=True):
                if not g:
                    continue
                x, (W, Q) = self._input(run, layer.name), self._kernels[layer.name]
                trace, kappa = factor_sums(x, g, W, Q, layer.geometry, self._chunk(1, x))
                old_trace, old_kappa = sums[layer.name]
                sums[layer.name] = (old_trace + trace, old_kappa + kappa)
        for name, (trace, kappa) in sums.items():
            samples = self._samples[name]
            samples.trace.append(trace)
            samples.kappa.append(kappa)
            samples.trace_second.append(zeros)
            samples.kappa_second.append(zeros)

    @staticmethod
    def _chunk(entries: int, x: Tensor) -> int:
        """Return how many samples to contract at a time."""
        return max(1, _CHUNK_ENTRIES["cpu" if x.device.type == "cpu" else "other"] // entries)

    def result(self, normalize: Normalize | None) -> FlatnessResult:
        """Judge the checks, and reduce."""
        targets, losses = torch.cat(self._targets), torch.cat(self._losses)
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= self._classes:
            raise ValueError(
                f"targets must be in [0, {self._classes - 1}], the model's classes,"
                f" but range from {low} to {high}"
            )
        if not bool(losses.isfinite().all()):
            raise NonFiniteError("the model gives NaN or infinite logits on these data")
        if bool(torch.stack(self._irregular).any()):
            raise UnsupportedModelError(
                f"layer {self._found.classifier!r}: the logits are not this linear layer's weight"
                " times its input, plus its bias"
            )
        self._judge_coupling(torch.finfo(losses.dtype).eps)
        samples = {}
        for name, columns in self._samples.items():
            kappa, trace = torch.cat(columns.kappa).double(), torch.cat(columns.trace).double()
            if self._hessian and columns.kappa_second:
                kappa = kappa + torch.cat(columns.kappa_second)
                trace = trace + torch.cat(columns.trace_second)
            samples[name] = (kappa, trace)
        kind: Literal["hessian", "gauss-newton"] = "hessian" if self._hessian else "gauss-newton"
        return summarise(samples, losses, torch.cat(self._hits), kind, normalize)

    def _judge_coupling(self, eps: float) -> None:
        if not self._coupling:
            return
        coupling = float(torch.stack(self._coupling).max())
        if coupling != coupling:
            raise NonFiniteError("the model has NaN derivatives on these data")
        if coupling > _COUPLING_TOLERANCE * eps:
            raise UnsupportedModelError(
                "the model mixes samples: the logits of one depend on others of its batch"
            )


def _patch_norms(x: Tensor, layer: Layer, like: Tensor) -> Tensor:
    """Return |Z(:, p)|^2 per filter, (N, C or 1, rows, columns)."""
    geometry = layer.geometry
    padded = torch.unflatten(geometry.pad(x).square(), 1, (geometry.groups, -1)).sum(2)
    shifts = geometry.shifts(*like.shape[2:])
    norms = torch.stack([padded[:, :, rows, columns] for rows, columns in shifts]).sum(0)
    return norms.repeat_interleave(like.shape[1] // geometry.groups, 1)
