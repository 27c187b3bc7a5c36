"""Finished trials share their parts in memory, and say what the storage says."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from flatsearch.search.storage import open_storage


def _objective(trial):
    """Have several kinds of parameters and attributes; every third trial fails."""
    trial.suggest_categorical("block", ["basic", "bottleneck"])
    x = trial.suggest_float("x", 1e-3, 1.0, log=True)
    trial.set_user_attr("curve", [{"accuracy": x, "flatness": None}, {"accuracy": 1.0}])
    if trial.number % 3 == 2:
        raise ValueError
    return x


@pytest.mark.parametrize("url", ["sqlite:///{}/runs.db", "journal://{}/study.log"])
def test_the_parts_of_finished_trials_are_the_same_objects_and_say_the_same(url, tmp_path):
    url = url.format(tmp_path)
    storage = open_storage(url, wait=True)
    study = optuna.create_study(study_name="shared", storage=storage)
    study.optimize(_objective, n_trials=4, catch=ValueError)
    first, *others = study.get_trials(deepcopy=False)
    assert [trial.state for trial in others].count(TrialState.FAIL) == 1
    for other in others:
        assert all(
            first.distributions[name] is other.distributions[name] for name in ["x", "block"]
        )
        for part in ("params", "user_attrs", "system_attrs"):
            ours, theirs = (list(getattr(trial, part)) for trial in (first, other))
            assert all(a is b for a in ours for b in theirs if a == b)
        ours, theirs = (list(trial.user_attrs["curve"][1]) for trial in (first, other))
        assert ours[0] is theirs[0]
    fresh = optuna.load_study(study_name="shared", storage=open_storage(url).backend)
    assert study.trials == fresh.trials


def test_equal_distributions_of_other_types_stay_apart(tmp_path):
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/runs.db"))
    for choices in ((0, 1), (False, True), (0.0, 1.0)):
        study.add_trial(
            optuna.create_trial(
                params={"x": choices[1]},
                distributions={"x": optuna.distributions.CategoricalDistribution(choices)},
                value=0.0,
            )
        )
    shown = [repr(trial.distributions["x"].choices) for trial in study.get_trials(deepcopy=False)]
    assert shown == ["(0, 1)", "(False, True)", "(0.0, 1.0)"]


def test_a_study_that_gets_the_number_of_a_deleted_one_is_another(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/runs.db", wait=True)
    study = optuna.create_study(study_name="old", storage=storage)
    study.optimize(_objective, n_trials=3, catch=ValueError)
    study.ask()
    assert len(study.get_trials()) == 4
    optuna.delete_study(study_name="old", storage=storage)
    new = optuna.create_study(study_name="new", storage=storage)
    new.enqueue_trial({"x": 0.5})
    assert len(new.get_trials(states=(TrialState.WAITING,))) == 1
    assert new.ask().suggest_float("x", 1e-3, 1.0, log=True) == 0.5
