"""What the measure returns, and the reduction from samples to means.

From the traces of the blocks H_cc' of a kernel's Hessian (rows w_c of length d, the fan-in), three
numbers are made, each a mean over samples:

    trace  = sum_c Tr(H_cc)
    kappa  = sum_cc' <w_c, w_c'> Tr(H_cc')
    nu     = sum_c |w_c|^2 Tr(H_cc) / d

**What nu is.** Add to every filter w_c a noise e_c of mean 0 and covariance sigma^2 |w_c|^2 / d
times the identity: relative size sigma, E|e_c|^2 = sigma^2 |w_c|^2, independent between filters and
layers. The loss rises, to second order, by <gradient, e> + e^T H e / 2. In expectation the first
term is 0, and of the second only the diagonal blocks stay, each as its trace times the variance:

    E[L(W + e)] - L(W) = 1/2 sigma^2 nu + O(sigma^3)

with O(sigma^4) for noise that is symmetric, as Gaussian noise is. So sigma^2 nu / 2 is in units of
the loss (nats), and a sum over layers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from flatsearch.errors import NonFiniteError
from flatsearch.notebooks import card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Flatness",
    "FlatnessResult",
    "Kind",
    "LayerFlatness",
    "LayerSamples",
    "Reduced",
    "reduce",
    "summarise",
]

Kind = Literal["hessian", "gauss-newton"]


@dataclass(frozen=True)
class Flatness:
    """The numbers of one layer, or of several together.

    Attributes:
        relative_flatness: kappa. Small is flat; 0 for a constant predictor, and shrinking with
            the loss, so read it beside the loss.
        hessian_trace: The trace.
        standard_error: The standard error of `relative_flatness` as a mean over the samples; NaN
            for one sample.
        nu: What `noise_loss` is made of.
        nu_standard_error: The standard error of `nu`.
        rounding: The relative error of the worst of the three numbers by rounding in their sums,
            as estimated from how much smaller than its terms it is; infinite for a 0 that may have
            underflowed. The errors of the forward and backward pass themselves are not in it.
    """

    relative_flatness: float
    hessian_trace: float
    standard_error: float
    nu: float
    nu_standard_error: float
    rounding: float

    def noise_loss(self, sigma: float = 0.1) -> float:
        """Return by how much the loss is expected to rise under relative weight noise, in nats.

        sigma^2 nu / 2: the second-order term of the expected loss when every measured filter is
        disturbed by independent Gaussian noise of `sigma` times its norm. It may be negative
        where activations are smooth; of kind "gauss-newton" it is that matrix's part.

        Args:
            sigma: The noise's size relative to the filter.

        Returns:
            The expected rise of the mean cross-entropy.

        Example:
            >>> layer = LayerFlatness(1.0, 2.0, 0.1, 4.0, 0.5, 1e-7, fan_in=9)
            >>> layer.noise_loss(0.5), layer.noise_loss_error(0.5)
            (0.5, 0.0625)
        """
        return 0.5 * sigma**2 * self.nu

    def noise_loss_error(self, sigma: float = 0.1) -> float:
        """Return the standard error of `noise_loss` as a mean over the samples."""
        return 0.5 * sigma**2 * self.nu_standard_error


@dataclass(frozen=True)
class LayerFlatness(Flatness):
    """One layer's measure.

    Attributes:
        fan_in: d, the weights of one filter; for a linear layer, of one output.
    """

    fan_in: int


@dataclass(frozen=True)
class FlatnessResult(Flatness):
    """What `relative_flatness` returns; its own numbers are sums over the measured layers.

    Attributes:
        loss: Mean cross-entropy, in nats.
        accuracy: Fraction of the samples classified correctly.
        n_samples: N.
        kind: "hessian" where all numbers are those of the Hessian; "gauss-newton" where all are
            those of the Gauss-Newton matrix, because for some layer the second derivatives of
            what comes after it could not be included. The two are never added up.
        normalize: The variant, None or "input".
        classes: How many columns of the softmax's root were drawn for every sample, of layers that
            take a backward pass for each: the numbers are estimates then, exact in expectation, and
            the standard errors contain the spread of the draw. None where everything is exact.
        layers: The same numbers per layer, by the layer's name, in order of execution.
        skipped: The layers that were to be measured but are not covered, with the reasons.
    """

    loss: float
    accuracy: float
    n_samples: int
    kind: Kind
    normalize: Literal["input"] | None
    classes: int | None
    layers: Mapping[str, LayerFlatness]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """Return what notebooks show."""
        measured = {**self.layers, **({"all of them": self} if len(self.layers) > 1 else {})}
        return card(
            f"relative flatness ({self.kind}, {self.n_samples} samples, loss {self.loss:.4g},"
            f" accuracy {self.accuracy:.4f})",
            ("layer", "relative flatness", "Hessian trace", "noise loss"),
            [
                (
                    name,
                    f"{m.relative_flatness:.4g} ± {m.standard_error:.2g}",
                    f"{m.hessian_trace:.4g}",
                    f"{m.noise_loss():.3g} ± {m.noise_loss_error():.2g}",
                )
                for name, m in measured.items()
            ],
            ["noise loss: by how many nats the loss rises under 10% noise on every filter"],
        )


@dataclass(frozen=True)
class LayerSamples:
    """A layer's numbers before they are averaged.

    Attributes:
        numbers: kappa, trace and nu of every sample, (3, N), in float64.
        errors: What they may be wrong by: the size of what each was summed from, times the
            precision.
        fan_in: d.
    """

    numbers: Tensor
    errors: Tensor
    fan_in: int

    def reduced(self) -> Tensor:
        """Return the numbers of a `Row`, (7,), still on the device."""
        n = self.numbers.shape[1]
        means = self.numbers.mean(1)
        deviation = self.numbers.std(1) if n > 1 else torch.full_like(means, math.nan)
        wrong, right = self.errors.sum(1), self.numbers.sum(1).abs()
        rounding = torch.where(wrong == 0, wrong, wrong / right).max()
        return torch.stack([
            means[0],
            means[1],
            deviation[0] / math.sqrt(n),
            means[2],
            deviation[2] / math.sqrt(n),
            rounding,
            self.numbers.isinf().any().to(means.dtype),
        ])


class Row(NamedTuple):
    """The numbers of `Flatness` in their order, and more than 0 where one sample's is infinite."""

    kappa: float
    trace: float
    standard_error: float
    nu: float
    nu_standard_error: float
    rounding: float
    infinite: float


@dataclass(frozen=True)
class Reduced:
    """What is read from the device: everything that a result consists of.

    Attributes:
        checks: Numbers to be judged first.
        loss: Mean cross-entropy.
        accuracy: Fraction of the samples classified correctly.
        total: All layers together.
        layers: Every layer, by its name.
    """

    checks: list[float]
    loss: float
    accuracy: float
    total: Row
    layers: dict[str, Row]


def reduce(
    samples: Mapping[str, LayerSamples], losses: Tensor, hits: Tensor, checks: Sequence[Tensor]
) -> Reduced:
    """Reduce numbers per sample to means and standard errors; waits for the device once.

    Args:
        samples: The numbers of every sample, by layer.
        losses: Each sample's cross-entropy, (N,).
        hits: Whether each sample is classified correctly, (N,).
        checks: Scalars to read with them.

    Returns:
        The numbers.
    """
    total = torch.zeros(3, len(losses), dtype=torch.float64, device=losses.device)
    errors = torch.zeros_like(total)
    for layer in samples.values():
        total, errors = total + layer.numbers, errors + layer.errors
    rows = [LayerSamples(total, errors, 0), *samples.values()]
    scalars = [*checks, losses.double().mean(), hits.double().mean()]
    first = torch.stack([scalar.double() for scalar in scalars])
    numbers = torch.cat([first, *(row.reduced() for row in rows)]).tolist()
    *judged, loss, accuracy = numbers[: len(first)]
    found = iter(numbers[len(first) :])
    total_row, *others = (Row(*itertools.islice(found, len(Row._fields))) for _ in rows)
    return Reduced(judged, loss, accuracy, total_row, dict(zip(samples, others, strict=True)))


def summarise(
    reduced: Reduced,
    samples: Mapping[str, LayerSamples],
    kind: Kind,
    normalize: Literal["input"] | None,
    classes: int | None,
) -> FlatnessResult:
    """Make the result of what has been read.

    Args:
        reduced: The numbers.
        samples: What they were reduced from.
        kind: What the numbers are of.
        normalize: The variant.
        classes: How many columns were drawn, if any.

    Returns:
        The result.

    Raises:
        NonFiniteError: If any of it is NaN or infinite.
    """
    results: dict[str, LayerFlatness] = {}
    for name, row in reduced.layers.items():
        results[name] = LayerFlatness(*row[:-1], fan_in=samples[name].fan_in)
        # Products of an infinity with a number that has vanished are NaN.
        if row.infinite:
            raise NonFiniteError(
                f"layer {name!r}: the measure overflows; dtype=torch.float64 may help"
            )
        if any(map(math.isnan, (row.kappa, row.trace, row.nu))):
            raise NonFiniteError(
                f"layer {name!r}: its input or the derivatives of the layers after it are NaN"
            )
    return FlatnessResult(
        *reduced.total[:-1],
        loss=reduced.loss,
        accuracy=reduced.accuracy,
        n_samples=next(iter(samples.values())).numbers.shape[1],
        kind=kind,
        normalize=normalize,
        classes=classes,
        layers=results,
    )
