"""A sampler that draws at random for once."""

from __future__ import annotations

import optuna
import pytest

from flatsearch.search.unstuck import UnstuckSampler


def drawn(study: optuna.Study) -> float:
    """Return what a worker of its own, which draws at random, proposes."""
    study.sampler = UnstuckSampler(optuna.samplers.TPESampler(seed=1), 0)
    study.sampler.at_random = True
    return study.ask().suggest_float("x", 0, 1)


def test_no_two_workers_draw_the_same_and_a_run_can_be_repeated() -> None:
    first, again = optuna.create_study(), optuna.create_study()
    found = [drawn(first) for _ in range(3)]
    assert len(set(found)) == 3
    assert found == [drawn(again) for _ in range(3)]


@pytest.mark.skipif(
    not hasattr(optuna.samplers.NSGAIISampler, "get_trial_generation"),
    reason="Optuna's genetic samplers say which generation is next from 4.3 on",
)
def test_what_is_drawn_at_random_joins_a_generation() -> None:
    sampler = optuna.samplers.NSGAIISampler(population_size=2, seed=0)
    study = optuna.create_study(sampler=UnstuckSampler(sampler, 0))
    study.sampler.at_random = True  # type: ignore[attr-defined]
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.sampler.at_random = False  # type: ignore[attr-defined]
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    key = sampler._get_generation_key()
    assert [trial.system_attrs.get(key) for trial in study.trials] == [0, 0, 1]
