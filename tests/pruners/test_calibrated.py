"""The rule of `FlatnessPruner`: what it prunes, what it audits, and when it stops."""

from __future__ import annotations

import math
import pickle
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import flatsearch
from flatsearch import FlatnessPruner, record

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
STEPS = 3


def make_study(
    pruner: FlatnessPruner,
    directions: tuple[str, ...] = ("maximize",),
    storage: optuna.storages.BaseStorage | None = None,
) -> optuna.Study:
    study = optuna.create_study(
        directions=directions, pruner=pruner, study_name="one", storage=storage
    )
    study.set_metric_names(["accuracy", "flatness"][: len(directions)])
    return study


def run(study: optuna.Study, early: list[float], late: list[float], *, soft: bool = False) -> None:
    """Run trials whose accuracy is `early` at every step but the last."""
    for a, b in zip(early, late, strict=True):
        trial = study.ask()
        pruned = False
        for step in range(STEPS):
            value = b if step == STEPS - 1 else a
            flatsearch.report(trial, step, accuracy=value, flatness=1 - value)
            if step < STEPS - 1 and flatsearch.should_prune(trial):
                pruned = True
                break
        if soft:
            flatsearch.mark_pruned(trial, pruned=pruned)
        if pruned and not soft:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, [value, 1 - value][: len(study.directions)])


def outcomes(study: optuna.Study) -> list[str]:
    """Return every trial's outcome after the first step."""
    return [record.TrialRecord(trial).decisions[0].outcome for trial in study.trials]


@pytest.mark.parametrize("directions", [("maximize",), ("maximize", "minimize")])
def test_prunes_what_will_not_end_among_the_best(directions: tuple[str, ...]) -> None:
    study = make_study(FlatnessPruner(n_startup_trials=10), directions)
    values = np.random.default_rng(0).uniform(size=80).tolist()
    run(study, values, values)
    found = outcomes(study)
    assert found[:10] == ["start-up"] * 10
    assert set(found[10:]) == {"kept", "pruned", "audited"}
    value = dict(enumerate(values))
    later = [n for n in value if n >= 30]
    # The objectives agree: a small flatness is what a large accuracy is.
    assert all(found[n] == "kept" for n in later if value[n] > 0.97)
    assert all(found[n] != "kept" for n in later if value[n] < 0.5)
    assert max(study.trials, key=lambda t: value[t.number]).state == TrialState.COMPLETE


def test_decisions_are_recorded_with_their_reason() -> None:
    study = make_study(FlatnessPruner(limit=0.2, audit=0.5))
    values = np.random.default_rng(1).uniform(size=90).tolist()
    run(study, values, values)
    for trial in study.trials:
        decisions = record.TrialRecord(trial).decisions
        assert [d.step for d in decisions] == list(range(len(decisions)))
        for decision in decisions:
            if decision.outcome == "start-up":
                assert math.isnan(decision.probability)
                assert decision.n_trials < 5
            elif decision.outcome != "under audit":
                flagged = decision.probability < decision.limit and decision.step < STEPS - 1
                assert flagged == (decision.outcome != "kept")
                assert decision.limit == pytest.approx(0.2 * 0.1)  # of the base rate
        last = decisions[-1].outcome
        assert (last == "pruned") == (trial.state == TrialState.PRUNED)
        if any(d.outcome == "audited" for d in decisions):
            assert last in {"audited", "under audit"}
            assert next(d.chance for d in decisions if d.outcome == "audited") == 0.5
    audited = sum(o == "audited" for o in outcomes(study))
    flagged = audited + sum(o == "pruned" for o in outcomes(study))
    assert 0.25 < audited / flagged < 0.75


def test_suspends_itself_while_the_audit_says_that_it_hurts() -> None:
    # A trap: what is worst early ends best, after a start that says the opposite.
    study = make_study(FlatnessPruner(n_startup_trials=20))
    generator = np.random.default_rng(2)
    start = generator.uniform(size=20).tolist()
    run(study, start, start)
    early = generator.uniform(size=60).tolist()
    run(study, early, [3 - 2 * a for a in early])
    found = outcomes(study)
    assert "pruned" in found
    assert "suspended" in found
    first = found.index("suspended")
    assert "audited" in found[:first]
    # Under suspension everything is run to the end, and the sign is learnt anew.
    best = [n for n in range(50, 80) if early[n - 20] < 0.1]
    assert all(study.trials[n].state == TrialState.COMPLETE for n in best)


def test_no_suspension_where_the_probabilities_come_true() -> None:
    study = make_study(FlatnessPruner(n_startup_trials=10, audit=0.5))
    generator = np.random.default_rng(3)
    early = generator.uniform(size=100)
    run(study, early.tolist(), (early + 0.05 * generator.normal(size=100)).tolist())
    assert "suspended" not in outcomes(study)
    assert outcomes(study).count("pruned") > 20


def test_soft_pruning_learns_nothing_from_values_that_were_not_reached() -> None:
    hard, soft = (make_study(FlatnessPruner()) for _ in range(2))
    values = np.random.default_rng(4).uniform(size=50).tolist()
    run(hard, values, values)
    run(soft, values, values, soft=True)
    assert outcomes(hard) == outcomes(soft)


def test_the_record_is_all_there_is(tmp_path: Path) -> None:
    # A new process decides as the one that has seen every trial.
    def opened() -> JournalStorage:
        return JournalStorage(JournalFileBackend(f"{tmp_path}/log"))

    pruner = FlatnessPruner(audit=0.4)
    study = make_study(pruner, storage=opened())
    values = np.random.default_rng(5).uniform(size=25).tolist()
    run(study, values, values)
    trial = study.ask()
    flatsearch.report(trial, 0, accuracy=0.3, flatness=0.7)
    again = optuna.load_study(
        study_name="one", storage=opened(), pruner=pickle.loads(pickle.dumps(pruner))
    )
    frozen = again.trials[-1]
    decision = again.pruner.prune(again, frozen)
    (first,) = record.TrialRecord(again.trials[-1]).decisions
    assert first.outcome != "start-up"
    assert flatsearch.should_prune(trial) == decision
    assert record.TrialRecord(study.trials[-1]).decisions == (first,)


def test_signals_that_say_nothing_prune_little() -> None:
    generator = np.random.default_rng(6)
    for directions in (("maximize",), ("maximize", "minimize")):
        study = make_study(FlatnessPruner(), directions)
        for _ in range(60):
            trial = study.ask()
            for step in range(STEPS):
                a, b = generator.uniform(size=2)
                flatsearch.report(trial, step, accuracy=a, flatness=b)
                if step < STEPS - 1 and flatsearch.should_prune(trial):
                    study.tell(trial, state=TrialState.PRUNED)
                    break
            else:
                study.tell(trial, generator.uniform(size=len(directions)).tolist())
        states = [t.state for t in study.trials]
        assert states.count(TrialState.PRUNED) <= 15, directions


def test_nothing_is_pruned_where_nothing_is_saved() -> None:
    # Optuna's usual loop asks after the last step, too.
    study = make_study(FlatnessPruner(limit=0.9))
    for value in np.random.default_rng(7).uniform(size=60).tolist():
        trial = study.ask()
        flatsearch.report(trial, 0, accuracy=value)
        assert not flatsearch.should_prune(trial)
        study.tell(trial, value)


def test_trials_that_have_not_reached_the_step_do_not_count() -> None:
    study = make_study(FlatnessPruner(n_startup_trials=5))
    for number in range(30):
        trial = study.ask()
        flatsearch.report(trial, 1000 + number, accuracy=number / 30)  # steps of their own
        assert not flatsearch.should_prune(trial)
        (decision,) = record.TrialRecord(study.trials[-1]).decisions
        assert (decision.outcome, decision.n_trials) == ("start-up", 0)
        flatsearch.report(trial, 5000, accuracy=number / 30)
        study.tell(trial, number / 30)


def test_somebody_elses_attribute_is_left_alone() -> None:
    study = make_study(FlatnessPruner())
    for number in range(12):
        trial = study.ask()
        trial.set_user_attr("architecture", "my resnet")
        flatsearch.report(trial, 0, accuracy=number / 12)
        flatsearch.should_prune(trial)
        study.tell(trial, number / 12)
