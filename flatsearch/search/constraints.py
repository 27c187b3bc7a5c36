"""How samplers and optuna-dashboard come to see the constraints that are on record by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.samplers import GPSampler
from optuna.trial import TrialState

from flatsearch.record.constraints import HAS_NAMED, constraint_values, is_named, read_constraints
from flatsearch.search.promotion_sampler import PromotionSampler

if TYPE_CHECKING:
    import optuna

__all__ = ["list_constraints", "sampler_options"]


def sampler_options() -> dict[str, Any]:
    """Return the arguments without which samplers of Optuna 4 heed no constraints."""
    return {} if HAS_NAMED else {"constraints_func": constraint_values}


def list_constraints(trial: optuna.Trial) -> None:
    """Store the named constraints once more, as the list that optuna-dashboard reads.

    Optuna 5 reads both, so that every value counts twice: TPE and NSGA-II, which add up what is
    violated, propose the same; GP, which multiplies probabilities, would keep further away, so that
    its studies have no list. Samplers want the same number of constraints everywhere: the first
    complete trial decides for all. Under Optuna 4 the list is there already.

    Args:
        trial: The running trial, all of its constraints stored.
    """
    values = constraint_values(trial)
    if HAS_NAMED and values and _is_wanted(trial.study):
        # There is no public way to store a list.
        trial.storage.set_trial_system_attr(trial._trial_id, "constraints", values)


def _is_wanted(study: optuna.Study) -> bool:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    first = next((found for t in complete if (found := read_constraints(t))), None)
    if first is None:
        sampler = study.sampler
        sampler = sampler.sampler if isinstance(sampler, PromotionSampler) else sampler
        return not isinstance(sampler, GPSampler)
    return not all(map(is_named, first))
