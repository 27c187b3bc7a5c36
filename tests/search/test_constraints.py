from __future__ import annotations

import optuna
import pytest

from flatsearch.record import TrialRecord, write_constraints
from flatsearch.record.constraints import HAS_NAMED
from flatsearch.search.constraints import list_constraints
from flatsearch.search.factories import make_sampler
from flatsearch.search.unstuck import UnstuckSampler


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_samplers_heed_the_constraints(name: str) -> None:
    """The objective is a sum, but only half of its range is allowed."""

    def over(constrained: bool) -> int:
        study = optuna.create_study(direction="maximize", sampler=make_sampler(name, 0))

        def objective(trial: optuna.Trial) -> float:
            total = sum(trial.suggest_float(f"x{i}", 0, 1) for i in range(4))
            if constrained:
                write_constraints(trial, {"b": total - 2.0, "a": -1.0})
            return total

        study.optimize(objective, n_trials=120)
        return sum(trial.value > 2.0 for trial in study.trials[60:])

    assert over(constrained=True) < over(constrained=False) - 15


def listed(study: optuna.Study) -> list[float] | None:
    """Store a trial's constraint, and return the list that dashboards read."""
    trial = study.ask()
    write_constraints(trial, {"b": -2.0, "a": 1.0})
    list_constraints(trial)
    study.tell(trial, 0.5)
    # By place and by name they are the same trial's.
    assert not TrialRecord(study.trials[-1]).feasible
    found = study.trials[-1].system_attrs.get("constraints")
    return None if found is None else list(found)


@pytest.mark.parametrize("wrapped", [True, False])
def test_only_a_study_of_gp_has_no_list(wrapped: bool) -> None:
    tpe, gp = make_sampler("tpe", 0), make_sampler("gp", 0)
    if wrapped:  # as the loop does
        tpe, gp = UnstuckSampler(tpe, 0), UnstuckSampler(gp, 0)
    study = optuna.create_study(sampler=tpe)
    assert listed(study) == [1.0, -2.0]
    study.sampler = gp
    assert listed(study) == [1.0, -2.0]  # as its first trial has one
    if HAS_NAMED:
        study = optuna.create_study(sampler=gp)
        assert listed(study) is None
        study.sampler = tpe
        assert listed(study) is None


def test_a_trial_without_constraints_has_no_list() -> None:
    study = optuna.create_study()
    trial = study.ask()
    list_constraints(trial)
    assert "constraints" not in study.trials[0].system_attrs
