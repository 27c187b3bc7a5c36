"""Whether pruning by stated probabilities hurts, judged by trials that were run on all the same.

A known share of the trials that a rule would prune is *audited*: run to the end, so that what the
study learns from is not only what survived. While more of them turn out among the best than the
stated probabilities allow, pruning is to be suspended.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flatsearch.pareto import is_best
from flatsearch.pruners.per_study import Pace

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SIGNIFICANT", "Audit", "Ended", "draw", "tail_probability"]

# An audit this unlikely under the stated probabilities suspends pruning.
SIGNIFICANT = 0.05


def draw(study_name: str, number: int) -> float:
    """Return a number in [0, 1) that any process draws alike for a trial."""
    digest: Any = hashlib.blake2b(f"{study_name}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def tail_probability(probabilities: Sequence[float], k: int) -> float:
    """Return the probability that at least k of several independent events happen.

    Args:
        probabilities: The probability of each event.
        k: The number of events.

    Returns:
        P(K >= k), K Poisson-binomial, by adding one event after the other.

    Example:
        >>> tail_probability([0.5, 0.5], 1)
        0.75
    """
    counts = np.ones(1)
    for p in probabilities:
        counts = np.convolve(counts, [1.0 - p, p])
    return float(counts[k:].sum())


@dataclass(frozen=True)
class Ended:
    """A trial that was run to the end.

    Attributes:
        final: The objective values, larger is better.
        weight: The number of trials that it stands for.
        time: The time when it ended, in seconds.
        feasible: Whether it keeps every constraint.
        stated: The probability of ending among the best that was stated when it was flagged; None
            if it never was.
    """

    final: tuple[float, ...]
    weight: float
    time: float
    feasible: bool
    stated: float | None


class Audit:
    """What the trials that were run to the end say about pruning.

    Args:
        best: With one objective, the share of all trials that counts as the best; None for the
            front.
    """

    def __init__(self, best: float | None) -> None:
        self._best = best
        self._ended: list[Ended] = []
        self._suspends: bool | None = False
        self._pace = Pace()

    def add(self, trial: Ended) -> None:
        """Take note of a trial that was run to the end."""
        self._ended.append(trial)
        if self._pace.add(len(self._ended)):
            self._suspends = None

    def suspends(self) -> bool:
        """Return whether more audited trials were good than the stated probabilities allow."""
        if self._suspends is None:
            self._suspends = self._judge()
        return self._suspends

    def _judge(self) -> bool:
        # One that is not feasible is no point of a front, and keeps no other from it.
        ranked = [t for t in self._ended if t.feasible or self._best is not None]
        finals = np.array([t.final for t in ranked])
        weights = np.array([t.weight for t in ranked])
        times = np.array([t.time for t in ranked])
        stated, good = [], 0
        for trial in ranked:
            if trial.stated is None or not trial.feasible:
                continue
            stated.append(trial.stated)
            # A place on the front is stated of the trials that had ended before this one, which
            # others may have moved since; a share of all trials stays where it is.
            counts = slice(None) if self._best is not None else times < trial.time
            good += is_best(finals[counts], weights[counts], np.array(trial.final), self._best)
        return good > 0 and tail_probability(stated, good) < SIGNIFICANT
