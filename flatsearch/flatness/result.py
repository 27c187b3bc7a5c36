"""What the measure returns, and the reduction from samples to means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flatsearch.errors import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FlatnessResult", "Kind", "LayerFlatness", "summarise"]

Kind = Literal["hessian", "gauss-newton"]


@dataclass(frozen=True)
class LayerFlatness:
    """One layer's measure.

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
        kind: "hessian" where all numbers are those of the Hessian; "gauss-newton" where all are
            those of the Gauss-Newton matrix, because for some layer the second derivatives of
            what comes after it could not be included. The two are never added up.
        normalize: The variant, None or "input".
        layers: The same three numbers per layer, by module name, in order of execution.
    """

    relative_flatness: float
    hessian_trace: float
    standard_error: float
    loss: float
    accuracy: float
    n_samples: int
    kind: Kind
    normalize: Literal["input"] | None
    layers: Mapping[str, LayerFlatness]


def summarise(
    samples: Mapping[str, tuple[Tensor, Tensor]],
    losses: Tensor,
    hits: Tensor,
    kind: Kind,
    normalize: Literal["input"] | None,
) -> FlatnessResult:
    """Reduce numbers per sample to means and standard errors.

    Args:
        samples: Per layer, each sample's (kappa, trace), both (N,).
        losses: Each sample's cross-entropy, (N,).
        hits: Whether each sample is classified correctly, (N,).
        kind: What the numbers are of.
        normalize: The variant.

    Returns:
        The result.

    Raises:
        NonFiniteError: If any of it is NaN or infinite.
    """
    results: dict[str, LayerFlatness] = {}
    total = torch.zeros(len(losses), dtype=torch.float64, device=losses.device)
    for name, (kappas, traces) in samples.items():
        kappa = kappas.double()
        total = total + kappa
        layer = LayerFlatness(float(kappa.mean()), float(traces.double().mean()), _error(kappa))
        results[name] = layer
        if math.isnan(layer.relative_flatness + layer.hessian_trace):
            raise NonFiniteError(
                f"layer {name!r}: its input or the derivatives of the layers after it are NaN"
            )
        if math.isinf(layer.relative_flatness + layer.hessian_trace):
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
        normalize=normalize,
        layers=results,
    )


def _error(per_sample: Tensor) -> float:
    """Return the standard error of the mean; NaN for one sample."""
    n = len(per_sample)
    return float(per_sample.std() / math.sqrt(n)) if n > 1 else math.nan
