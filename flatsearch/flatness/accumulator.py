"""Batches in, result out: which formula applies to which layer of a batch, and the sums.

Nothing between two batches waits for the device; what has to be judged (targets, coupled samples)
is kept there and judged at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from flatsearch.errors import NonFiniteError, UnsupportedModelError
from flatsearch.flatness.contraction import (
    Contracted,
    by_factors,
    factor_entries,
    factor_norms,
    separable_norms,
)
from flatsearch.flatness.forward import Layer, Network, Pass, disagree, forward
from flatsearch.flatness.gauss_newton import backpropagate, sample_coupling
from flatsearch.flatness.normalise import scale_input, scale_kernel
from flatsearch.flatness.parameters import Settled
from flatsearch.flatness.proof import Proof, examine
from flatsearch.flatness.result import (
    FlatnessResult,
    Kind,
    LayerSamples,
    Reduced,
    reduce,
    summarise,
)
from flatsearch.flatness.samplewise import MIXED, two_alone
from flatsearch.flatness.softmax import SampledRoot, SoftmaxRoot
from flatsearch.flatness.tail import differentiate_tail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from flatsearch.flatness.layers import Located

__all__ = ["Accumulator"]

# Entries of the arrays in between that are worked on at a time: about what stays in a CPU core's
# cache, and enough to fill a GPU.
_CHUNK_ENTRIES = {"cpu": 2**18, "other": 2**25}
# Both sides of the coupling check are the same sums times a power of two, so they agree to the
# last bits; the margin is for devices that sum in another order each time.
_COUPLING_TOLERANCE = 200.0
# What a float32 forward and backward pass may be wrong by anyway.
_MOST_ROUNDING = 1e-3
# Of the classes that are drawn: the same ones for the same data.
_SEED = 16


@dataclass
class _Samples:
    """A layer's kappa, trace and nu of every sample, (3, n) per batch, still on the device.

    Attributes:
        W: The layer's kernel, (C, d).
        first: Their Gauss-Newton parts.
        second: What second derivatives add, where there are any.
        sizes: The size of what they were summed from.
    """

    W: Tensor
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._norms = self.W.square().sum(1)

    def add(self, first: Contracted, second: Tensor | None = None) -> None:
        """Append some samples.

        Args:
            first: What the Gauss-Newton matrix gives.
            second: What second derivatives add to its traces, (n, C); None for nothing.
        """
        self.first.append(self._numbers(first.traces, first.kappa))
        sizes = torch.maximum(first.traces, first.terms)
        if second is None:
            self.second.append(torch.zeros_like(self.first[-1]))
        else:
            self.second.append(self._numbers(second, second @ self._norms))
            sizes = sizes + second.abs()
        # kappa is summed from all pairs of filters, of which those of a filter with itself do not
        # cancel.
        self.sizes.append(self._numbers(sizes, sizes @ self._norms))

    def reduced(self, *, second: bool) -> LayerSamples:
        """Return what the result is made of, with or without the second derivatives' part."""
        numbers = torch.cat(self.first, 1).double()
        if second:
            numbers = numbers + torch.cat(self.second, 1)
        precision = torch.finfo(self.W.dtype)
        errors = precision.eps * torch.cat(self.sizes, 1).double()
        if self.W.dtype == torch.float32:  # squares may underflow there
            errors = errors + precision.tiny * self.W.numel()
        return LayerSamples(numbers, errors, fan_in=self.W.shape[1])

    def _numbers(self, traces: Tensor, kappa: Tensor) -> Tensor:
        return torch.stack([kappa, traces.sum(1), traces @ self._norms / self.W.shape[1]])


class Accumulator:
    """The numbers of every sample of every measured layer.

    Args:
        network: What is run.
        found: What is measured.
        scales: By layer, what to divide its input channels by; empty for the measure as defined.
        budget: Bytes that the backpropagated factors may take.
        classes: The most backward passes per batch, so that with more classes what they give is
            estimated; None for no limit.
    """

    def __init__(
        self,
        network: Network,
        found: Located,
        scales: dict[str, Tensor],
        budget: int,
        classes: int | None,
    ) -> None:
        self._network, self._found = network, found
        self._settled = Settled(network.model)
        self._weights = {name: kernel.detach() for name, kernel in network.kernels.items()}
        self._scales, self._budget = scales, budget
        self._most, self._sampled = classes, False
        self._generator = torch.Generator().manual_seed(_SEED)
        # W (C, d) and Q = W W^T, once: for many filters Q costs as much as several samples.
        self._kernels = {
            layer.name: (W, W @ W.T)
            for layer in found.layers
            for W in [self._kernel(layer.name, layer.geometry.groups)]
        }
        self._samples = {name: _Samples(W) for name, (W, _) in self._kernels.items()}
        if found.head and found.classifier is not None:
            self._samples[found.classifier] = _Samples(self._kernel(found.classifier))
        self._hessian = True
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._coupling: list[Tensor] = []
        self._sizes = {1, 2}  # of batches in which images have been compared with fewer
        self._mixed: list[Tensor] = []
        self._classes = 0
        self._read: Reduced | None = None

    def _kernel(self, name: str, groups: int = 1) -> Tensor:
        W = self._weights[name]
        if name in self._scales:
            W = scale_kernel(W, self._scales[name], groups)
        return W.flatten(1)

    def _input(self, run: Pass, name: str) -> Tensor:
        x = run.inputs[name]
        return scale_input(x, self._scales[name]) if name in self._scales else x

    def add(self, x: Tensor, y: Tensor) -> None:
        """Measure one batch."""
        found, alone = self._found, None
        if len(x) not in self._sizes:
            self._sizes.add(len(x))
            # before the batch: a forward pass may change what the batch's graph keeps
            alone = two_alone(self._network, x)
        run = forward(self._network, x, found.layers, found.classifier)
        self._settled.refuse_changed()
        logits = run.logits.detach()
        if alone is not None:
            self._mixed.append(disagree(alone[1], logits[alone[0]]))
        self._classes = logits.shape[1]
        self._targets.append(y)
        y = y.clamp(0, self._classes - 1)  # judged at the end, with all others
        self._losses.append(F.cross_entropy(logits, y, reduction="none"))
        self._hits.append(logits.argmax(1) == y)
        if found.head:
            self._add_head(run)
        if not found.layers:
            return
        proof = examine(run.logits, run.features, run.edges)
        exact = proof.linear | proof.pointwise
        self._hessian = self._hessian and set(run.edges) <= exact
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
        g, logits, samples = run.features.detach(), run.logits.detach(), self._samples[name]
        if name in self._scales:
            g = scale_input(g, self._scales[name])
        V, norm = samples.W, g.square().sum(1)
        for part in _parts(V.numel(), g):
            root = SoftmaxRoot(logits[part])
            kappa = norm[part] * root.times(V).square().sum((1, 2))
            traces = norm[part, None] * root.diagonal()
            samples.add(Contracted(traces, kappa, terms=traces))

    def _add_closed(
        self, layer: Layer, run: Pass, proof: Proof, y: Tensor, *, keep_graph: bool
    ) -> None:
        """Append a layer whose channels the features keep apart."""
        curved = self._hessian and layer.name not in proof.linear
        S, second = differentiate_tail(
            run.features, run.edges[layer.name], second=curved, keep_graph=keep_graph
        )
        classifier = self._found.classifier
        V = None if classifier is None else self._weights[classifier]
        x, logits = self._input(run, layer.name), run.logits.detach()
        W, Q = self._kernels[layer.name]
        classes = logits.shape[1]
        channels, positions = S.shape[1], S[0, 0].numel()
        if by_factors(channels, positions, classes - 1):
            entries = max(channels * positions * classes, x[0].numel())
        else:
            entries = max(channels**2, channels * classes, channels * positions)
        parts = [
            separable_norms(
                x[part], S[part], SoftmaxRoot(logits[part]).times(V), W, Q, layer.geometry
            )
            for part in _parts(entries, x)
        ]
        added = None
        if second is not None:
            # r_c sum_p f''_c(p) |Z(:, p)|^2, the diagonal blocks' second-order traces
            # p - onehot(y), with p_y - 1 as a sum, which does not cancel
            wrong = logits.softmax(1).scatter(1, y[:, None], 0.0)
            residual = wrong.scatter(1, y[:, None], -wrong.sum(1, keepdim=True))
            residual = residual if V is None else residual @ V
            added = residual * (second * layer.geometry.patch_norms(x, channels)).sum((2, 3))
        self._samples[layer.name].add(_joined(parts), added)

    def _add_others(self, layers: list[Layer], run: Pass, proof: Proof) -> None:
        """Append the layers that take a backward pass per class."""
        zeros, n = run.logits.new_zeros, len(run.logits)
        nothing = {layer.name: zeros(n, len(self._kernels[layer.name][0])) for layer in layers}
        sums = {name: Contracted(zero, zero[:, 0], zero) for name, zero in nothing.items()}
        # The logits of this batch may not depend on some of them.
        layers = [layer for layer in layers if layer.name in run.edges]
        edges = [run.edges[layer.name] for layer in layers]
        if edges and not proof.samplewise:
            self._coupling.append(sample_coupling(run.logits, edges))
        root = self._root(run.logits.detach())
        block = max(1, self._budget // max(1, n * self._found.factor_bytes))
        for start in range(0, root.columns if edges else 0, block):
            columns = range(start, min(start + block, root.columns))
            last = columns[-1] == root.columns - 1
            factors = backpropagate(run.logits, edges, root, columns, last=last)
            for layer, g in zip(layers, factors, strict=True):
                if not g:
                    continue
                x, (W, Q) = self._input(run, layer.name), self._kernels[layer.name]
                size = factor_entries(x, g, layer.geometry)
                more = _joined([
                    factor_norms(x[part], [factor[part] for factor in g], W, Q, layer.geometry)
                    for part in _parts(size, x)
                ])
                sums[layer.name] = Contracted(*map(torch.add, sums[layer.name], more))
            del factors, g  # before the next ones are made
        for name, whole in sums.items():
            self._samples[name].add(whole)

    def _root(self, logits: Tensor) -> SoftmaxRoot | SampledRoot:
        root = SoftmaxRoot(logits)
        if self._most is None or root.columns <= self._most:
            return root
        self._sampled = True
        return SampledRoot(root, self._most, self._generator)

    def uncertain(self) -> list[str]:
        """Return the layers whose numbers have lost too many digits, or overflow."""
        rows = self._reduced().layers
        return [name for name in self._samples if not rows[name].rounding <= _MOST_ROUNDING]

    def replace(self, other: Accumulator) -> None:
        """Take over another's numbers of the layers that it has measured, on the same samples."""
        n, m = (sum(map(len, measured._losses)) for measured in (self, other))
        if n == m and (other._hessian or not self._hessian):
            self._samples |= other._samples
            self._read = None

    def samples(self) -> dict[str, LayerSamples]:
        """Return the numbers of every sample, by layer."""
        return {name: s.reduced(second=self._hessian) for name, s in self._samples.items()}

    def scores(self) -> tuple[Tensor, Tensor]:
        """Return every sample's cross-entropy and whether it is classified correctly, (N,)."""
        return torch.cat(self._losses), torch.cat(self._hits)

    def _reduced(self) -> Reduced:
        """Return what is read from the device, once."""
        if self._read is None:
            targets, losses = torch.cat(self._targets), torch.cat(self._losses)
            none = losses.new_zeros(())
            coupling = torch.stack(self._coupling).max() if self._coupling else none
            finite, together = losses.isfinite().all(), torch.stack([none, *self._mixed]).any()
            checks = [targets.min(), targets.max(), finite, coupling, together]
            self._read = reduce(self.samples(), losses, torch.cat(self._hits), checks)
        return self._read

    def result(self, normalize: Literal["input"] | None) -> FlatnessResult:
        """Judge the checks, and reduce."""
        reduced = self._reduced()
        low, high, finite, coupling, together = reduced.checks
        if low < 0 or high >= self._classes:
            raise ValueError(
                f"targets must be in [0, {self._classes - 1}], the model's classes,"
                f" but range from {low:.0f} to {high:.0f}"
            )
        if not finite:
            raise NonFiniteError("the model gives NaN or infinite logits on these data")
        if coupling != coupling:
            raise NonFiniteError("the model has NaN derivatives on these data")
        if together or coupling > _COUPLING_TOLERANCE * torch.finfo(self._losses[0].dtype).eps:
            raise UnsupportedModelError(MIXED)
        kind: Kind = "hessian" if self._hessian else "gauss-newton"
        classes = self._most if self._sampled else None
        result = summarise(reduced, self.samples(), kind, normalize, classes)
        return replace(result, skipped=self._found.skipped)


def _parts(per_sample: int, x: Tensor) -> Iterator[slice]:
    """Yield the samples to contract at a time, from the numbers that one of them takes."""
    most = _CHUNK_ENTRIES["cpu" if x.device.type == "cpu" else "other"]
    size = max(1, most // per_sample)
    yield from (slice(start, start + size) for start in range(0, len(x), size))


def _joined(parts: list[Contracted]) -> Contracted:
    return Contracted(*map(torch.cat, zip(*parts, strict=True)))
