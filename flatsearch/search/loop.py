"""Running a study: the loop around the trials of one worker."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import traceback
from typing import TYPE_CHECKING

import optuna
import torch
from optuna.trial import TrialState

from flatsearch.errors import FlatsearchError, OutOfTimeError, StorageError
from flatsearch.record import TrialRecord, write_trial
from flatsearch.search.control import Control
from flatsearch.search.interrupts import StopSignals, handling
from flatsearch.search.leases import SHARED_SECONDS, WorkerStorage
from flatsearch.search.liveness import fail_dead_trials
from flatsearch.search.parking import no_result, withdraw
from flatsearch.search.patience import PatientStorage
from flatsearch.search.tally import Tally
from flatsearch.search.trial_budget import Budget, finished_count
from flatsearch.search.unstuck import UnstuckSampler
from flatsearch.settings import DEFAULT_FAILURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna.trial import FrozenTrial

    from flatsearch.search.objective import FlatnessObjective

__all__ = ["run_study"]

# Seconds between two looks at what other workers do.
_POLL_SECONDS = 0.2
_logger = logging.getLogger("flatsearch")


class WorkerLoop:
    """One worker's loop, as the objective and the callback of `study.optimize`.

    Args:
        study: The study.
        objective: What is run, guarded.
        budget: How many trials all workers together are to finish.
        max_failures: Failed trials in a row that end the loop.
        timeout: Seconds after which no new trial is started; None for no end.
        on_trial: A function that is called with (study, trial) after every trial.
    """

    def __init__(
        self,
        study: optuna.Study,
        objective: FlatnessObjective,
        budget: Budget,
        *,
        max_failures: int,
        timeout: float | None,
        on_trial: Callable[[optuna.Study, FrozenTrial], None] | None,
    ) -> None:
        self._study, self._objective, self._budget = study, objective, budget
        self._on_trial = on_trial
        self._trial_id = -1
        self._broken: StorageError | None = None
        self.signals = StopSignals()
        self.tally = Tally(objective.space, max_failures)
        self._control = Control(
            self.signals.check, math.inf if timeout is None else time.monotonic() + timeout
        )
        self._sampler = UnstuckSampler(study.sampler, objective.settings.seed)

    def run(self) -> None:
        """Run trials until the budget is used up, or something ends the loop."""
        self._wait_for_storage(lambda: bool(self.signals.received), SHARED_SECONDS)
        try:
            self._objective.parking.promote(self._study)
            if self.goes_on():
                with _sampling(self._study, self._sampler):
                    while self._optimize():
                        pass
            if self._broken is not None:
                raise self._broken
            withdraw(self._study)
        except StorageError:
            self.signals.check()  # that is why it was not waited for
            raise
        finally:
            self._wait_for_storage(lambda: False, 0.0)
        self.signals.check()

    def _wait_for_storage(self, stopped: Callable[[], bool], shared_seconds: float) -> None:
        """Tell a storage when there is no time to wait, and for how long readings are shared."""
        storage = self._study._storage
        if isinstance(storage, PatientStorage):
            storage.stopped = stopped
        if isinstance(storage, WorkerStorage):
            storage.shared_seconds = shared_seconds

    def _optimize(self) -> bool:
        """Run trials; return whether there is more to do, because others ended the last one."""
        try:
            self._study.optimize(
                self.trial,
                timeout=max(0.0, self._control.deadline - time.monotonic()),
                callbacks=[self.after],
                catch=(Exception,),
            )
        except Exception as error:
            # Optuna has errors of its own for a storage that does not take how a trial has ended.
            for cause in (error, error.__context__):
                if isinstance(cause, StorageError):
                    raise cause from None
            if self._trial_id < 0:  # it is no fault of a trial's
                raise
            lost = self._study._storage.get_trial(self._trial_id)
            if lost.state != TrialState.FAIL:
                raise
            _logger.warning(f"trial {lost.number} was taken for dead by another worker; going on")
            return self.goes_on()
        return False

    def wait(self, trial: optuna.Trial | None = None) -> bool:
        """Wait for other workers until there is something to do; return whether there is."""
        number = None if trial is None else trial.number
        if trial is not None and not TrialRecord(trial).begins:
            return True  # its network has been counted
        while (state := self._budget.state(self._study, number)) != "run":
            late = trial is None and time.monotonic() > self._control.deadline
            if late or self.signals.received:
                return False
            if fail_dead_trials(self._study):
                self._objective.parking.promote(self._study)
            elif state == "done":
                return False
            else:
                time.sleep(_POLL_SECONDS)
        return True

    def goes_on(self) -> bool:
        """Wait for other workers; return whether there is a trial for this one, new or promoted."""
        return self.wait() or bool(
            not self.signals.received
            and self._objective.parking.promote(self._study, ends=True)
            and self.wait()
        )

    def trial(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Run the objective, and record why it fails."""
        self.signals.inside = True
        self._trial_id = trial._trial_id
        try:
            self.signals.check()
            if not self.wait(trial):
                self.signals.check()
                write_trial(trial, failure="other workers have used up the budget", late=True)
                return no_result(self._study)
            return self._objective.run(trial, self._control)
        except optuna.TrialPruned:
            raise
        except StorageError as broken:
            self._broken = broken
            write_trial(trial, failure=str(broken), late=True)
            raise
        except KeyboardInterrupt:
            write_trial(trial, failure="interrupted", late=True)
            raise
        except OutOfTimeError as late:
            write_trial(trial, failure=str(late), late=True)
            raise
        except Exception as caught:
            self.tally.error = f"{type(caught).__name__}: {' '.join(str(caught).split())}"
            write_trial(trial, failure=self.tally.error, traceback=traceback.format_exc())
            if isinstance(caught, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            raise
        finally:
            self.signals.inside = False

    def after(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Decide, after a trial, how to go on."""
        self._trial_id = -1
        self.tally.count(study, trial)
        being_trained = trial.state == TrialState.FAIL and TrialRecord(trial).duplicate
        self._sampler.at_random = being_trained or self.tally.repeats_itself
        if being_trained:  # costs nothing: a worker that finds no other does not spin
            time.sleep(_POLL_SECONDS)
        if self._on_trial is not None:
            self._on_trial(study, trial)
        if self.tally.idle:
            self._budget.target = 0  # no new network; what is parked may go on
        if self._broken or self.tally.failing or self.signals.received or not self.goes_on():
            study.stop()


@contextlib.contextmanager
def _sampling(study: optuna.Study, sampler: optuna.samplers.BaseSampler) -> Iterator[None]:
    """Let a study ask another sampler for the time of a run."""
    own, study.sampler = study.sampler, sampler
    try:
        yield
    finally:
        study.sampler = own


def run_study(
    study: optuna.Study,
    objective: FlatnessObjective,
    *,
    n_trials: int | None = None,
    target: int | None = None,
    timeout: float | None = None,
    max_failures: int = DEFAULT_FAILURES,
    on_trial: Callable[[optuna.Study, FrozenTrial], None] | None = None,
) -> str:
    """Run trials until enough are finished, or there is nothing left to train.

    Any number of processes may run the same study; together they finish exactly as many trials
    as are wanted.

    Args:
        study: A study from `open_study`.
        objective: The objective.
        n_trials: New finished (complete or pruned) trials; those that fail, are over a limit or
            take over the result of an earlier trial do not count.
        target: Instead of `n_trials`, finished trials that the study is to have in all.
        timeout: Seconds after which no new trial is started, and the running one ends at its next
            epoch, without counting.
        max_failures: Failed trials in a row that end the run.
        on_trial: A function that is called with (study, trial) after every trial.

    Returns:
        Why it ended early, if it did: the space is exhausted. Else an empty string.

    Raises:
        Interrupted: On SIGINT, SIGTERM or SIGHUP; the trial that is being trained fails.
        FlatsearchError: If trials fail several times in a row, or no candidate keeps the limits.
    """
    if target is None:
        target = finished_count(study) + (n_trials or 0)
    loop = WorkerLoop(
        study,
        objective,
        Budget(target),
        max_failures=max_failures,
        timeout=timeout,
        on_trial=on_trial,
    )
    with handling(loop.signals.handle):
        loop.run()
    if problem := loop.tally.problem(objective.settings):
        raise FlatsearchError(problem)
    return loop.tally.exhaustion()
