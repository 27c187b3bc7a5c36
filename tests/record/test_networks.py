"""Which trials are parts of one network's training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from flatsearch import Architecture
from flatsearch.analysis.selection import choose
from flatsearch.analysis.summary import summarise
from flatsearch.record import (
    Promotion,
    TrialRecord,
    clear_steps,
    networks_of,
    read_trials,
    write_step,
    write_trial,
)
from flatsearch.search.trial_budget import finished_count
from tests.cases import study_of

if TYPE_CHECKING:
    import optuna


def part(
    study: optuna.Study,
    state: str,
    epochs: int,
    promotion: Promotion | None = None,
    **facts: Any,
) -> int:
    """Add a trial that has been trained for some epochs in all, told as a state."""
    if promotion is not None:
        attributes = {TrialRecord.promotion.key: promotion.to_dict()}
        study.enqueue_trial({}, user_attrs=attributes)
    if state == "WAITING":
        return len(study.trials) - 1
    trial = study.ask()
    for step in range(epochs):
        write_step(trial, step, {"accuracy": step / 10, "flatness": 1.0})
    parked = epochs if state == "PARKED" else None
    facts = {"architecture": Architecture("toy", {}), "metrics": {"parameters": 7}, **facts}
    write_trial(trial, checkpoint="c", parked=parked, **facts)
    if state == "COMPLETE":
        study.tell(trial, [epochs / 10])
    elif state != "RUNNING":
        told = "PRUNED" if state == "PARKED" else state
        study.tell(trial, state=TrialState[told])
    return trial.number


def networks(study: optuna.Study) -> dict[int, Any]:
    found = networks_of(map(TrialRecord, study.get_trials(deepcopy=False)))
    return {network.number: network for network in found}


def test_a_network_counts_once() -> None:
    study = study_of("accuracy")
    part(study, "PARKED", 1)
    part(study, "PARKED", 1)
    part(study, "PARKED", 3, Promotion(0, 1, 3))
    part(study, "COMPLETE", 4, Promotion(0, 3, 4))
    records = read_trials(study.trials)
    assert [r.superseded_by for r in records] == [3, None, 3, None]
    assert [r.own for r in records] == [False, True, False, True]
    assert [r.counted for r in records] == [True, True, False, False]
    summary = summarise(study)
    assert summary.counts == {"PROMOTED": 2, "PARKED": 1, "COMPLETE": 1}
    assert [t.number for t in summary.ranked()] == [3]
    assert choose(summary, "0").trial.number == 3
    assert summary.pruning is not None
    assert (summary.pruning.pruned, summary.pruning.epochs_spent) == (1, 5)
    first, second = networks(study).values()
    assert (first.parts, first.final, first.parked) == ((0, 2, 3), (0.4,), None)
    assert list(first.steps) == [0, 1, 2, 3]
    assert first.fixed["parameters"] == 7
    assert (second.parked, second.final) == (1, None)


def test_who_may_go_on() -> None:
    study = study_of("accuracy")
    for _ in range(7):
        part(study, "PARKED", 1)
    part(study, "RUNNING", 2, Promotion(0, 1, 3))
    part(study, "FAIL", 2, Promotion(1, 1, 3))  # its process died
    part(study, "FAIL", 2, Promotion(2, 1, 3), failure="it broke")
    part(study, "FAIL", 2, Promotion(3, 1, 3), failure="the time was up", late=True)
    for _ in range(3):
        part(study, "FAIL", 2, Promotion(4, 1, 3))  # kills whoever takes it
    part(study, "PRUNED", 2, Promotion(5, 1, 3), diverged=True)
    part(study, "WAITING", 0, Promotion(6, 1, 3))
    found = networks(study)
    assert {number: network.parked for number, network in found.items()} == dict.fromkeys(range(7))
    # Where it was going it goes on, whatever the rule says of it by now.
    assert {number: n.resumes for number, n in found.items() if n.resumes} == {
        number: Promotion(number, 1, 3, "cut off") for number in (1, 3)
    }
    assert [number for number, network in found.items() if network.busy] == [0, 6]
    assert list(found[1].steps) == [0, 1]


def test_a_trial_that_was_cut_off_may_go_on_and_counts_when_it_has_ended() -> None:
    study = study_of("accuracy")
    part(study, "FAIL", 2)
    part(study, "FAIL", 2, failure="it broke")
    assert {n: network.resumes for n, network in networks(study).items()} == {
        0: Promotion(0, 0, 0, "cut off")
    }
    number = part(study, "RUNNING", 2, Promotion(0, 0, 0, "cut off"))
    assert networks(study)[0].busy
    assert networks(study)[0].resumes is None
    study.tell(number, [0.5])
    records = read_trials(study.trials)
    assert [r.counted for r in records] == [False, False, True]
    assert records[0].superseded_by is None


def test_a_running_trial_that_is_parked_is_about_to_be_told() -> None:
    study = study_of("accuracy")
    trial = study.ask()
    write_step(trial, 0, {"accuracy": 0.1})
    assert networks(study)[0].busy
    write_trial(trial, parked=1)
    assert (networks(study)[0].busy, networks(study)[0].parked) == (False, 1)
    # Its process may die before it is.
    study.tell(trial, state=TrialState.FAIL)
    assert (networks(study)[0].parked, networks(study)[0].resumes) == (1, None)
    part(study, "COMPLETE", 3, Promotion(0, 1, 3))
    assert finished_count(study) == 1
    assert [TrialRecord(t).counted for t in study.trials] == [True, False]


def test_what_was_cut_off_does_not_go_on_where_its_twin_does() -> None:
    study = study_of("accuracy")
    part(study, "FAIL", 2, network="same")
    part(study, "PARKED", 1, network="same")
    assert [(n.number, n.resumes) for n in networks(study).values()] == [(1, None)]


def test_steps_of_an_earlier_attempt_are_forgotten() -> None:
    study = study_of("accuracy")
    trial = study.ask()
    for step in range(3):
        write_step(trial, step, {"accuracy": 0.1, "flatness": 2.0})
    clear_steps(trial)
    write_step(trial, 0, {"accuracy": 0.3})
    assert TrialRecord(study.trials[0]).steps == {0: {"accuracy": 0.3}}
