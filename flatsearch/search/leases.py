"""The storage of a worker: its trials have leases, what they record may wait, reads are shared.

While a trial trains and the storage is away, what it records waits in memory, and the training goes
on. A running trial has a *lease*, an attribute that its worker renews. One that is not renewed for
long is that of a worker that is gone, wherever it was. All storages have attributes, not all have
Optuna's heartbeats, and no two clocks are compared.

Between two trials, and at every step, several parts of Optuna and of flatsearch each read all
trials, one right after the other. In a worker's loop they share one reading, unless it has written
since.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import time
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
from optuna.trial import TrialState

from flatsearch.pruners.metric_view import asked_for
from flatsearch.record import TrialRecord
from flatsearch.search.faults import passes
from flatsearch.search.liveness import this_process
from flatsearch.search.patience import ASKED, PatientStorage
from flatsearch.search.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from optuna.trial import FrozenTrial

__all__ = ["SHARED_SECONDS", "WorkerStorage"]

_Result = TypeVar("_Result")

# A lease that has not been renewed for this long, while somebody watched, is a dead worker's. Much
# longer than the interval: a slow machine must not lose a live trial.
_INTERVAL_SECONDS = 60
_GRACE_SECONDS = 300.0
# No clock is this wrong, not even another time zone's: a lease that is older needs no watching.
_LONG_AGO_SECONDS = 24 * 3600.0
_LEASE = "flatsearch:lease"
_ENDS = tuple(state for state in TrialState if state.is_finished())
# For how long a worker shares a reading of the trials: less than any pause after which it looks
# what others have done.
SHARED_SECONDS = 0.1


class WorkerStorage(PatientStorage, BaseHeartbeat):
    """A patient storage for whoever runs trials; for its arguments see there.

    Attributes:
        shared_seconds: For how long a reading of the trials is shared. 0 but in the loop of a
            worker: whoever only watches wants to know what there is now.
    """

    shared_seconds = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.RLock()
        self._unwritten: list[tuple[str, int, Any, Any]] = []
        self._watched: dict[int, tuple[object, float]] = {}
        self._renewed: tuple[int, float] = (-1, 0.0)
        self._last_write = object()
        # By study: when, and after which write, its trials were read.
        self._read: dict[int, tuple[float, object, list[FrozenTrial]]] = {}
        self._sharing: dict[int, Sharing] = defaultdict(Sharing)

    # Reading all trials costs a database most.

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials, as they were a moment ago if this process has not written since."""
        last_write = self._last_write
        when, after, trials = self._read.get(study_id, (-math.inf, None, []))
        if after is not last_write or time.monotonic() - when >= self.shared_seconds:
            trials = self.ask(lambda: self.backend.get_all_trials(study_id, deepcopy=False))
            self._sharing[study_id].share(trials)
            self._read[study_id] = time.monotonic(), last_write, trials
        if states is not None and not any(state in states for state in _ENDS):
            # Of thousands of trials a few. Another thread may have seen more by now.
            unfinished = sorted(self._sharing[study_id].unfinished)
            trials = [trials[n] for n in unfinished if n < len(trials)]
        return asked_for(trials, deepcopy=deepcopy, states=states)

    def delete_study(self, study_id: int) -> None:
        """Delete a study; another one may get its number."""
        self.ask(lambda: self.backend.delete_study(study_id))
        self._sharing.pop(study_id, None)
        self._read.pop(study_id, None)

    def _ask_again(self, call: Callable[[bool], _Result]) -> _Result:
        try:
            return super()._ask_again(call)
        finally:
            self._last_write = object()

    # What a trial records may wait; its training goes on.

    def _write_what_waits(self) -> None:
        with self._lock:
            while self._unwritten:
                name, *arguments = self._unwritten[0]
                try:
                    getattr(self.backend, name)(*arguments)
                except Exception as error:
                    if not passes(error):
                        del self._unwritten[0]
                    raise
                del self._unwritten[0]
                self._last_write = object()

    def _write_or_wait(self, name: str, trial_id: int, key: Any, value: Any) -> None:
        with self._lock:
            self._unwritten.append((name, trial_id, key, value))
            if len(self._unwritten) > 1:
                return
            try:
                self._briefly(self._write_what_waits)
            except Exception as error:
                if not passes(error):
                    raise self._translated(error) from error
                self._is_gone(error, time.monotonic())
            else:
                self._is_back()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store an attribute of a trial, now or when the storage is back."""
        self._write_or_wait("set_trial_user_attr", trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store an attribute of a trial, now or when the storage is back."""
        self._write_or_wait("set_trial_system_attr", trial_id, key, value)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Store a value of a trial, now or when the storage is back."""
        self._write_or_wait("set_trial_intermediate_value", trial_id, step, intermediate_value)

    # Leases.

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, with a lease and the name of its process; see Optuna."""
        attributes = {TrialRecord.worker.key: this_process()}
        made = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        made = copy.copy(template_trial or made)
        lease = {"at": time.time()}
        made.system_attrs = {**made.system_attrs, ASKED: uuid.uuid4().hex, _LEASE: lease}
        trial_id = super().create_new_trial(study_id, made)
        self._renewed = trial_id, time.monotonic()
        return trial_id

    def record_heartbeat(self, trial_id: int) -> None:
        """Renew a trial's lease, if the storage is there."""
        now = time.monotonic()
        last_id, last = self._renewed
        if last_id == trial_id and now - last < _INTERVAL_SECONDS / 2:
            return
        with contextlib.suppress(Exception):  # next time, then
            self._write_what_waits()
            self.backend.set_trial_system_attr(trial_id, _LEASE, {"at": time.time()})
            self._renewed = trial_id, now

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Return the running trials whose worker is gone, wherever it was."""
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        found = [trial._trial_id for trial in running if self._has_lapsed(trial)]
        backend = self.backend
        # Earlier versions left heartbeats.
        if isinstance(backend, BaseHeartbeat) and is_heartbeat_enabled(backend):
            found += self.ask(lambda: backend._get_stale_trial_ids(study_id))
        return found

    def _has_lapsed(self, trial: FrozenTrial) -> bool:
        lease = trial.system_attrs.get(_LEASE)
        if not isinstance(lease, dict):
            return False
        known, since = self._watched.get(trial._trial_id, (None, 0.0))
        if known == lease:
            return time.monotonic() - since > _GRACE_SECONDS
        self._watched[trial._trial_id] = lease, time.monotonic()
        return time.time() - lease.get("at", 0.0) > _LONG_AGO_SECONDS

    def get_heartbeat_interval(self) -> int:
        """Return the seconds between two renewals of a lease."""
        return _INTERVAL_SECONDS

    def get_heartbeat_stale_trial_callback(self) -> None:
        """Return nothing: what becomes of a failed trial is seen from the study's trials."""

    # What Optuna 4 calls it.
    get_failed_trial_callback = get_heartbeat_stale_trial_callback
