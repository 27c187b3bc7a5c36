"""Differences of several means over the same images, and how sure they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import stats

from flatsearch.training.evaluation import accuracy_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Estimate",
    "estimate",
    "fraction",
    "gap",
    "gap_difference",
    "holm",
    "paired",
    "paired_hits",
]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
_Tested: TypeAlias = "tuple[Estimate, float]"


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        value: The mean.
        error: Its standard error; NaN of one image.
        low: Lower end of its 95% interval.
        high: Upper end.
    """

    value: float
    error: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """The mean and its standard error."""
        return f"{self.value:.4g} ± {self.error:.2g}"


def _within(value: float, error: float, freedom: float) -> Estimate:
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return Estimate(value, error, value - reach, value + reach)


def estimate(samples: _Array) -> Estimate:
    """Return the mean of numbers per image, with Student's interval.

    Example:
        >>> estimate(np.array([1.0, 2.0, 3.0])).text
        '2 ± 0.58'
    """
    n = len(samples)
    error = float(samples.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return _within(float(samples.mean()), error, n - 1)


def fraction(hits: _Array) -> Estimate:
    """Return the fraction of ones among hits (N,), with Wilson's interval."""
    found = estimate(hits)
    low, high = accuracy_interval(found.value, len(hits))
    return replace(found, low=low, high=high)


def gap(seen: Estimate, unseen: Estimate) -> Estimate:
    """Return by how much a mean over unseen images is larger than one over other images."""
    error = math.hypot(seen.error, unseen.error)
    return _within(unseen.value - seen.value, error, math.inf)


def paired(first: _Array, second: _Array) -> _Tested:
    """Return the difference of two means over the same images, and its p-value.

    The t-test of the differences per image (Student 1908): as all networks see the same images,
    what makes an image hard for both cancels. Both are (N,); the p-value is two-sided, and NaN of
    one image.

    Example:
        >>> difference, p = paired(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 3.0]))
        >>> difference.text, round(p, 3)
        ('0.6667 ± 0.33', 0.184)
    """
    difference = estimate(first - second)
    if difference.error == 0:
        return difference, float(difference.value == 0)
    t = abs(difference.value) / difference.error
    return difference, float(2 * stats.t.sf(t, len(first) - 1))


def paired_hits(first: _Array, second: _Array) -> _Tested:
    """Return the difference of two accuracies on the same images, and McNemar's exact p-value.

    Only images that one of the two gets right count: without a difference either is as likely to
    (McNemar 1947, with the binomial distribution). Both are 1 or 0, (N,); the p-value is two-sided.

    Example:
        >>> right, wrong = np.ones(6), np.zeros(6)
        >>> difference, p = paired_hits(right, wrong)
        >>> difference.value, p
        (1.0, 0.03125)
    """
    wins, losses = int((first > second).sum()), int((first < second).sum())
    p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return estimate(first - second), float(p)


def gap_difference(seen: Estimate, unseen: Estimate) -> _Tested:
    """Return the difference of two gaps from the paired differences on either set of images.

    The sets have no image in common, so the variances add up; the p-value is the normal one.
    """
    difference = gap(seen, unseen)
    if difference.error == 0:
        return difference, float(difference.value == 0)
    return difference, float(2 * stats.norm.sf(abs(difference.value) / difference.error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979).

    The probability that any of those without a difference falls below a level is at most the level.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
