"""Networks that a study has trained already: finding them, in spite of parallel workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from flatsearch.record import FINISHED, TrialRecord, read_trials, write_constraints, write_trial
from flatsearch.record.constraints import is_named
from flatsearch.search.liveness import fail_dead_trials, is_orphan

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna
    from optuna.trial import FrozenTrial

__all__ = ["TrainedNetworks", "take_over"]

_POLL_SECONDS = 0.05


class TrainedNetworks:
    """Finds the trial that has trained, or is training, the same network.

    Among several workers the older trial, the one with the smaller number, wins. A trial writes
    which network it is before it looks, and then waits until every older running trial has
    written it too. Two trials therefore never both think that the network is theirs
    (Lamport's bakery, with Optuna's trial numbers as tickets), unless one was enqueued and so
    has a number that is older than its start.

    Args:
        patience: Seconds after which an older running trial that has not said which network it
            is, is taken for dead. Building a model takes a second, not a minute.
    """

    def __init__(self, patience: float = 60.0) -> None:
        self._patience = patience
        self._dead: set[int] = set()

    def find(
        self,
        study: optuna.Study,
        number: int,
        key: str,
        on_wait: Callable[[], None] | None = None,
    ) -> FrozenTrial | None:
        """Return another trial of the same network.

        Args:
            study: The study.
            number: The asking trial's number; its own key is stored.
            key: What tells the network from others, as stored with the trials.
            on_wait: Called while it waits; what it raises ends the wait.

        Returns:
            A finished trial that was trained, if there is one, else an older running one, or one
            that was cut off and waits to go on; None if this network is new.
        """
        deadline = time.monotonic() + self._patience
        while True:
            trials = study.get_trials(deepcopy=False)
            silent = {
                trial.number
                for trial in trials
                if trial.state == TrialState.RUNNING
                and trial.number < number
                and TrialRecord(trial).network is None
            } - self._dead
            if not silent:
                break
            if on_wait is not None:
                on_wait()
            fail_dead_trials(study)
            if time.monotonic() > deadline:
                self._dead |= silent
                break
            time.sleep(_POLL_SECONDS)
        known = {record.number: record for record in read_trials(trials)}
        same = [
            trial
            for trial in trials
            if (found := known.get(trial.number)) is not None
            and trial.number != number
            and found.network == key
            and not found.duplicate
            and found.superseded_by is None
        ]
        finished = [trial for trial in same if trial.state in FINISHED]
        running = [
            trial
            for trial in same
            if trial.state == TrialState.RUNNING and trial.number < number and not is_orphan(trial)
        ]
        told = [TrialRecord(t).promotion for t in trials if t.state == TrialState.WAITING]
        waiting = {promotion.trial for promotion in told if promotion is not None}
        goes_on = {TrialRecord(trial).begun_by for trial in trials if trial.number == number}
        cut_off = [trial for trial in same if trial.number in waiting - goes_on]
        return next(iter(finished + running + cut_off), None)


def take_over(trial: optuna.Trial, earlier: FrozenTrial) -> None:
    """Record a trial as the duplicate of an earlier one, with that one's result.

    Steps are not copied: pruners compare them between trials, where the same curve must not count
    twice. But an intermediate value is what a sampler ranks a pruned trial by; the last one is
    reported.

    Args:
        trial: The running trial.
        earlier: The trial of the same network.
    """
    found = TrialRecord(earlier)
    write_trial(
        trial,
        duplicate_of=earlier.number,
        metrics=found.metrics or None,
        artifact=found.artifact,
        diverged=found.diverged or None,
    )
    named = {name: value for name, value in found.constraints.items() if is_named(name)}
    write_constraints(trial, named)
    step = earlier.last_step
    if step is not None and earlier.state == TrialState.PRUNED:
        trial.report(earlier.intermediate_values[step], step)
