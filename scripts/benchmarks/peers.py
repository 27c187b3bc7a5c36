"""Other ways to the same numbers, for `measure.py`: each returns (trace, kappa).

Every one is given its best case: the layers in front of the first measured convolution are run
without gradients, and only the measured kernels are differentiated. A method that has no kappa
returns None for it.
"""

from __future__ import annotations

import contextlib
import copy
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import flatsearch

if TYPE_CHECKING:
    from collections.abc import Callable

    Batches = list[tuple[Tensor, Tensor]]
    Result = tuple[float, float | None]  # trace, kappa
    Method = Callable[["Problem", Batches], Result]

__all__ = ["METHODS", "Problem", "UnsuitableError"]

TRACE_ERROR = 0.01  # what the random estimators have to reach


class UnsuitableError(Exception):
    """A method cannot do this network."""


@dataclass
class Problem:
    """A network and what is measured in it.

    Attributes:
        net: The whole network.
        prefix: What runs in front of the first measured convolution.
        tail: The rest.
        kernels: Names of the measured kernels in `tail`.
        layers: The same, as `flatsearch.relative_flatness` wants it.
        exact: The trace in float64, for estimators that stop at an accuracy.
        meter: What measures it again and again.
    """

    net: nn.Module
    prefix: nn.Module
    tail: nn.Module
    kernels: list[str]
    layers: str
    exact: float = float("nan")
    meter: flatsearch.FlatnessMeter | None = None

    def features(self, x: Tensor) -> Tensor:
        """Return the tail's input."""
        with torch.no_grad():
            return self.prefix(x)

    def trainable(self, tail: nn.Module) -> list[nn.Parameter]:
        """Freeze everything but the measured kernels of a tail, and return those."""
        for name, parameter in tail.named_parameters():
            parameter.requires_grad_(name in self.kernels)
        return [tail.get_parameter(name) for name in self.kernels]


def softmax_root(logits: Tensor) -> Tensor:
    """Return L with L L^T = diag(p) - p p^T, (N, K, K)."""
    p = logits.softmax(1)
    return torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]


def contract(roots: Tensor, W: Tensor) -> tuple[float, float]:
    """Return the sums over samples of (trace, kappa) from factors (N, K, C, d)."""
    W = W.flatten(1)
    kappa = (torch.einsum("nkcd,ce->nked", roots, W @ W.T) * roots).sum()
    return float(roots.square().sum()), float(kappa)


def ours(problem: Problem, batches: Batches) -> Result:
    """Measure with flatsearch."""
    result = flatsearch.relative_flatness(problem.net, batches, layers=problem.layers)
    return result.hessian_trace, result.relative_flatness


def again(problem: Problem, batches: Batches) -> Result:
    """Return the measure of a network that is measured again and again."""
    problem.meter = problem.meter or flatsearch.FlatnessMeter(problem.net, layers=problem.layers)
    result = problem.meter(batches)
    return result.hessian_trace, result.relative_flatness


def forward_backward(problem: Problem, batches: Batches) -> Result:
    """Run what a training step costs, for scale; it measures nothing."""
    for x, y in batches:
        nn.functional.cross_entropy(problem.net(x), y).backward()
    problem.net.zero_grad()
    return float("nan"), None


def torch_func(problem: Problem, batches: Batches) -> Result:
    """Per-sample Jacobians of the logits in the kernels by vmap(jacrev)."""
    tail = problem.tail
    weights = {name: tail.get_parameter(name).detach() for name in problem.kernels}

    def logits(weights: dict[str, Tensor], h: Tensor) -> Tensor:
        return functional_call(tail, weights, (h[None],))[0]

    numbers = sum(weight.numel() for weight in weights.values())
    at_once = max(1, int(2e8 // (numbers * 10)))  # Jacobians take K times the kernels' memory
    jacobian = vmap(jacrev(logits), in_dims=(None, 0))
    trace = kappa = 0.0
    n = 0
    for x, _ in batches:
        for part in x.split(at_once):
            h = problem.features(part)
            with torch.no_grad():
                J = jacobian(weights, h)
                L = softmax_root(tail(h))
                for name, W in weights.items():
                    roots = torch.einsum("nkl,nkcd->nlcd", L, J[name].flatten(3))
                    one, other = contract(roots, W)
                    trace, kappa = trace + one, kappa + other
        n += len(x)
    return trace / n, kappa / n


def backpack_method(name: str) -> Method:
    """Return a method that uses one of BackPACK's extensions."""

    def method(problem: Problem, batches: Batches) -> Result:
        from backpack import backpack, extend, extensions

        if not isinstance(problem.tail, nn.Sequential) or any(
            not isinstance(
                m, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)
            )
            for m in problem.tail
        ):
            raise UnsuitableError("sequences of plain layers only")
        side = problem.net.last_map if hasattr(problem.net, "last_map") else 1
        # SqrtGGNExact knows no adaptive pooling; on a square map this is the same function.
        layers = [
            nn.AvgPool2d(side) if isinstance(m, nn.AdaptiveAvgPool2d) else copy.deepcopy(m)
            for m in problem.tail
        ]
        tail = extend(nn.Sequential(*layers))
        loss = extend(nn.CrossEntropyLoss())
        weights = problem.trainable(tail)
        trace = kappa = 0.0
        n = 0
        for x, y in batches:
            h = problem.features(x)
            with backpack(getattr(extensions, name)()):
                loss(tail(h), y).backward()
            for weight in weights:
                if name == "DiagGGNExact":
                    trace += float(weight.diag_ggn_exact.sum()) * len(x)
                    continue
                # (K, N, C, C_in, kh, kw), already divided by sqrt(N)
                roots = weight.sqrt_ggn_exact.transpose(0, 1).flatten(3)
                one, other = contract(roots, weight.detach())
                trace, kappa = trace + one * len(x), kappa + other * len(x)
            n += len(x)
        return trace / n, None if name == "DiagGGNExact" else kappa / n

    return method


def curvlinops_method(name: str) -> Method:
    """Return one of curvlinops' trace estimators, with as many products as 1% needs."""

    def method(problem: Problem, batches: Batches) -> Result:
        import curvlinops

        tail = copy.deepcopy(problem.tail)
        weights = problem.trainable(tail)
        data = [(problem.features(x), y) for x, y in batches]
        operator = curvlinops.GGNLinearOperator(
            tail, nn.CrossEntropyLoss(), weights, data, check_deterministic=False
        )
        torch.manual_seed(0)
        products = 9 if name == "hutchpp_trace" else 8  # multiples of three, of two
        while True:
            trace = float(getattr(curvlinops, name)(operator, num_matvecs=products))
            if abs(trace / problem.exact - 1) <= TRACE_ERROR or products > 500:
                return trace, None
            products *= 2

    return method


def pyhessian_method(problem: Problem, batches: Batches) -> Result:
    """Run PyHessian's Hutchinson estimate with its own stopping rule."""
    from pyhessian import hessian

    if len(batches) > 1:
        batches = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    ((x, y),) = batches
    tail = copy.deepcopy(problem.tail)
    problem.trainable(tail)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        estimate = hessian(tail, nn.CrossEntropyLoss(), (problem.features(x), y), cuda=x.is_cuda)
        samples = estimate.trace()
    return sum(samples) / len(samples), None


METHODS: dict[str, Method] = {
    "flatsearch": ours,
    "flatsearch, again": again,
    "forward and backward": forward_backward,
    "torch.func vmap(jacrev)": torch_func,
    "BackPACK DiagGGNExact": backpack_method("DiagGGNExact"),
    "BackPACK SqrtGGNExact": backpack_method("SqrtGGNExact"),
    "curvlinops XTrace, to 1%": curvlinops_method("xtrace"),
    "curvlinops Hutch++, to 1%": curvlinops_method("hutchpp_trace"),
    "PyHessian, its own rule": pyhessian_method,
}
