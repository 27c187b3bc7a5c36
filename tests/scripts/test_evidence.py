"""The recorded tables, and the scripts that read them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in ("tables", "replay", "early_score", "correlate", "evidence"):
        sys.modules.pop(name, None)


def made(losses: list[list[float]], kappas: list[list[float]]) -> Any:
    """Return a table of networks with these training losses and flatness by epoch."""
    import tables

    rows = tuple(
        tuple(
            {
                "network": str(n),
                "epoch": str(e + 1),
                "train_loss": str(a),
                "kappa_last": str(k),
                "test_accuracy": str(n / 10),
            }
            for e, (a, k) in enumerate(zip(loss, kappa, strict=True))
        )
        for n, (loss, kappa) in enumerate(zip(losses, kappas, strict=True))
    )
    return tables.Curves("made", rows, len(losses[0]), 0)


def test_recorded_tables_are_whole() -> None:
    import tables

    assert len(tables.names()) >= 6
    assert set(tables.TUNING) & set(tables.names())
    assert set(tables.names()) - set(tables.TUNING)
    for name in tables.names():
        curves = tables.load(name)
        assert len(curves) + curves.diverged == curves.environment["networks"]
        assert len(curves) >= 50
        assert curves.epochs == curves.environment["settings"]["epochs"]
        assert all(len(rows) == curves.epochs for rows in curves.rows)
        assert np.isfinite(curves.target()).all()
        assert len(np.unique(curves.target())) > len(curves) / 2
        for signal in ("validation accuracy", "-training loss", "kappa last", "kappa all"):
            assert np.isfinite(curves.signal(signal, 1)).all(), (name, signal)
        # The columns of a first epoch cannot tell the last one's.
        assert not np.array_equal(curves.column("accuracy", 1), curves.column("accuracy"))


def test_flatness_at_a_matched_loss() -> None:
    # Three of four get down to 1: the last never does. The first passes it halfway from 2 to 0.
    curves = made([[2, 0], [1.5, 0.5], [3, 1], [4, 3]], [[1, 100], [7, 7], [5, 9], [1, 1]])
    assert curves.matched_loss() == pytest.approx(1.5)
    found = curves.at_matched_loss("kappa_last")
    assert found[0] == pytest.approx(100**0.25)  # a quarter of the way, logarithmically
    assert math.isnan(found[1])  # begins there
    assert found[2] == pytest.approx(5 * (9 / 5) ** 0.75)
    assert math.isnan(found[3])


def test_rank_sums() -> None:
    import early_score

    curves = made([[2.0], [1.0], [math.nan]], [[1.0], [2.0], [3.0]])
    found = early_score.log_rank_sum(curves, ("-training loss", "kappa last"), 1)
    # Ranks from the worst: losses 2, 3, 1 (NaN is worst), flatness 1, 2, 3.
    assert found == pytest.approx(np.log([2 / 3 / 3, 3 / 3 * 2 / 3, 1 / 3]))


def test_a_replay_without_pruning_takes_every_network_to_the_end() -> None:
    import replay

    table = replay.Table("fashion-plain", several=False)
    order = np.random.default_rng(0).permutation(table.n)
    curve = replay.simulate(table, order, optuna.pruners.NopPruner(), 10 * table.epochs)
    assert [spent for spent, _ in curve] == [(i + 1) * table.epochs for i in range(10)]
    best = max(order[:10], key=lambda i: table.validation[i])
    assert curve[-1][1] == pytest.approx(table.test.max() - table.test[best])
    assert replay.at(curve, 25, start=9.0) == curve[1][1]
    assert replay.at(curve, 5, start=9.0) == 9.0


@pytest.mark.parametrize("several", [False, True])
def test_a_replay_with_pruning_sees_more_networks(several: bool) -> None:
    import replay

    table = replay.Table("fashion-plain", several)
    order = np.random.default_rng(0).permutation(table.n)
    make = replay.pruners(table.epochs, several)["calibrated"]
    curve = replay.simulate(table, order, make(), 20 * table.epochs)
    assert len(curve) > 30
    assert curve[-1][0] <= 20 * table.epochs
    regrets = [regret for _, regret in curve]
    assert all(0 <= r <= 1 for r in regrets)
    if several:  # what is covered never shrinks
        assert regrets == sorted(regrets, reverse=True)


def test_hypervolume() -> None:
    import replay

    table = replay.Table("fashion-plain", several=True)
    # Of all networks nothing is missing; of none, everything.
    assert table.regret(list(range(table.n))) == pytest.approx(0)
    assert table.regret([]) == 1
    table.points = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [0.0, 0.0]])
    table.reference = np.zeros(2)
    assert table.hypervolume([0]) == 3
    assert table.hypervolume([0, 1]) == 5
    assert table.hypervolume([0, 1, 2]) == 6
    assert table.hypervolume([3]) == 0
