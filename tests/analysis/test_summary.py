from __future__ import annotations

import io
import json
import math

import optuna
import pytest
from rich.console import Console

from flatsearch import Architecture, record
from flatsearch.analysis.summary import StudySummary, summarise
from flatsearch.reports.terminal import print_summary
from tests import cases


def study_of(
    n: int, *, directions: tuple[str, ...] = ("maximize", "minimize"), epochs: int = 4
) -> optuna.Study:
    """Return a study in which flatness ranks perfectly and accuracy is reversed at first."""
    study = optuna.create_study(directions=list(directions), study_name="made")
    for i in range(n):
        trial = study.ask()
        record.write_trial(trial, architecture=Architecture("toy", {"width": i}))
        final = i / n
        for step in range(epochs):
            metrics = {
                "flatness": float(i),
                "hessian_trace": 1.0,  # constant: no correlation is defined
                "accuracy": final if step == epochs - 1 else 1 - final,
                "train_loss": float(-i),
            }
            record.write_step(trial, step, metrics)
        metrics = {"accuracy": final, "flatness": float(i), "parameters": 100 - i}
        record.write_trial(trial, metrics=metrics)
        study.tell(trial, [final, float(i)][: len(directions)])
    return study


def show(summary: StudySummary, **options: bool) -> str:
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=300), **options)
    return stream.getvalue()


def test_front_and_counts() -> None:
    study = study_of(5)
    failed = study.ask()
    record.write_trial(failed, failure="out of memory")
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    summary = summarise(study)
    assert summary.counts == {"COMPLETE": 5, "FAIL": 1}
    assert summary.front == (4, 3, 2, 1, 0)  # more accurate is sharper here
    assert summary.correlations == ()
    text = show(summary, all_trials=True)
    assert "fail: out of memory" in text
    assert "Pareto front" in text


def test_a_dominated_trial_is_not_on_the_front() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for values in ((0.9, 1.0), (0.8, 2.0), (0.7, 0.5)):
        study.tell(study.ask(), values)
    assert summarise(study).front == (0, 2)


def test_single_objective_front_is_the_best_trial() -> None:
    summary = summarise(study_of(5, directions=("maximize",)))
    assert summary.front == (4,)
    assert "Pareto front" not in show(summary)


def test_correlations_of_the_signals() -> None:
    summary = summarise(study_of(12))
    tau = {(c.signal, c.epoch): c.tau for c in summary.correlations}
    assert tau["flatness", 1] == pytest.approx(1)
    assert tau["accuracy", 1] == pytest.approx(-1)
    assert tau["-train_loss", 1] == pytest.approx(1)
    assert tau["parameters", 0] == pytest.approx(-1)
    assert ("accuracy", 4) not in tau  # the final accuracy itself
    assert not any(signal == "hessian_trace" for signal, _ in tau)
    assert all(c.low - 1e-9 <= c.tau <= c.high + 1e-9 for c in summary.correlations)
    assert {c.n_trials for c in summary.correlations} == {12}
    text = show(summary)
    assert "a larger (sharper) value goes with a higher final accuracy (tau +1.00)" in text


def test_pruned_trials_are_owned_up_to() -> None:
    study = study_of(12)
    study.tell(study.ask(), state=optuna.trial.TrialState.PRUNED)
    assert "Pruned trials are missing" in show(summarise(study))


def test_json_has_no_nan() -> None:
    study = study_of(2)
    trial = study.ask()
    record.write_step(trial, 0, {"flatness": math.nan})
    study.tell(trial, (0.5, math.inf))
    fields = summarise(study).to_dict()
    text = json.dumps(fields, allow_nan=False)
    assert json.loads(text)["trials"][2]["epochs"] == [{"epoch": 1, "flatness": None}]
    assert fields["trials"][0]["architecture"] == {"width": 0}
    assert fields["objectives"] == {"value 0": "maximize", "value 1": "minimize"}


@pytest.mark.parametrize("directions", [("minimize",), ("maximize", "minimize")])
def test_empty_study(directions: tuple[str, ...]) -> None:
    study = optuna.create_study(directions=list(directions))
    summary = summarise(study)
    assert summary.front == ()
    assert "no trials" in show(summary)
    study.ask()
    assert summarise(study).counts == {"RUNNING": 1}


def test_studies_of_others() -> None:
    study = optuna.create_study(study_name="theirs")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    summary = summarise(study)
    assert summary.settings is None
    assert " x 0." in show(summary)


def test_decisions_are_shown_with_their_reason() -> None:
    study = study_of(3)
    for outcome in ("pruned", "audited"):
        trial = study.ask()
        record.write_step(trial, 0, {"accuracy": 0.1})
        record.write_decision(trial, record.Decision(0, 0.0123, 0.05, outcome, 0.1, 7, 0.1))
        if outcome == "pruned":
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, (0.1, 5.0))
    text = " ".join(show(summarise(study), all_trials=True).split())
    reason = "at 1.2% to end among the best (limit 5.0%)"
    assert f"pruned: after epoch 1, {reason}" in text
    assert f"(after epoch 1, {reason}, but audited)" in text


def study_with_least(*points: tuple[float, float]) -> optuna.Study:
    """Return a study that leaves out what has learnt less than 90% of the best beyond 0.1."""
    study = cases.study_of("accuracy", "flatness")
    record.write_study(study, least=record.LeastAccuracy(0.1, 0.9))
    for point in points:
        cases.add(study, [point])
    return study


def test_the_best_trial_says_what_must_have_been_learnt_whenever_it_comes() -> None:
    study = study_with_least((0.5, 0.1), (0.85, 0.2), (0.9, 0.3), (0.819, 0.15))
    summary = summarise(study)
    assert summary.least_accuracy == pytest.approx(0.82)
    assert summary.front == (2, 1)
    assert [trial.feasible for trial in summary.trials] == [False, True, True, False]
    cases.add(study, [(1.0, 0.5)])
    assert summarise(study).front == (4,)


def test_a_front_says_in_a_sentence_what_it_means() -> None:
    text = show(summarise(study_with_least((0.85, 0.2), (0.9, 0.3))))
    assert "no other beats in accuracy and flatness at once (flatness is how sharply" in text
    assert "below an accuracy of 0.820, which is 90% of what the best one has learnt" in text
    assert "below an accuracy" not in show(summarise(study_of(2)))
