"""The probability that a running trial ends among the best, from what it has shown so far.

`Predictor` is fed with finished trials as `Observation`s and asked about running ones. It ranks
every signal among all trials at the same step, fits `regression.fit` to those that were run to the
end, and gives the probability of a final value among the best share of all, or with several
objectives that of a place on the front. Knows nothing of Optuna.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import special

from flatsearch.pareto import front_of
from flatsearch.pruners.per_study import Pace
from flatsearch.pruners.regression import Posterior, Prior, Reference, fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Estimate", "Observation", "Predictor"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Observation:
    """A trial as the predictor sees it.

    Attributes:
        curve: Signals by name, by step.
        fixed: Signals that no step changes, by name, for example the number of parameters.
        final: The objective values it ended with, turned so that larger is better; None if it was
            not run to the end.
        feasible: Whether it may be on the front; one that may not keeps no other from it.
        flagged: The step after which it would have been pruned but for the audit; None if it
            never was.
        weight: The number of trials that were flagged like it, and that it stands for.
    """

    curve: Mapping[int, Mapping[str, float]]
    fixed: Mapping[str, float] = field(default_factory=dict)
    final: Sequence[float] | None = None
    feasible: bool = True
    flagged: int | None = None
    weight: float = 1.0

    def signals(self, step: int, names: Sequence[str]) -> list[float]:
        """Return the signals at a step; NaN for those that are not there."""
        values = {**self.fixed, **self.curve.get(step, {})}
        return [float(values.get(name, math.nan)) for name in names]


@dataclass(frozen=True)
class Estimate:
    """What is predicted of a running trial.

    Attributes:
        probability: Of ending among the best.
        n_trials: Finished trials it is learnt from: those that have reached the step.
        base: What the probability is without any signal: the share of the best among all trials.
    """

    probability: float
    n_trials: int
    base: float = 1.0


@dataclass(frozen=True)
class _Model:
    """Everything that is learnt for one step."""

    names: tuple[str, ...]  # signals that any trial has at the step
    signals: tuple[Reference, ...]
    posteriors: tuple[Posterior, ...]
    front: _Array  # scores of the finished trials on the front, (n, objectives)
    n_trials: int
    limit: float  # with one objective: the score that the best exceed
    base: float


class Predictor:
    """Learns from finished trials how signals at a step go with the final objectives.

    Args:
        names: The signals.
        best: With one objective, the share of all trials that counts as the best.
        prior: Per objective, coefficients by signal name to start from; 0 for those that are not
            there.

    Example:
        Forty trials whose final value is their signal at the first step:

        >>> predictor = Predictor(("accuracy",), best=0.2)
        >>> for i in range(40):
        ...     predictor.add(Observation({0: {"accuracy": i / 40}}, final=(i / 40,)))
        >>> good = predictor.ask(Observation({0: {"accuracy": 0.95}}), 0)
        >>> bad = predictor.ask(Observation({0: {"accuracy": 0.05}}), 0)
        >>> good.probability > 0.5 > 0.05 > bad.probability
        True
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        best: float = 0.1,
        prior: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self._names = tuple(names)
        self._best = best
        self._prior = prior
        # The signals of every step are a row of a table; the rest is what has none.
        self._seen: dict[object, tuple[Observation, dict[int, list[float]]]] = {}
        self._models: dict[int, _Model] = {}
        self._pace = Pace()

    def add(self, observation: Observation, network: int | None = None) -> None:
        """Learn from a trial that has ended, at the last step or before it.

        Args:
            observation: The trial.
            network: A number of its network: what was seen of the same one before is forgotten. The
                trial has a network of its own if None.
        """
        rows = {step: observation.signals(step, self._names) for step in observation.curve}
        rest = replace(observation, curve={}, fixed={})
        self._seen[object() if network is None else network] = rest, rows
        if self._pace.add(len(self._seen)):
            self._models.clear()

    def ask(self, running: Observation, step: int) -> Estimate:
        """Return the probability that a running trial ends among the best.

        Args:
            running: With the signals of the step.
            step: The last one it has reported.

        Returns:
            With one objective the probability of a final value in the best share of all trials;
            with several that of not being dominated by any finished one. 1 if nothing has been
            learnt yet, and the base rate if the trial has none of the signals.
        """
        if step not in self._models:
            self._models[step] = self._learn(step)
        model = self._models[step]
        if not model.n_trials:
            return Estimate(1.0, 0)
        if np.isnan(running.signals(step, model.names)).all():
            return Estimate(model.base, model.n_trials, model.base)
        x = _scores(model.signals, np.array([running.signals(step, model.names)]))
        if len(model.posteriors) == 1:
            probability = float(model.posteriors[0].exceeds(x, model.limit)[0])
            return Estimate(probability, model.n_trials, model.base)
        return Estimate(_on_front(model, x), model.n_trials, model.base)

    @staticmethod
    def _weights(trials: Sequence[Observation], step: float = math.inf) -> _Array:
        """Return how many trials each stands for among all that were begun.

        One that was flagged before a step and is there all the same was audited: it stands for
        those that were flagged like it and pruned.
        """
        return np.array([
            1.0 if t.flagged is None or t.flagged >= step else t.weight for t in trials
        ])

    def _learn(self, step: int) -> _Model:
        there = [t for t, rows in self._seen.values() if step in rows]
        whole = [t for t in there if t.final is not None]
        if not whole:
            return _Model((), (), (), np.zeros((0, 0)), 0, 0.0, 1.0)
        table = np.array([rows[step] for _, rows in self._seen.values() if step in rows])
        present = np.flatnonzero(~np.isnan(table).all(axis=0))
        names, table = tuple(self._names[i] for i in present), table[:, present]
        weights = self._weights(there, step)
        signals = tuple(Reference(column, weights) for column in table.T)
        x = _scores(signals, table[[t.final is not None for t in there]])
        finals = np.array([t.final for t in whole], float)
        weights = self._weights(whole)
        references = tuple(Reference(column, weights) for column in finals.T)
        y = np.stack([r.score(column) for r, column in zip(references, finals.T, strict=True)], 1)
        posteriors = []
        for index, column in enumerate(y.T):
            start = self._prior[index] if index < len(self._prior) else {}
            mean = np.array([start.get(name, 0.0) for name in names])
            posteriors.append(fit(x, column, Prior(mean)))
        counts = y[np.array([t.feasible for t in whole])]
        front = front_of(counts)
        base = max(1, len(front)) / float(weights.sum())
        limit = 0.0
        if y.shape[1] == 1:
            base, limit = self._best, _limit(finals[:, 0], y[:, 0], weights, self._best)
        return _Model(names, signals, tuple(posteriors), front, len(whole), limit, base)


def _scores(references: Sequence[Reference], values: _Array) -> _Array:
    scores = [r.score(column) for r, column in zip(references, values.T, strict=True)]
    return np.stack(scores, axis=1) if scores else values


def _limit(finals: _Array, scores: _Array, weights: _Array, best: float) -> float:
    """Return the normal score that final values among the best share exceed.

    Scores are standard normal, so it is that distribution's quantile; but where several trials tie
    for the last place among the best, all of them are in, as in `is_best`.
    """
    order = np.argsort(-finals, kind="stable")
    better = np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
    last = finals[order][np.flatnonzero(better < best * weights.sum())[-1]]
    tied = finals == last
    if tied.sum() < 2:
        return float(special.ndtri(1.0 - best))
    below = scores[finals < last]
    return float((scores[tied][0] + below.max()) / 2) if len(below) else -math.inf


def _on_front(model: _Model, x: _Array) -> float:
    """Return how often a draw of all final scores is dominated by no finished trial."""
    generator = np.random.default_rng(0)  # the same trial gets the same answer
    draws = []
    for posterior in model.posteriors:
        location, scale = posterior.predict(x)
        draws.append(location[0] + scale[0] * generator.standard_t(posterior.degrees, _DRAWS))
    points = np.stack(draws, 1)[:, None, :]
    others = model.front[None]
    worse = np.logical_and(np.all(others >= points, axis=2), np.any(others > points, axis=2))
    return float(1.0 - np.mean(np.any(worse, axis=1)))
