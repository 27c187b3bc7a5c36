"""Parked trials: their networks are kept, and go on in other trials.

To Optuna a parked trial is PRUNED (or complete with a violated constraint, where pruning is soft),
and a promotion is an enqueued trial of the same parameters, which the next `ask` of any worker
takes. Everything is decided from the study's trials alone: what a process that died has left undone
is done by the next trial that ends.
"""

from __future__ import annotations

import contextlib
import math
import uuid
import warnings
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from flatsearch.errors import StorageError
from flatsearch.pruners.metric_view import WritableTrial, claim
from flatsearch.pruners.promoter import Promoter
from flatsearch.pruners.reporting import report
from flatsearch.record import TrialRecord, write_trial
from flatsearch.search.checkpoints import Checkpoint, Checkpoints
from flatsearch.search.liveness import fail_dead_trials, is_orphan
from flatsearch.training.trainer import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import optuna
    import torch
    from optuna.trial import FrozenTrial

    from flatsearch.record import Promotion
    from flatsearch.search.checkpoints import Store

__all__ = [
    "Parking",
    "finish",
    "goes_on_already",
    "note_turn_over",
    "report_again",
    "steps_of",
    "warn_of_unusable",
    "withdraw",
]


class Parking:
    """Keeps the networks of a study's trials, and promotes those that are parked.

    Args:
        store: Where they are kept; None for nowhere, and nothing is parked then.
    """

    def __init__(self, store: Store | None) -> None:
        self._checkpoints = None if store is None else Checkpoints(store)
        self._warned = False

    @property
    def has_store(self) -> bool:
        """Whether anything can be parked."""
        return self._checkpoints is not None

    def keeps(self, study: optuna.Study) -> bool:
        """Return whether the trials of a study are parked; warn, once, where they cannot be."""
        if not isinstance(study.pruner, Promoter):
            return False
        if self._checkpoints is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"without an artifact store no trial can be parked: {type(study.pruner).__name__}"
                " prunes for good",
                stacklevel=2,
            )
        return self._checkpoints is not None

    def begin(self, trial: optuna.Trial) -> str:
        """Return the name of a trial's checkpoint, which is that of its network."""
        name = _kept_as(trial) or f"parked-{uuid.uuid4().hex}"
        write_trial(trial, checkpoint=name)
        return name

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Keep a network as it is after an epoch; where that fails for once, the trial goes on.

        Raises:
            StorageError: If the folder of the artifacts cannot be written to.
        """
        if self._checkpoints is not None:
            with self._going_on(f"the network in training could not be kept as {name!r}"):
                self._checkpoints.save(name, checkpoint)

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Say what has gone wrong with the artifact store, which is no reason to lose a trial.

        A folder that cannot be written to ends the run: it will not be better for the next one.
        """
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, StorageError):
                raise
            warnings.warn(f"{what}: {type(error).__name__}: {error}", stacklevel=3)

    def load(self, trial: optuna.Trial, network: str, device: torch.device) -> Checkpoint | None:
        """Return where a trial goes on, with the network of an earlier one or with its own.

        Args:
            trial: The trial.
            network: What tells its network from others.
            device: Where it is trained.

        Returns:
            The checkpoint. None for a network that nobody has trained yet, and where it is missing,
            or of another network (the search space has changed): the training begins anew, with the
            same random numbers.
        """
        name = _kept_as(trial)
        if name is None or self._checkpoints is None:
            return None
        found = self._checkpoints.load(name, device)
        promotion = TrialRecord(trial).promotion
        if found is not None and found.network == network:
            return found
        if promotion is not None and (promotion.after or found is not None):
            where = "is not" if found is None else "is another one"
            message = f"the network of trial {promotion.trial} {where} where it was kept ({name!r})"
            warnings.warn(f"{message}; it is trained anew", stacklevel=2)
        return None

    def promote(self, study: optuna.Study, *, ends: bool = False) -> int:
        """Enqueue what goes on now, and drop what is no longer wanted.

        Args:
            study: The study.
            ends: Whether no new network is to come.

        Returns:
            The number of trials that were enqueued.
        """
        if self._checkpoints is None or not isinstance(study.pruner, Promoter):
            return 0
        if ends:
            fail_dead_trials(study)  # nobody else may be there to see that they are
        trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
        names = {number: TrialRecord(trial).checkpoint for number, trial in trials.items()}
        wanted, enqueued = study.pruner.wanted(study), 0
        for promotion in study.pruner.next_promotions(study, ends=ends):
            # One that is wanted and is not there is trained anew.
            possible = promotion.trial in wanted or self._has(names[promotion.trial])
            if possible and not _is_queued(study, promotion):
                enqueued += 1
                study.enqueue_trial(
                    trials[promotion.trial].params,
                    user_attrs={TrialRecord.promotion.key: promotion.to_dict()},
                )
        kept = {names.get(number) for number in wanted}
        for name in names.values():
            if name is not None and name not in kept:
                with self._going_on(f"what was kept as {name!r} could not be removed"):
                    self._checkpoints.drop(name)
        return enqueued

    def _has(self, name: str | None) -> bool:
        found = False
        if name is not None and self._checkpoints is not None:
            with self._going_on(f"whether there is {name!r} is not known"):
                found = self._checkpoints.has(name)
        return found


def _is_queued(study: optuna.Study, promotion: Promotion) -> bool:
    """Return whether another worker has enqueued the same a moment ago."""
    unfinished = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    told = [TrialRecord(trial).promotion for trial in unfinished if not is_orphan(trial)]
    return any(p is not None and p.same_as(promotion) for p in told)


def report_again(trial: optuna.Trial, checkpoint: Checkpoint) -> None:
    """Begin a trial's record with the steps of the trials that it goes on with."""
    known = TrialRecord(trial).steps
    for step, values in checkpoint.steps.items():
        if step not in known:
            report(trial, step, **values)


def warn_of_unusable(trial: optuna.Trial, error: Exception) -> None:
    """Say that what was kept of a trial's network is of no use."""
    warnings.warn(
        f"the network of trial {TrialRecord(trial).begun_by} cannot go on from where it was kept"
        f" ({type(error).__name__}: {' '.join(str(error).split())}); it is trained anew",
        stacklevel=3,
    )


def note_turn_over(trial: optuna.Trial, epoch: int, *, parked: bool) -> str:
    """Record that a trial's turn is over after an epoch; return what is said of it."""
    reason = f"{'parked' if parked else 'pruned'} after epoch {epoch}"
    write_trial(trial, stopped=reason)
    # Last: from now on it may be promoted.
    write_trial(trial, parked=epoch if parked else None)
    return reason


def steps_of(trial: optuna.Trial) -> dict[int, dict[str, float]]:
    """Return the metrics of every step of a trial so far, for its checkpoint."""
    return {step: dict(values) for step, values in TrialRecord(trial).steps.items()}


def no_result(study: optuna.Study) -> float | tuple[float, ...]:
    """Return what fails a trial without an exception, so that samplers learn nothing from it."""
    nothing = (math.nan,) * len(study.directions)
    return nothing if len(nothing) > 1 else nothing[0]


def _kept_as(trial: optuna.Trial) -> str | None:
    """Return the name of a trial's checkpoint, or of that of the network that it goes on with."""
    record = TrialRecord(trial)
    promotion = record.promotion
    if record.checkpoint is not None or promotion is None:
        return record.checkpoint
    trials = trial.study.get_trials(deepcopy=False)
    return TrialRecord(next(t for t in trials if t.number == promotion.trial)).checkpoint


def goes_on_already(trial: optuna.Trial, promotion: Promotion) -> int | None:
    """Return an earlier trial that goes on with the same network from the same epoch, if any.

    Of several workers that promote a network at once, the oldest trial trains it.

    Args:
        trial: The running trial.
        promotion: What it was told.

    Returns:
        The number of the other trial.
    """
    fail_dead_trials(trial.study)
    for other in trial.study.get_trials(deepcopy=False):
        if other.number >= trial.number or other.state == TrialState.FAIL:
            continue
        told = TrialRecord(other).promotion
        same = told is not None and told.same_as(promotion)
        if same and not (other.state == TrialState.RUNNING and is_orphan(other)):
            return other.number
    return None


def finish(study: optuna.Study, objective: Callable[[optuna.Trial], Any]) -> None:
    """Go on with what the study's pruner still promotes, until nothing is left.

    For a study that was run by `study.optimize`, which ends after a number of trials whatever still
    waits; `flatsearch run` does it by itself.

    Args:
        study: The study, to which no new network is to come.
        objective: A `FlatnessObjective` or a `ResumableObjective`.
    """
    parking: Parking = objective.parking  # type: ignore[attr-defined]

    def go_on(trial: optuna.Trial) -> Any:
        """Run the objective, but for a new network: somebody else was faster with what waited."""
        if TrialRecord(trial).promotion is not None:
            return objective(trial)
        write_trial(trial, failure="nothing is left that goes on", late=True)
        return no_result(study)

    while parking.promote(study, ends=True) + parking.promote(study) or _waiting(study):
        study.optimize(go_on, n_trials=1)


def _waiting(study: optuna.Study) -> list[FrozenTrial]:
    """Return the promotions that wait."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return [trial for trial in waiting if TrialRecord(trial).promotion is not None]


def withdraw(study: optuna.Study) -> None:
    """Fail the promotions that still wait, unless somebody runs trials; they may come again later.

    Args:
        study: The study.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if not all(map(is_orphan, running)):
        return
    for trial in _waiting(study):
        if claim(study, trial):
            reason = "the run ended before it was this trial's turn"
            write_trial(WritableTrial(study, trial), failure=reason, late=True)
            study.tell(trial.number, state=TrialState.FAIL)
