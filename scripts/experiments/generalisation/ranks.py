"""Statistics of ranks for the analysis: small functions of arrays, no files, no names of signals.

Everything that is resampled takes weights: how often each configuration is in a bootstrap sample,
(m, n) for m samples of n configurations, so that a statistic is computed for all of them at once.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from flatsearch.analysis.intervals import weighted_taus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Partial",
    "between_seeds",
    "conditional_information",
    "holm",
    "interval",
    "neighbours",
    "probability",
    "psi",
    "regrets",
    "resample",
    "sign_errors",
    "weighted_taus",
]


def resample(n: int, samples: int, seed: int = 0) -> np.ndarray:
    """Return weights (1 + samples, n): all ones, then those of bootstrap samples."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), samples)
    return np.vstack([np.ones(n), counts])


def interval(values: np.ndarray, level: float = 0.95) -> list[float]:
    """Return [value, low, high] of a statistic and its bootstrap samples, by percentiles."""
    known = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or len(known) < len(values) / 2:
        return [np.nan] * 3
    tails = 50 * (1 - level)
    return [float(values[0]), *np.percentile(known, [tails, 100 - tails]).tolist()]


def probability(values: np.ndarray) -> float:
    """Return the two-sided bootstrap probability that a statistic is 0."""
    known = values[1:][np.isfinite(values[1:])]
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, 2 * (tail + 1) / (len(known) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted probabilities (1979), in the order of `p`.

    Example:
        >>> [round(v, 3) for v in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    adjusted, most = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p)):
        most = max(most, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = most
    return adjusted


def _weighted_ranks(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each entry's mean rank in samples that have it so often, (m, n)."""
    below, same = ((x[:, None] < x).astype(float), (x[:, None] == x).astype(float))
    return weights @ below + (weights @ same + 1) / 2


class Partial:
    """Spearman's correlation with an outcome, given other variables.

    The ranks of both less their least-squares fits on the ranks of the others, correlated; a
    column of two values is as good as its ranks.

    Args:
        y: The outcome, (n,).
        given: The other variables, (n, g), g may be 0.
        weights: (m, n).

    Example:
        >>> x, w = np.array([1.0, 2.0, 4.0, 8.0]), np.ones((1, 4))
        >>> float(Partial(x**2, np.empty((4, 0)), w)(x)[0].round(6))
        1.0
    """

    def __init__(self, y: np.ndarray, given: np.ndarray, weights: np.ndarray) -> None:
        self._weights, self._root = weights, np.sqrt(weights)
        columns = [np.ones_like(weights), *(_weighted_ranks(c, weights) for c in given.T)]
        others = np.stack(columns, 2) * self._root[:, :, None]
        u, sizes, _ = np.linalg.svd(others, full_matrices=False)
        # A basis of what the others span; a sample may have some of them collinear.
        self._basis = u * (sizes > 1e-9 * sizes[:, :1])[:, None, :]
        self._rest = self._without(y)

    def _without(self, x: np.ndarray) -> np.ndarray:
        """Return the ranks less their fits, of length 1, (m, n); NaN where nothing is left."""
        ranks = _weighted_ranks(x, self._weights) * self._root
        fit = np.swapaxes(self._basis, 1, 2) @ ranks[:, :, None]
        rest = ranks - (self._basis @ fit)[:, :, 0]
        size = np.linalg.norm(rest, axis=1, keepdims=True)
        whole = np.linalg.norm(ranks, axis=1, keepdims=True)
        return rest / np.where(size > 1e-7 * whole, size, np.nan)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the correlations with x (n,), (m,); NaN where one is a function of the others."""
        return (self._without(x) * self._rest).sum(1)


def neighbours(signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs of configurations that differ in one factor, and the factor."""
    first, second = np.triu_indices(len(signs), 1)
    differs = signs[first] != signs[second]
    one = differs.sum(1) == 1
    return first[one], second[one], differs[one].argmax(1)


def psi(
    x: np.ndarray, y: np.ndarray, signs: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the granulated coefficient (Jiang et al. 2020, equations 3 and 4).

    For each factor the mean of sgn(x_i - x_j) sgn(y_i - y_j) over pairs that differ in it alone,
    and the mean of that over factors.

    Args:
        x: (n,) or (seeds, n), pairs are of the same seed; NaN where there is none.
        y: The same.
        signs: (n, factors).
        weights: (m, n).

    Returns:
        (m,) and, per factor, (m, factors); NaN for a factor without pairs.
    """
    first, second, factor = neighbours(signs)
    x, y = np.atleast_2d(x), np.atleast_2d(y)
    agree = np.sign(x[:, first] - x[:, second]) * np.sign(y[:, first] - y[:, second])
    known = np.isfinite(agree)
    agree, counts = np.where(known, agree, 0).sum(0), known.sum(0)
    both = weights[:, first] * weights[:, second]
    every = np.full((len(weights), signs.shape[1]), np.nan)
    for index in range(signs.shape[1]):
        chosen = factor == index
        total = both[:, chosen] @ counts[chosen]
        np.divide(both[:, chosen] @ agree[chosen], total, where=total > 0, out=every[:, index])
    known = np.isfinite(every)
    mean = np.where(known, every, 0).sum(1) / np.maximum(known.sum(1), 1)
    return np.where(known.any(1), mean, np.nan), every


def conditional_information(x: np.ndarray, y: np.ndarray, signs: np.ndarray) -> float:
    """Return the conditional mutual information of Jiang et al. 2020, section 2.2.3.

    Between the signs of x_i - x_j and y_i - y_j over ordered pairs, given the levels of two
    factors in i and in j, over the conditional entropy of the latter; the least over pairs of
    factors. 1 if the order of y is known from that of x, 0 if nothing is.
    """
    i, j = (v.ravel() for v in np.indices((len(x), len(x))))
    keep = (i != j) & (x[i] != x[j]) & (y[i] != y[j])
    i, j = i[keep], j[keep]
    a, b = (x[i] > x[j]).astype(int), (y[i] > y[j]).astype(int)
    least = np.inf
    for chosen in itertools.combinations(range(signs.shape[1]), 2):
        levels = (signs[:, chosen] > 0).astype(int) @ [1, 2]
        cell = 4 * levels[i] + levels[j]
        table = np.bincount(4 * cell + 2 * a + b, minlength=64).reshape(16, 2, 2) / len(i)
        whole = table.sum((1, 2))
        entropies = [_entropy(t, whole) for t in (table.sum(1), table.sum(2), table.reshape(16, 4))]
        if entropies[0] > 0:
            least = min(least, (entropies[0] + entropies[1] - entropies[2]) / entropies[0])
    return float(max(0.0, least)) if np.isfinite(least) else np.nan


def _entropy(joint: np.ndarray, whole: np.ndarray) -> float:
    """Return H(column | row) of probabilities (rows, columns) with row sums `whole`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = joint * np.log2(joint / whole[:, None])
    return float(-np.nansum(terms))


def sign_errors(
    x: np.ndarray, y: np.ndarray, signs: np.ndarray, noise: float
) -> dict[tuple[int, int, int], tuple[float, int]]:
    """Return the sign error of every environment (Dziugaite et al. 2020).

    An environment is a factor that changes; or one that changes while another one is at a level.
    Pairs whose outcomes differ by no more than two standard errors of the difference are left out.

    Args:
        x: (seeds, n), NaN where there is none.
        y: The same.
        signs: (n, factors).
        noise: Standard error of an outcome.

    Returns:
        (changing factor, other factor or -1, its level or 0) -> (share of pairs that x orders
        wrongly, number of pairs).
    """
    first, second, factor = neighbours(signs)
    dx, dy = x[:, first] - x[:, second], y[:, first] - y[:, second]
    known = np.isfinite(dx) & np.isfinite(dy)
    known[known] = np.abs(dy[known]) > 2 * np.sqrt(2) * noise
    wrong = (1 - np.sign(dx) * np.sign(dy)) / 2
    found = {}
    for changing, other, level in itertools.product(
        range(signs.shape[1]), range(-1, signs.shape[1]), (-1, 0, 1)
    ):
        if (other == -1) != (level == 0) or changing == other:
            continue
        chosen = factor == changing
        if other >= 0:
            chosen &= signs[first, other] == level
        pairs = known[:, chosen]
        if pairs.any():
            found[changing, other, level] = float(wrong[:, chosen][pairs].mean()), int(pairs.sum())
    return found


def regrets(
    criteria: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]],
    outcome: np.ndarray,
    weights: np.ndarray,
    size: int = 20,
    sets: int = 200,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the mean regret of choosing one of `size` networks by different criteria.

    Args:
        criteria: By name, a function of networks (sets, size), as indices, and a generator, that
            returns what to choose the smallest of, (sets, size).
        outcome: (seeds, n), larger is better; NaN where there is no such network.
        weights: (m, n): a set is drawn from the networks, each as likely as its weight.
        size: Networks of a set.
        sets: How many sets for each row of the weights.
        seed: Of the sets, which are the same for all criteria.

    Returns:
        (m,) for each criterion: the mean of the set's best outcome less the chosen one's.
    """
    generator, flat = np.random.default_rng(seed), outcome.ravel()
    found = {name: np.full(len(weights), np.nan) for name in criteria}
    for index, w in enumerate(weights):
        chance = np.where(np.isfinite(outcome), w, 0).ravel()
        if (chance > 0).sum() < size:
            continue
        # Without replacement: the `size` largest of exponential races (Efraimidis, Spirakis 2006).
        with np.errstate(divide="ignore"):
            race = generator.exponential(size=(sets, len(chance))) / chance
        chosen = np.argpartition(race, size, axis=1)[:, :size]
        best = flat[chosen].max(1)
        for name, criterion in criteria.items():
            picked = np.argmin(criterion(chosen, generator), axis=1)
            found[name][index] = float((best - flat[chosen[np.arange(sets), picked]]).mean())
    return found


def between_seeds(values: np.ndarray) -> float:
    """Return the mean of tau between pairs of seeds, (seeds, n) with NaN where there is none."""
    taus = []
    for a, b in itertools.combinations(values, 2):
        known = np.isfinite(a) & np.isfinite(b)
        if known.sum() >= 8:
            taus.append(stats.kendalltau(a[known], b[known]).statistic)
    return float(np.mean(taus)) if taus else np.nan
