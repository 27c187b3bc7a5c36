"""A trial's metrics and the pruner's answer, in studies with any number of objectives.

Optuna refuses `trial.report` and `trial.should_prune` in a study with several objectives.
`report` and `should_prune` here work in both kinds: the metrics go to the trial's record, and
the study's own pruner decides.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from optuna.pruners import NopPruner
from optuna.trial import TrialState

from flatsearch.record.constraints import PRUNED_SOFTLY, write_constraints
from flatsearch.record.writing import write_step

if TYPE_CHECKING:
    import optuna
    from optuna.trial import BaseTrial

__all__ = ["mark_pruned", "report", "should_prune"]


def report(trial: BaseTrial, step: int, **metrics: float) -> None:
    """Record a step's metrics, in a study with any number of objectives.

    In a single-objective study whose metric is named (`study.set_metric_names`) and among the
    given ones, that metric is also reported to Optuna, so that Optuna's own pruners see it.

    Args:
        trial: The running trial; or one of no study (`FixedTrial`, `study.best_trial`), whose
            record alone is written.
        step: 0 for the first, usually the epoch.
        **metrics: Numbers by name, for example `accuracy=0.9, flatness=3.2`.

    Raises:
        ValueError: If the step is negative or there are no metrics.
        TypeError: If a metric is not a number.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(directions=["maximize", "minimize"])
        >>> trial = study.ask()
        >>> report(trial, 0, accuracy=0.9, flatness=3.2)
        >>> trial.user_attrs
        {'flatsearch:step:0': {'accuracy': 0.9, 'flatness': 3.2}}
    """
    write_step(trial, step, metrics)
    study: optuna.Study | None = getattr(trial, "study", None)
    if study is None or len(study.directions) > 1:
        return
    names = study.metric_names
    if names is not None and names[0] in metrics:
        trial.report(float(metrics[names[0]]), step)


def should_prune(trial: BaseTrial) -> bool:
    """Return whether the study's pruner would stop this trial now.

    Unlike `trial.should_prune()` this works in a multi-objective study, with a pruner that
    reads the metrics from the record, such as `FlatnessPruner`. One that reads what is reported
    to Optuna sees nothing there and prunes nothing, of which a warning is given.

    Args:
        trial: The running trial; one of no study is never pruned.

    Returns:
        True if the trial should raise `optuna.TrialPruned`.
    """
    study: optuna.Study | None = getattr(trial, "study", None)
    if study is None or len(study.directions) == 1:
        return bool(trial.should_prune())
    pruner = type(study.pruner)
    if pruner is NopPruner:
        return False  # without reading the study for it
    if pruner.__module__.startswith("optuna.pruners"):
        warnings.warn(
            f"{pruner.__name__} can never prune in a study of several objectives: it sees only what"
            " is reported to Optuna, which takes one; pass pruner=flatsearch.FlatnessPruner(), or"
            f" flatsearch.MetricPruner('accuracy', optuna.pruners.{pruner.__name__}(...)), to"
            " optuna.create_study or optuna.load_study",
            stacklevel=2,
        )
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    frozen = next((other for other in running if other.number == trial.number), None)
    # Another process may have ended the trial, for want of a heartbeat.
    return frozen is not None and bool(study.pruner.prune(study, frozen))


def mark_pruned(trial: BaseTrial, *, pruned: bool) -> None:
    """Mark a trial that returns its values as pruned, or as not, for soft pruning.

    Some samplers (NSGA-II, NSGA-III, GP, CMA-ES) learn nothing from Optuna's state PRUNED, and
    may propose the same point again. A trial that is pruned softly returns the values it has
    reached, and violates a constraint: it is never among the best trials, and samplers keep away.
    Call this for every trial of a study, before it returns. A sampler of Optuna 4 needs
    ``constraints_func=flatsearch.constraint_values`` to heed constraints; one of Optuna 5 does so.

    Args:
        trial: The running trial.
        pruned: Whether it ends early.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(directions=["maximize", "minimize"])
        >>> for accuracy, pruned in ((0.9, True), (0.8, False)):
        ...     trial = study.ask()
        ...     mark_pruned(trial, pruned=pruned)
        ...     _ = study.tell(trial, (accuracy, 1.0))
        >>> [trial.number for trial in study.best_trials]
        [1]
    """
    write_constraints(trial, {PRUNED_SOFTLY: float(pruned)})
