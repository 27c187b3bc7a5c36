"""What pruning saved and what it may have cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatsearch.analysis.intervals import trial_weights
from flatsearch.pareto import is_best, signs
from flatsearch.record.networks import networks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.record.trial import TrialRecord

__all__ = ["PruningEffect", "pruning_effect"]


@dataclass(frozen=True)
class PruningEffect:
    """What pruning saved, and what it may have cost.

    Attributes:
        pruned: Trials that were pruned.
        epochs_spent: By all finished trials.
        epochs_saved: That the pruned trials did not train.
        audited: Trials that would have been pruned, were run to the end, and are finished.
        wrong: Of these, how many ended on the front, or in the best share.
        low: Lower end of the 95% interval (Clopper and Pearson 1934) of the share that is wrong.
        high: Upper end.
        suspended: Trials that were run on because the audit said that pruning hurts.
        best: The share that counts as the best; None where it is the front.
        parked: Trials among the pruned ones that may still go on.
        spared: Trials that would have been parked but went on for the audit.
        acquitted: Of these, how many were among the best of the next rung.
    """

    pruned: int
    epochs_spent: int
    epochs_saved: int
    audited: int
    wrong: int
    low: float
    high: float
    suspended: int
    best: float | None
    parked: int = 0
    spared: int = 0
    acquitted: int = 0


def pruning_effect(
    trials: Sequence[TrialRecord], directions: Sequence[str], epochs: int | None
) -> PruningEffect | None:
    """Return what pruning saved, and cost; nothing if no trial was pruned or decided on.

    A trial that is not pruned has so many epochs; the most that one has where None.
    """
    own = [t for t in trials if t.own and t.steps]
    pruned = [t for t in own if t.pruned]
    decided = [decision for t in own for decision in t.decisions]
    audits = [n.acquitted for n in networks_of(trials) if n.acquitted is not None]
    if not pruned and not decided:
        return None
    ended = [t for t in own if t.finished]
    whole = epochs or max(len(t.steps) for t in ended)
    complete = [t for t in ended if t.complete]
    # Those that were run on while pruning was suspended are no sample of the pruned ones.
    flagged = [t for t in complete if t.audited]
    turned = signs(directions)
    best = next((decision.best for decision in decided), None)
    counted = [t for t in complete if t.feasible or best is not None]
    points = np.array([t.values for t in counted]).reshape(len(counted), len(turned)) * turned
    weights = trial_weights(counted)[0] if counted else np.zeros(0)
    wrong = sum(
        t.feasible and is_best(points, weights, np.array(t.values) * turned, best) for t in flagged
    )
    audited = len(flagged)
    low, high = 0.0, 1.0
    if audited:
        from scipy import stats  # takes a second to load

        interval = stats.binomtest(wrong, audited).proportion_ci()
        low, high = float(interval.low), float(interval.high)
    return PruningEffect(
        pruned=len(pruned),
        epochs_spent=sum(len(t.steps) for t in ended),
        epochs_saved=sum(max(0, whole - len(t.steps)) for t in pruned),
        audited=audited,
        wrong=wrong,
        low=low,
        high=high,
        suspended=sum(any(d.outcome == "suspended" for d in t.decisions) for t in own),
        best=best,
        parked=sum(t.parked is not None for t in pruned),
        spared=len(audits),
        acquitted=sum(audits),
    )
