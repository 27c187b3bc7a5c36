from __future__ import annotations

import math

import optuna

from flatsearch import Architecture, record


def test_round_trip_through_a_database(tmp_path: object) -> None:
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/s.db", directions=["maximize", "minimize"]
    )
    trial = study.ask()
    trial.suggest_int("width", 1, 3)
    architecture = Architecture("toy", {"widths": [8, 16], "act": "relu"})
    record.write_architecture(trial, architecture)
    for step in (0, 1, 2, 10):
        record.write_step(trial, step, {"accuracy": step / 10, "flatness": math.inf})
    record.write_final(trial, {"parameters": 123, "flatness": math.nan, "accuracy": 0.5})
    record.write_artifact(trial, "abc")
    study.tell(trial, (0.5, 1.0))
    (frozen,) = optuna.load_study(study_name=study.study_name, storage=study._storage).trials
    read = record.read_trial(frozen)
    assert read.architecture == architecture
    assert list(read.steps) == [0, 1, 2, 10]
    assert read.steps[10] == {"accuracy": 1.0, "flatness": math.inf}
    assert read.metrics["parameters"] == 123
    assert math.isnan(read.metrics["flatness"])
    assert read.values == (0.5, 1.0)
    assert read.state == "COMPLETE"
    assert read.artifact == "abc"
    assert read.failure is None
    assert read.seconds is not None


def test_failure_and_pruned_trials_have_no_values() -> None:
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    trial.report(0.7, 0)
    record.write_failure(trial, "diverged")
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    read = record.read_trial(study.trials[0])
    assert read.values is None
    assert read.failure == "diverged"
    assert read.state == "PRUNED"


def test_reads_trials_of_others() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("note", "hello")
    trial.set_user_attr("flag", True)
    trial.set_user_attr("list", [1, 2])
    trial.set_user_attr("size", 3)
    study.tell(trial, 1.0)
    read = record.read_trial(study.trials[0])
    assert read.metrics == {"size": 3.0}
    assert read.architecture is None
    assert read.steps == {}
    assert record.read_settings(study) is None
