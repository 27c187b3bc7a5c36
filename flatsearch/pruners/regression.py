"""A predictor of a trial's final objectives from early signals, calibrated on finished trials.

Bayesian linear regression between normal scores: signals and finals enter by their ranks alone,
so units, outliers and monotone changes of a metric do not matter, and the few coefficients, that of
flatness with its sign among them, are learnt from the study itself, starting from a prior. Knows
nothing of Optuna.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import special

__all__ = ["Posterior", "Prior", "Reference", "fit", "leave_one_out"]

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


class Reference:
    """Values that others are ranked among, each with a weight.

        z(x) = Phi^-1( (sum_{v_i < x} w_i + 1/2 sum_{v_i = x} w_i + 1/2) / (sum_i w_i + 1) )

    the weighted mid-rank with half an observation on either side, as a quantile of the standard
    normal distribution. The weights are inverse probabilities of having been observed, which makes
    ranks among a selected few those among all (Horvitz and Thompson 1952).

    Args:
        values: (n,); infinite values are the largest or smallest, NaN are left out.
        weights: (n,), positive; 1 each where None.

    Example:
        >>> reference = Reference(np.array([1.0, 2.0, 3.0]))
        >>> reference.score(np.array([2.0])).round(3).tolist()
        [0.0]
        >>> bool(reference.score(np.array([9.0]))[0] == special.ndtri(3.5 / 4))
        True
    """

    def __init__(self, values: Array, weights: Array | None = None) -> None:
        weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
        known = ~np.isnan(values)
        order = np.argsort(values[known], kind="stable")
        self._values = np.asarray(values, float)[known][order]
        self._sums = np.concatenate([[0.0], np.cumsum(weights[known][order])])

    def score(self, values: Array) -> Array:
        """Return the normal scores of values, (m,); 0, the middle, for NaN."""
        values = np.asarray(values, float)
        below = self._sums[np.searchsorted(self._values, values, "left")]
        upto = self._sums[np.searchsorted(self._values, values, "right")]
        rank = ((below + upto) / 2 + 0.5) / (self._sums[-1] + 1)
        scores: Array = np.where(np.isnan(values), 0.0, special.ndtri(rank))
        return scores


@dataclass(frozen=True)
class Prior:
    """What is believed of the coefficients before the study's own trials.

        B | s^2 ~ N(mean, s^2 / strength),   s^2 ~ Inverse-Gamma(shape, shape * variance)

    Attributes:
        mean: Coefficients (p,).
        strength: How many observations of unit variance the belief counts as.
        variance: Of the residuals.
        shape: How firmly the variance is believed in; half the observations it counts as.
    """

    mean: Array
    strength: float = 10.0
    variance: float = 0.5
    shape: float = 3.0


@dataclass(frozen=True)
class Posterior:
    """What is believed of them after.

    Attributes:
        mean: Coefficients (p,).
        precision: Of the coefficients, in units of the residual variance, (p, p).
        variance: Of the residuals.
        degrees: Of freedom of the predictive Student distribution.
    """

    mean: Array
    precision: Array
    variance: float
    degrees: float

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Return the (location, scale) of the predictive distribution of rows of signals.

        Args:
            x: Normal scores (m, p).

        Returns:
            Of a Student distribution with `degrees` degrees of freedom, (m,) each.
        """
        spread = np.einsum("mp,pm->m", x, np.linalg.solve(self.precision, x.T))
        return x @ self.mean, np.sqrt(self.variance * (1.0 + spread))

    def exceeds(self, x: Array, limit: float) -> Array:
        """Return the probability (m,) that the final score of rows of signals is over a limit."""
        location, scale = self.predict(x)
        probabilities: Array = special.stdtr(self.degrees, (location - limit) / scale)
        return probabilities

    @property
    def errors(self) -> Array:
        """Standard errors of the coefficients (p,)."""
        widths: Array = np.sqrt(self.variance * np.diag(np.linalg.inv(self.precision)))
        return widths


def fit(x: Array, y: Array, prior: Prior) -> Posterior:
    """Regress final scores on early ones.

    The conjugate update (Gelman et al., "Bayesian Data Analysis", chapter 14):

        P = strength I + X'X,    b = P^-1 (strength b0 + X'y)
        degrees = 2 shape + n
        variance = (2 shape variance0 + |y - X b|^2 + strength |b - b0|^2) / degrees

    There is no intercept: scores have mean zero among all trials. Trials are not weighted by how
    many they stand for. Where the trials that finished were selected by the same signals, a
    regression needs no correction; where by those of another step, it is a little off, towards
    keeping trials. A few heavy weights would make it noisier instead.

    Args:
        x: Normal scores of p signals of n finished trials, (n, p).
        y: Normal scores of a final objective, (n,).
        prior: For p signals.

    Returns:
        The posterior.

    Example:
        >>> x = np.array([[1.0], [-1.0]])
        >>> posterior = fit(x, np.array([1.0, -1.0]), Prior(np.zeros(1), strength=2.0))
        >>> posterior.mean.tolist()  # 2 observations of slope 1 against 2 of slope 0
        [0.5]
    """
    strength = prior.strength
    precision = strength * np.eye(x.shape[1]) + x.T @ x
    mean = np.linalg.solve(precision, strength * prior.mean + x.T @ y)
    degrees = 2.0 * prior.shape + len(y)
    residual = float(np.sum((y - x @ mean) ** 2))
    shrunk = strength * float(np.sum((mean - prior.mean) ** 2))
    variance = (2.0 * prior.shape * prior.variance + residual + shrunk) / degrees
    return Posterior(mean, precision, variance, degrees)


def leave_one_out(x: Array, y: Array, prior: Prior) -> Array:
    """Predict every final score from all others, in one regression.

        y_i - y_i(without i) = (y_i - x_i b) / (1 - h_i),   h_i = x_i' P^-1 x_i

    with b and P of `fit` to all trials: the leave-one-out identity of ridge regression.

    Args:
        x: Normal scores of p signals of n finished trials, (n, p).
        y: Normal scores of a final objective, (n,).
        prior: For p signals.

    Returns:
        The predictions (n,).

    Example:
        >>> x, y = np.array([[1.0], [2.0]]), np.array([1.0, 0.0])
        >>> prior = Prior(np.zeros(1), strength=1.0)
        >>> leave_one_out(x, y, prior).round(9).tolist()  # x_1 b without 1: 1 * 0; 2 * (1 / 2)
        [0.0, 1.0]
    """
    posterior = fit(x, y, prior)
    leverage = np.einsum("np,pn->n", x, np.linalg.solve(posterior.precision, x.T))
    residuals: Array = (y - x @ posterior.mean) / (1.0 - leverage)
    return y - residuals
