from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection

from flatsearch.pareto import ParetoRanks, front_of, is_best, signs


def test_signs_of_names_and_constants() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    expected = [-1.0, 1.0]
    assert signs(study.directions).tolist() == expected
    assert signs(["minimize", "maximize"]).tolist() == expected
    assert signs({"loss": "minimize", "accuracy": "MAXIMIZE"}.values()).tolist() == expected
    assert signs([StudyDirection.MAXIMIZE]).tolist() == [1.0]


def test_one_audited_trial_stands_for_those_that_were_pruned() -> None:
    finals, weights = np.arange(10.0)[:, None], np.ones(10)
    weights[8] = 10.0
    assert is_best(finals, weights, finals[9], 0.1)
    assert is_best(finals, weights, finals[8], 0.1)  # better: 1 of 19
    assert not is_best(finals, weights, finals[7], 0.1)  # better: 11 of 19
    assert not is_best(finals, np.ones(10), finals[8], 0.1)


def test_the_front_is_what_nothing_dominates() -> None:
    generator = np.random.default_rng(8)
    for n, objectives in ((0, 2), (1, 2), (60, 2), (60, 3), (40, 1)):
        points = generator.integers(0, 12, (n, objectives)).astype(float)
        expected = {
            tuple(p) for p in points if not any((q >= p).all() and (q > p).any() for q in points)
        }
        found = front_of(points)
        assert found.shape == (len(expected), objectives)
        assert {tuple(p) for p in found} == expected


@pytest.mark.parametrize("n_metrics", [1, 2, 3])
def test_ranks_are_counts_of_dominators(n_metrics: int) -> None:
    generator = np.random.default_rng(n_metrics)
    points = generator.integers(0, 5, (60, n_metrics)).astype(float)
    ranks = ParetoRanks(n_metrics)
    for point in points[:-1]:
        ranks.add(point)
    others, own = ranks.rank(points[-1])
    counts = [
        sum(bool((q <= p).all() and (q < p).any()) for q in points) for p in points
    ]  # fmt: skip
    assert np.floor(others).tolist() == counts[:-1]
    assert math.floor(own) == (counts[-1] or -1)
    # Ranking adds nothing.
    assert len(ranks) == 59
    assert ranks.rank(points[-1])[1] == own
