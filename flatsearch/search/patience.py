"""A storage that may go away for a while: what is asked of it waits until it is back.

Around any storage of Optuna's. Databases restart, connections break, files are locked: such an
error passes, and the same is asked again. Nothing is written twice by that. Any other error of the
storage, for example a full disk, is one `StorageError`.
"""

from __future__ import annotations

import abc
import copy
import inspect
import itertools
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from flatsearch.errors import StorageError
from flatsearch.search.faults import FinishedTrialError, is_damage, is_of_storage, passes, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from optuna.distributions import BaseDistribution
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

__all__ = ["ASKED", "BACKOFF", "PATIENCE_SECONDS", "PatientStorage"]

PATIENCE_SECONDS = 600.0
# What is over sooner than this is not worth a line.
_QUIET_SECONDS = 1.0
# Pauses that double, not the same for all workers.
BACKOFF = wait_exponential(multiplier=0.1, max=5.0) + wait_random(0.0, 0.1)
# Which of the askings made a trial.
ASKED = "flatsearch:asked"
_logger = logging.getLogger("flatsearch")
_Result = TypeVar("_Result")


class _MissingError(StorageError, KeyError):
    """There is no such study or trial; a `KeyError` for Optuna."""

    __str__ = Exception.__str__


def _delegating(kind: type[PatientStorage]) -> type[PatientStorage]:
    """Let a class ask its backend for whatever it does not define itself."""

    def asks(name: str) -> Callable[..., Any]:
        def ask(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
            return self.ask(lambda: getattr(self.backend, name)(*args, **kwargs))

        return ask

    for name, _ in inspect.getmembers(BaseStorage, inspect.isfunction):
        if not name.startswith("_") and name not in vars(kind):
            setattr(kind, name, asks(name))
    abc.update_abstractmethods(kind)
    return kind


@_delegating
class PatientStorage(BaseStorage):
    """A storage of Optuna's whose passing errors are waited for.

    Args:
        backend: The storage.
        shown: What it is called in messages.
        file: The file that holds it, which must stay where it is; None where it is no file.
        patience: Seconds after which it is no longer waited for.
        say: Told, in a line, when it has gone and when it is back.

    Attributes:
        backend: The storage.
        stopped: A function that says whether there is no time to wait.
    """

    def __init__(
        self,
        backend: BaseStorage,
        shown: str,
        *,
        file: Path | None = None,
        patience: float = PATIENCE_SECONDS,
        say: Callable[[str], None] = _logger.warning,
    ) -> None:
        self.backend = backend
        self.stopped: Callable[[], bool] = lambda: False
        self._shown, self._file, self._patience, self._say = shown, file, patience, say
        self._inode = None if file is None else file.stat().st_ino
        self._gone: float | None = None
        self._given_up = False
        self._retrying = Retrying(
            retry=retry_if_exception(passes),
            wait=BACKOFF,
            stop=self._gives_up,
            sleep=self._sleep,
            before_sleep=self._wait_begins,
            reraise=True,
        )
        self._briefly = self._retrying.copy(stop=stop_after_delay(_QUIET_SECONDS))

    def ask(self, call: Callable[[], _Result]) -> _Result:
        """Call a function of the backend until it comes through.

        Args:
            call: The function; it may be called several times.

        Returns:
            What it returns.

        Raises:
            StorageError: If the storage does not come back, or does not work.
        """

        def attempt() -> _Result:
            self._check_file()
            self._write_what_waits()
            return call()

        try:
            result = self._retrying(attempt)
        except Exception as error:
            self._given_up = passes(error)
            raise self._translated(error) from error
        self._is_back()
        return result

    def _write_what_waits(self) -> None:
        """Write what should have been written before; nothing waits here."""

    def _translated(self, error: Exception) -> Exception:
        """Return a `StorageError` for an error that says that the storage does not work."""
        if isinstance(error, KeyError):
            return _MissingError(f"storage {self._shown!r} has no such study; was it deleted?")
        if not is_of_storage(error):
            return error
        waited = f" after {self._patience:.0f} s" if self._given_up else ""
        said = f"storage {self._shown!r} cannot be used{waited}: {reason(error)}"
        if is_damage(error):
            return StorageError(f"{said}; something in it is damaged, or does not fit into it")
        return StorageError(
            f"{said}; what it has is kept: the same command goes on when it works again"
        )

    def _check_file(self) -> None:
        # SQLite would go on with the file that is no longer there, and a journal with a new one.
        if self._file is None:
            return
        try:
            same = self._file.stat().st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise StorageError(
                f"storage {self._shown!r}: the file is gone, or another one is in its place; what"
                " is not in a copy is lost"
            )

    def _gives_up(self, state: RetryCallState) -> bool:
        late = (state.seconds_since_start or 0.0) > self._patience
        return late or self._given_up or self.stopped()

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.stopped():
            time.sleep(min(0.1, seconds))

    def _wait_begins(self, state: RetryCallState) -> None:
        failed = state.outcome.exception() if state.outcome is not None else None
        if failed is not None and (state.seconds_since_start or 0.0) > _QUIET_SECONDS:
            self._is_gone(failed, state.start_time)

    def _is_gone(self, error: BaseException, since: float) -> None:
        if self._gone is None:
            self._gone = since
            self._say(
                f"storage {self._shown!r} cannot be used: {reason(error)}; trying again for"
                f" {self._patience / 60:.3g} minutes"
            )

    def _is_back(self) -> None:
        self._given_up = False
        if self._gone is not None:
            seconds = time.monotonic() - self._gone
            self._gone = None
            self._say(f"storage {self._shown!r} is back after {seconds:.0f} s")

    # What may have arrived although the connection broke before the answer came.

    def _ask_again(self, call: Callable[[bool], _Result]) -> _Result:
        """Ask with a function that is told whether it has been called before."""
        tries = itertools.count()
        return self.ask(lambda: call(next(tries) > 0))

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Create a study; see Optuna."""
        name = study_name or f"no-name-{uuid.uuid4()}"

        def create(again: bool) -> int:
            try:
                return self.backend.create_new_study(directions, name)
            except DuplicatedStudyError:
                study_id = self.backend.get_study_id_from_name(name)
                if again and not self.backend.get_study_user_attrs(study_id):
                    return study_id
                raise

        return self._ask_again(create)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial; see Optuna."""
        made = template_trial or optuna.trial.create_trial(state=TrialState.RUNNING)
        made = copy.copy(made)
        # Whoever asks through this process has its own mark, and may ask twice.
        made.system_attrs = {ASKED: uuid.uuid4().hex, **made.system_attrs}

        def create(again: bool) -> int:
            for trial in self._unfinished(study_id) if again else ():
                if trial.system_attrs.get(ASKED) == made.system_attrs[ASKED]:
                    return trial._trial_id
            return self.backend.create_new_trial(study_id, made)

        return self._ask_again(create)

    def _unfinished(self, study_id: int) -> list[FrozenTrial]:
        states = (TrialState.RUNNING, TrialState.WAITING)
        return self.backend.get_all_trials(study_id, deepcopy=False, states=states)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Store a parameter of a trial; see Optuna."""

        def store(again: bool) -> None:
            if again and param_name in self.backend.get_trial(trial_id).params:
                return
            self.backend.set_trial_param(trial_id, param_name, param_value_internal, distribution)

        self._ask_again(store)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Tell how a trial has ended, or begin one that waited; see Optuna."""

        def tell(again: bool) -> bool:
            try:
                return self.backend.set_trial_state_values(trial_id, state, values)
            except FinishedTrialError:
                now = self.backend.get_trial(trial_id)
                same = values is None or list(values) == now.values
                if again and now.state == state and same:
                    return True
                raise

        return self._ask_again(tell)
