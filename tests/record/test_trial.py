from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState

from flatsearch import Architecture, mark_pruned, record
from flatsearch.record import Decision, Promotion, TrialRecord
from flatsearch.record.facts import Fact

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURE = Architecture("toy", {"widths": [8, 16], "act": "relu"})
FACTS: dict[str, Any] = {
    "worker": "machine:1:2.00",
    "architecture": ARCHITECTURE,
    "recipe": {"lr": 0.1},
    "network": "key",
    "duplicate_of": 0,
    "retrain_of": 3,
    "retried": "out of memory",
    "metrics": {"parameters": 123, "flatness": -math.inf, "accuracy": 0.5},
    "measured": "features.3",
    "layers": {"features.0": 1.5, "features.3": math.inf},
    "computation": {"precision": "bfloat16", "memory_format": "channels_last"},
    "schedule": {"images": 72, "images_of_all": 16, "epochs_of_all": [1, 8], "share": 0.05},
    "artifact": "abc",
    "failure": "it broke",
    "traceback": "line 1",
    "stopped": "pruned after epoch 1",
    "diverged": True,
    "late": True,
    "promotion": Promotion(0, 1, 3),
    "parked": 1,
    "guesses": True,
    "audit": (1, 3),
    "checkpoint": "parked-abc",
}


def told(study: optuna.Study, state: TrialState = TrialState.PRUNED, **facts: Any) -> TrialRecord:
    """Return the record of a new trial that has ended with some facts."""
    trial = study.ask()
    record.write_trial(trial, **facts)
    study.tell(trial, 0.5 if state == TrialState.COMPLETE else None, state=state)
    return TrialRecord(study.trials[-1])


def test_every_fact_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert set(FACTS) == {n for n, fact in vars(TrialRecord).items() if isinstance(fact, Fact)}
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db")
    trial = study.ask()
    record.write_trial(trial, **FACTS)
    assert {name: getattr(TrialRecord(trial), name) for name in FACTS} == FACTS
    study.tell(trial, 0.5)
    (frozen,) = optuna.load_study(study_name=study.study_name, storage=study._storage).trials
    assert {name: getattr(TrialRecord(frozen), name) for name in FACTS} == FACTS


def test_what_is_shown_to_people_is_not_what_is_read() -> None:
    study = optuna.create_study()
    trial = study.ask()
    record.write_trial(trial, architecture=ARCHITECTURE, metrics={"accuracy": 0.5})
    shown = {k: v for k, v in trial.user_attrs.items() if not k.startswith("flatsearch:")}
    assert shown == {"architecture": ARCHITECTURE.to_json(), "accuracy": 0.5}
    trial.set_user_attr("accuracy", 0.7)
    trial.set_user_attr("energy", 3.0)
    trial.set_user_attr("architecture", "my own words")
    assert TrialRecord(trial).metrics == {"accuracy": 0.5}
    assert TrialRecord(trial).architecture == ARCHITECTURE


def test_metrics_are_added_to_those_that_are_there() -> None:
    trial = optuna.create_study().ask()
    record.write_trial(trial, metrics={"parameters": 8, "accuracy": 0.1})
    record.write_trial(trial, metrics={"accuracy": 0.5})
    assert TrialRecord(trial).metrics == {"parameters": 8, "accuracy": 0.5}
    assert trial.user_attrs["parameters"] == 8


def test_a_fact_that_is_none_is_not_stored_and_an_unknown_one_is_refused() -> None:
    trial = optuna.create_study().ask()
    record.write_trial(trial, artifact=None)
    assert not trial.user_attrs
    with pytest.raises(TypeError, match=r"unknown fact 'artefact' \(did you mean 'artifact'\?\)"):
        record.write_trial(trial, artefact="abc")
    with pytest.raises(TypeError, match="unknown fact 'finished'"):  # derived, not stored
        record.write_trial(trial, finished=True)


def test_steps_in_order_and_a_running_trial() -> None:
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    trial.suggest_int("width", 2, 2)
    for step in (10, 0, 2):
        record.write_step(trial, step, {"accuracy": step / 10, "flatness": math.inf})
    read = TrialRecord(trial)
    assert (read.state, read.values, read.seconds) == ("RUNNING", None, None)
    assert list(read.steps) == [0, 2, 10]
    assert read.steps[10] == {"accuracy": 1.0, "flatness": math.inf}
    study.tell(trial, 0.5)
    read = TrialRecord(study.trials[0])
    assert (read.number, read.state, read.values) == (0, "COMPLETE", (0.5,))
    assert read.params == {"width": 2}
    assert read.seconds is not None


def test_decisions_in_order_and_what_an_audited_trial_stands_for() -> None:
    study = optuna.create_study()
    trial = study.ask()
    later = Decision(11, 0.01, 0.1, "under audit", 1.0, 9, 0.1)
    flag = Decision(2, 0.02, 0.1, "audited", 0.25, 8)
    first = Decision(1, math.nan, math.nan, "start-up", 1.0, 3)
    for decision in (later, flag, first):
        record.write_decision(trial, decision)
    read = TrialRecord(trial)
    assert math.isnan(read.decisions[0].probability)
    assert read.decisions[1:] == (flag, later)
    assert (read.flag, read.audited, read.weight) == (flag, True, 4.0)
    other = study.ask()
    record.write_decision(other, Decision(2, 0.02, 0.1, "suspended", 1.0, 8))
    read = TrialRecord(other)
    assert (read.flag is not None, read.audited, read.weight) == (True, False, 1.0)
    assert (TrialRecord(study.ask()).flag, TrialRecord(study.ask()).weight) == (None, 1.0)


OVER = {"flatsearch:max_parameters": 0.5}
PROPERTIES = ("complete", "pruned", "diverged", "duplicate", "over_limit", "own", "finished")


@pytest.mark.parametrize(
    ("state", "facts", "constraints", "expected"),
    [
        ("COMPLETE", {}, {}, "complete own finished"),
        ("COMPLETE", {}, {"flatsearch:pruned": 0.0, "other": 1.0}, "complete own finished"),
        ("COMPLETE", {}, {"flatsearch:pruned": 1.0}, "pruned own finished"),
        ("PRUNED", {}, {}, "pruned own finished"),
        ("PRUNED", {"stopped": "pruned after epoch 1"}, {}, "pruned own finished"),
        ("PRUNED", {"failure": "diverged", "diverged": True}, {}, "diverged own finished"),
        ("PRUNED", {"failure": "too large"}, OVER, "over_limit"),
        ("COMPLETE", {"duplicate_of": 0}, {}, "complete duplicate"),
        ("COMPLETE", {"retrain_of": 0}, {}, "complete own finished"),
        ("FAIL", {"failure": "it broke"}, {}, "own"),
    ],
)
def test_what_is_derived(
    state: str, facts: dict[str, Any], constraints: dict[str, float], expected: str
) -> None:
    study = optuna.create_study()
    trial = study.ask()
    record.write_trial(trial, **facts)
    record.write_constraints(trial, constraints)
    study.tell(trial, 0.5 if state == "COMPLETE" else None, state=TrialState[state])
    read = TrialRecord(study.trials[0])
    assert {name for name in PROPERTIES if getattr(read, name)} == set(expected.split())
    assert read.feasible == all(value <= 0 for value in constraints.values())
    assert read.state == state
    assert (read.values is None) == (state != "COMPLETE")
    assert not read.late


def test_halved_batches_are_those_of_a_trial_that_was_trained_again() -> None:
    study = optuna.create_study()
    assert told(study, retried="CUDA  out\n of memory" + "." * 600).halved
    assert study.trials[0].user_attrs["flatsearch:retried"].startswith("CUDA out of memory...")
    assert len(study.trials[0].user_attrs["flatsearch:retried"]) == 500
    assert not told(study).halved


def test_reads_trials_of_others() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("note", "hello")
    trial.set_user_attr("flag", True)
    trial.set_user_attr("list", [1, 2])
    trial.set_user_attr("size", 3)
    trial.set_user_attr("architecture", "a drawing")
    study.tell(trial, 1.0)
    read = TrialRecord(study.trials[0])
    assert read.metrics == {"size": 3.0}
    assert read.architecture is None
    assert read.steps == {}
    assert (read.complete, read.own, read.finished, read.feasible) == (True, True, True, True)


def test_a_damaged_fact_is_named_by_its_trial() -> None:
    trial = optuna.create_study().ask()
    trial.set_user_attr("flatsearch:metrics", {"accuracy": "much"})
    trial.set_user_attr("flatsearch:architecture", '{"space":"plain_cnn"}')
    what = "the record of trial 0 is damaged, or of another version of flatsearch: 'flatsearch:"
    for name in ("metrics", "architecture"):  # whatever is asked for first
        read = TrialRecord(trial)
        assert not getattr(read, name)
        assert read.damage.startswith(f"{what}{name}': ")
        assert (read.state, read.finished, read.counted) == ("UNREADABLE", False, False)
    assert not TrialRecord(trial).readable


def test_steps_are_checked() -> None:
    trial = optuna.create_study().ask()
    with pytest.raises(ValueError, match="`step` must be at least 0 but got -1"):
        record.write_step(trial, -1, {"accuracy": 0.1})
    with pytest.raises(ValueError, match="report at least one metric"):
        record.write_step(trial, 0, {})
    with pytest.raises(TypeError, match="metrics must be numbers but got"):
        record.write_step(trial, 0, {"accuracy": "much"})  # type: ignore[dict-item]


def test_constraints_by_name_and_by_place() -> None:
    study = optuna.create_study(directions=["maximize", "maximize"])
    trial = study.ask()
    mark_pruned(trial, pruned=True)
    record.write_constraints(trial, {"b": -1, "a": 0.5})
    named = {"flatsearch:pruned": 1.0, "a": 0.5, "b": -1.0}
    for found in (trial, study.trials[0]):
        read = record.read_constraints(found)
        assert {k: v for k, v in read.items() if not k.isdecimal()} == named
    study.tell(trial, (0.5, 0.5))
    other = study.ask()
    mark_pruned(other, pruned=False)
    study.tell(other, (0.1, 0.1))
    assert [t.number for t in study.best_trials] == [1]
    study.add_trial(
        optuna.create_trial(values=[0.9, 0.9], system_attrs={"constraints": [-1.0, 2.0]})
    )
    assert record.read_constraints(study.trials[2]) == {"0": -1.0, "1": 2.0}
    assert not TrialRecord(study.trials[2]).feasible
