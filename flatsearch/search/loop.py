"""Running a study: the loop around the trials of one worker."""

from __future__ import annotations

import math
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

from flatsearch import record
from flatsearch.errors import FlatsearchError, OutOfTimeError
from flatsearch.search.interrupts import StopSignals, handling
from flatsearch.search.liveness import fail_dead_trials, this_process
from flatsearch.search.trial_budget import Budget, finished_count
from flatsearch.settings import DEFAULT_FAILURES
from flatsearch.spaces.describe import count_architectures

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial

    from flatsearch.search.objective import FlatnessObjective
    from flatsearch.settings import RunSettings
    from flatsearch.spaces.space import SearchSpace

__all__ = ["run_study"]

# This many candidates in a row that cost no training (over a limit, or networks that were tried
# before) mean that there is nothing more to find.
_MAX_IDLE = 200
# After this many that were tried before it is worth counting whether all were.
_MAX_REPEATS_COUNTED = 20
_MOST_COUNTED = 2_000
# After this many in a row that were tried before, the next is drawn at random: samplers keep
# proposing what they hold best.
_MAX_REPEATS = 3
# Between two looks at what other workers do.
_POLL_SECONDS = 0.2


@dataclass
class _Tally:
    """How a run is going: in a row, trials that fail or cost no training."""

    max_failures: int = DEFAULT_FAILURES
    failures: int = 0
    refused: int = 0
    repeats: int = 0
    same: int = 0
    exhausted: int | None = None

    def count(self, trial: FrozenTrial) -> None:
        self.same = self.same + 1 if record.is_reuse(trial) else 0
        if trial.state == TrialState.FAIL:
            # The twin of a trial that is running says nothing about either, nor does a late one.
            self.failures += not (record.is_reuse(trial) or record.is_late(trial))
            return
        self.failures = 0
        if record.is_finished(trial):
            self.refused = self.repeats = 0
        elif record.is_reuse(trial) and not record.is_over_limit(trial):
            self.repeats += 1
        else:
            self.refused += 1

    @property
    def idle(self) -> bool:
        return self.refused + self.repeats >= _MAX_IDLE

    @property
    def stuck(self) -> bool:
        return self.failures >= self.max_failures or self.idle or self.exhausted is not None


class _Run:
    """One worker's loop, as the callbacks of `study.optimize`."""

    def __init__(
        self,
        study: optuna.Study,
        objective: FlatnessObjective,
        budget: Budget,
        tally: _Tally,
        on_trial: Callable[[optuna.Study, FrozenTrial], None] | None,
    ) -> None:
        self.study = study
        self.objective = objective
        self.budget = budget
        self.tally = tally
        self.on_trial = on_trial
        self.signals = StopSignals()
        self.error = ""
        self.sampler = study.sampler
        entropy = [objective.settings.seed, len(study.get_trials(deepcopy=False)), 1]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        self.at_random = optuna.samplers.RandomSampler(seed=seed)

    def wait(self, trial: optuna.Trial | None = None) -> bool:
        """Wait for other workers until there is something to do; return whether there is."""
        number = None if trial is None else trial.number
        marked = False
        while (state := self.budget.state(self.study, number)) == "wait":
            if trial is not None and not marked:
                # The objective does so too, but this trial may never come to it.
                record.write_worker(trial, this_process())
                marked = True
            if self.signals.received:
                return False
            time.sleep(_POLL_SECONDS)
            fail_dead_trials(self.study)
        return state == "run"

    def trial(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """The objective, guarded."""
        self.signals.inside = True
        try:
            self.signals.check()
            if not self.wait(trial):
                self.signals.check()
                # NaN fails a trial without an exception; samplers learn nothing from it.
                record.write_late(trial, "other workers have used up the budget")
                nothing = (math.nan,) * len(self.study.directions)
                return nothing if len(nothing) > 1 else nothing[0]
            return self.objective(trial)
        except optuna.TrialPruned:
            raise
        except KeyboardInterrupt:
            record.write_failure(trial, "interrupted")
            raise
        except OutOfTimeError as late:
            record.write_late(trial, str(late))
            raise
        except Exception as caught:
            self.error = f"{type(caught).__name__}: {' '.join(str(caught).split())}"
            record.write_failure(trial, self.error, traceback.format_exc())
            if isinstance(caught, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            raise
        finally:
            self.signals.inside = False

    def after(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Decide, after a trial, how to go on."""
        self.tally.count(trial)
        twin = trial.state == TrialState.FAIL and record.is_reuse(trial)
        repeats = twin or self.tally.same >= _MAX_REPEATS
        study.sampler = self.at_random if repeats else self.sampler
        if twin:  # costs nothing: a worker that finds no other does not spin
            time.sleep(_POLL_SECONDS)
        if self.on_trial is not None:
            self.on_trial(study, trial)
        if self.tally.repeats == _MAX_REPEATS_COUNTED:
            self.tally.exhausted = _all_tried(study, self.objective.space)
        if self.tally.stuck or self.signals.received or not self.wait():
            study.stop()


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
        study: From `open_study`.
        objective: The objective.
        n_trials: New finished (complete or pruned) trials; those that fail, are over a limit or
            take over the result of an earlier trial do not count.
        target: Instead of `n_trials`, finished trials that the study is to have in all.
        timeout: Seconds after which no new trial is started, and the running one ends at its next
            epoch, without counting.
        max_failures: Failed trials in a row that end the run.
        on_trial: Called with (study, trial) after every trial.

    Returns:
        Why it ended early, if it did: the space is exhausted. Else an empty string.

    Raises:
        Interrupted: On SIGINT or SIGTERM; a trial that is being trained is marked as failed.
        FlatsearchError: If trials fail several times in a row, or no candidate keeps the limits.
    """
    if target is None:
        target = finished_count(study) + (n_trials or 0)
    tally = _Tally(max_failures)
    run = _Run(study, objective, Budget(target), tally, on_trial)
    with handling(run.signals.handle):
        if not run.wait():
            run.signals.check()
            return ""
        objective.on_batch = run.signals.check
        objective.deadline = None if timeout is None else time.monotonic() + timeout
        try:
            study.optimize(run.trial, timeout=timeout, callbacks=[run.after], catch=(Exception,))
        finally:
            study.sampler = run.sampler
            objective.on_batch = objective.deadline = None
    run.signals.check()
    if tally.idle and tally.refused:
        raise FlatsearchError(_none_fits(tally, objective.settings))
    if tally.failures >= max_failures:
        raise FlatsearchError(
            f"{tally.failures} trials failed in a row; the last one with {run.error}"
        )
    return _exhausted(tally)


def _exhausted(tally: _Tally) -> str:
    """Say that there is nothing left to train, if so."""
    if tally.exhausted is not None:
        return f"all {tally.exhausted} architectures of the space have been tried"
    if not tally.idle:
        return ""
    return (
        f"the last {tally.repeats} candidates are networks that were tried before: the space"
        " seems to be exhausted"
    )


def _all_tried(study: optuna.Study, space: SearchSpace) -> int | None:
    """Return the number of a space's architectures if a study has tried them all, else None."""
    trials = [record.read_trial(t) for t in study.get_trials(deepcopy=False)]
    tried = {t.architecture for t in trials if t.state in {"COMPLETE", "PRUNED"} and not t.recipe}
    count = count_architectures(space, most=_MOST_COUNTED)
    return count if count is not None and len(tried) >= count else None


def _none_fits(tally: _Tally, settings: RunSettings) -> str:
    """Say that candidates are over the limits, and what to do."""
    limits = ", ".join(f"{name} {limit:g}" for name, limit in settings.limits.items())
    before = f", or were tried before ({tally.repeats} of them)" if tally.repeats else ""
    return (
        f"{tally.refused + tally.repeats} candidates in a row are over the limits"
        f" ({limits}){before}; raise them, or take a space with smaller networks"
    )
