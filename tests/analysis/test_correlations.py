"""What signals and pruning did, against independent computations."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from scipy import stats

import flatsearch
from flatsearch import FlatnessPruner, MetricPruner, record
from flatsearch.analysis.correlations import signal_correlations
from flatsearch.analysis.intervals import weighted_taus
from flatsearch.analysis.summary import StudySummary, summarise
from flatsearch.pruners.regression import Prior, fit, leave_one_out
from flatsearch.reports.verdicts import verdicts

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def test_tau_of_equal_weights_is_scipys() -> None:
    generator = np.random.default_rng(0)
    for high in (3, 1000):  # with many ties and with few
        x, y = generator.integers(0, high, (2, 40)).astype(float)
        expected = stats.kendalltau(x, y).statistic
        assert weighted_taus(x, y, np.ones((1, 40)))[0] == pytest.approx(expected, abs=1e-6)


def test_a_weight_is_a_number_of_copies() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 12))
    copies = generator.integers(0, 4, 12)
    expected = stats.kendalltau(np.repeat(x, copies), np.repeat(y, copies)).statistic
    found = weighted_taus(x, y, copies[None].astype(float))[0]
    assert found == pytest.approx(expected, abs=1e-6)


def test_leave_one_out_is_leaving_one_out() -> None:
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(20, 3)), generator.normal(size=20)
    prior = Prior(np.array([0.5, -0.2, 0.0]), strength=4.0)
    expected = []
    for i in range(20):
        kept = np.arange(20) != i
        expected.append(float(x[i] @ fit(x[kept], y[kept], prior).mean))
    assert leave_one_out(x, y, prior) == pytest.approx(expected, rel=1e-9)


def study_of(
    n: int, *, helps: bool, pruner: optuna.pruners.BasePruner | None = None, epochs: int = 4
) -> optuna.Study:
    """Return a study whose accuracy is told by loss and flatness together, or by loss alone."""
    study = optuna.create_study(
        direction="maximize", pruner=pruner or optuna.pruners.NopPruner(), study_name="s"
    )
    study.set_metric_names(["accuracy"])
    record.write_study(study, settings={"epochs": epochs})
    generator = np.random.default_rng(0)
    for _ in range(n):
        trial = study.ask()
        a, b = generator.normal(size=2)
        final = float(a + (b if helps else 0.1 * generator.normal()))
        for step in range(epochs):
            flatsearch.report(
                trial, step, accuracy=float(a), loss=float(-a), flatness=float(np.exp(-b))
            )
            if step < epochs - 1 and flatsearch.should_prune(trial):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            record.write_trial(trial, metrics={"accuracy": final})
            study.tell(trial, final)
    return study


def test_flatness_that_helps_and_flatness_that_does_not() -> None:
    helps = summarise(study_of(60, helps=True)).gain[0]
    assert helps.epoch == 1
    assert helps.gain > 0.1
    assert helps.low > 0
    # The signals' own tau: with both known, the ranking is all but perfect.
    assert helps.tau > 0.85
    assert helps.tau_without == pytest.approx(0.5, abs=0.15)
    useless = summarise(study_of(60, helps=False)).gain[0]
    assert abs(useless.gain) < 0.02
    assert useless.low <= 0.005
    said = " ".join(verdicts(summarise(study_of(60, helps=True))))
    assert "Flatness helped in predicting the final accuracy" in said
    said = " ".join(verdicts(summarise(study_of(60, helps=False))))
    assert "Flatness helped" not in said


def test_no_gain_is_stated_with_too_few_trials_or_without_flatness() -> None:
    assert summarise(study_of(15, helps=True)).gain == ()
    study = optuna.create_study(direction="maximize")
    for i in range(30):
        trial = study.ask()
        flatsearch.report(trial, 0, accuracy=i / 30)
        flatsearch.report(trial, 1, accuracy=i / 30)
        record.write_trial(trial, metrics={"accuracy": i / 30})
        study.tell(trial, i / 30)
    assert summarise(study).gain == ()


def audited_study() -> StudySummary:
    pruner = FlatnessPruner(audit=0.3)
    return summarise(study_of(150, helps=True, pruner=pruner))


def test_what_pruning_saved_and_cost() -> None:
    summary = audited_study()
    found = summary.pruning
    assert found is not None
    states = [t.state for t in summary.trials]
    steps = [len(t.steps) for t in summary.trials]
    assert found.pruned == states.count("PRUNED") > 30
    assert found.epochs_spent == sum(steps)
    assert found.epochs_saved == sum(4 - n for n in steps)
    audited = [t for t in summary.trials if t.complete and any(d.runs_on for d in t.decisions)]
    assert found.audited == len(audited) > 10
    assert 0 <= found.low <= found.wrong / found.audited <= found.high <= 1
    interval = stats.binomtest(found.wrong, found.audited).proportion_ci()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    said = " ".join(verdicts(summary))
    assert (
        f"stopped {found.pruned} trials and saved {found.epochs_saved} of {4 * 150} epochs" in said
    )
    assert f"Of {found.audited} trials that would have been pruned" in said
    assert "among the best 10%" in said


def test_an_audit_makes_the_correlation_that_of_all_trials() -> None:
    # Of those below the median at first, one in five is run on.
    generator = np.random.default_rng(4)
    flag = record.Decision(0, 0.05, 0.1, "audited", 0.2, 10)
    study = optuna.create_study()
    for _ in range(1500):
        a, b = generator.normal(size=2)
        if a > 0 or generator.random() < 0.2:
            trial = study.ask()
            record.write_trial(trial, metrics={"accuracy": a + b})
            record.write_step(trial, 0, {"accuracy": a})
            record.write_step(trial, 1, {"accuracy": a + b})
            if a <= 0:
                record.write_decision(trial, flag)
            study.tell(trial, a + b)
    complete = [record.TrialRecord(trial) for trial in study.trials]
    (found,) = (c for c in signal_correlations(complete) if c.epoch == 1)
    naive = stats.kendalltau(
        [t.steps[0]["accuracy"] for t in complete], [t.metrics["accuracy"] for t in complete]
    ).statistic
    truth = 0.5  # 2 / pi asin(r), r = 1 / sqrt(2)
    assert found.tau == pytest.approx(truth, abs=0.02)
    assert abs(naive - truth) > 0.03  # survivors alone
    assert found.low < truth < found.high


def test_other_pruners_save_epochs_too_but_have_no_audit() -> None:
    pruner = MetricPruner("accuracy", optuna.pruners.MedianPruner())
    found = summarise(study_of(40, helps=True, pruner=pruner)).pruning
    assert found is not None
    assert found.pruned > 5
    assert (found.audited, found.wrong, found.low, found.high) == (0, 0, 0.0, 1.0)
    assert summarise(study_of(40, helps=True)).pruning is None


def test_a_trial_that_diverged_was_not_pruned_by_the_pruner() -> None:
    study = study_of(10, helps=True)
    trial = study.ask()
    flatsearch.report(trial, 0, accuracy=0.1)
    record.write_trial(trial, failure="training diverged in epoch 2", diverged=True)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert summarise(study).pruning is None
