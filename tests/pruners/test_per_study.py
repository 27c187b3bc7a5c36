"""Which trials have newly finished, also where threads have read at different times."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from flatsearch.pruners.per_study import NewlyFinished


def test_a_list_of_before_changes_nothing() -> None:
    study = optuna.create_study()
    for _ in range(3):
        study.ask()
    before = study.get_trials()
    study.tell(0, 1.0)
    study.tell(study.ask(), state=TrialState.FAIL)
    finished = NewlyFinished()
    assert [trial.number for trial in finished.take(study.get_trials())] == [0, 3]
    assert finished.take(before) == []
    assert finished.unfinished == {1, 2}
    study.tell(2, 1.0)
    assert [trial.number for trial in finished.take(study.get_trials())] == [2]
