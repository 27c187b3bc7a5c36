"""Signals that a study asks for: recorded, and learnt from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest

import flatsearch
from flatsearch import FlatnessObjective, FlatnessPruner, RunSettings, record
from flatsearch.analysis.summary import summarise
from flatsearch.signals.table import PROXIES, SIGNALS
from tests.fakes import Tiny

if TYPE_CHECKING:
    from flatsearch.data.splits import ImageData


def trial_of(data: ImageData, **settings: object) -> record.TrialRecord:
    objective = FlatnessObjective(Tiny(), data, settings=RunSettings(epochs=2, **settings))
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(directions=objective.directions, sampler=sampler)
    study.optimize(objective, n_trials=1)
    return record.TrialRecord(study.trials[0])


def test_signals_are_recorded_and_change_nothing_else(digits: ImageData) -> None:
    asked, plain = trial_of(digits, signals=tuple(PROXIES)), trial_of(digits)
    untrained = {p.name for p in PROXIES.values() if p.first == "untrained"}
    epoch = {p.name for p in PROXIES.values() if p.first == "epoch"}
    assert untrained & set(plain.metrics) == set()
    assert untrained <= set(asked.metrics)
    assert all(math.isfinite(asked.metrics[name]) for name in untrained)
    assert asked.metrics["untrained_vkdnw"] == 2 + asked.metrics["untrained_vkdnw_entropy"]
    assert 0 < asked.steps[0]["weight_movement"] < asked.steps[1]["weight_movement"]
    for step, metrics in plain.steps.items():
        assert set(asked.steps[step]) == set(metrics) | epoch
        same = set(metrics) - {"train_seconds"}
        assert {n: asked.steps[step][n] for n in same} == {n: metrics[n] for n in same}


def test_everything_in_the_table_is_recorded(digits: ImageData) -> None:
    trial = trial_of(digits, signals=tuple(PROXIES), flatness_share=10.0)
    derived = {"tse"}
    assert set(SIGNALS) - set(trial.steps[0]) - set(trial.metrics) == derived


def test_a_candidate_over_a_limit_costs_no_signal(digits: ImageData) -> None:
    trial = trial_of(digits, signals=("nwot",), max_parameters=1)
    assert trial.over_limit
    assert "untrained_nwot" not in trial.metrics


@pytest.mark.parametrize("known", [True, False])
def test_the_pruner_learns_from_an_untrained_signal(known: bool) -> None:
    """The accuracy of an epoch says nothing here; the signal says everything."""
    study = optuna.create_study(direction="maximize", pruner=FlatnessPruner(), study_name="s")
    generator, pruned = np.random.default_rng(0), []
    for _ in range(120):
        trial, final = study.ask(), float(generator.normal())
        untrained = {"untrained_nwot": final} if known else {}
        record.write_trial(trial, metrics=untrained)
        for step in range(4):
            flatsearch.report(trial, step, accuracy=float(generator.normal()))
            if step < 3 and flatsearch.should_prune(trial):
                pruned.append(final)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            record.write_trial(trial, metrics={**untrained, "accuracy": final})
            study.tell(trial, final)
    found = {c.signal: c for c in summarise(study).correlations if c.epoch == 0}
    assert ("untrained_nwot" in found) == known
    if known:
        assert len(pruned) > 30
        assert max(pruned) < 1
        assert found["untrained_nwot"].tau == pytest.approx(1)
    else:
        assert len(pruned) < 30
