"""The recorded tables, and the scripts that read them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import flatsearch

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)


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


def test_the_page_is_what_the_command_writes() -> None:
    import evidence

    assert evidence.PAGE.read_text() == evidence.page()


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


def test_what_covariates_leave() -> None:
    import correlate

    size = np.arange(40.0)
    noise = np.random.default_rng(0).normal(size=(2, 40))
    x, y = size + 2 * noise[0], size + 2 * noise[1]
    assert correlate.kendall(x, y) > 0.7
    assert abs(correlate.tau_given(x, y, size[:, None])) < 0.3
    # What does not come from size stays.
    assert correlate.tau_given(x + 9 * noise[1], y, size[:, None]) > 0.5
    x[3] = np.nan
    value, low, high = correlate.interval_given(x, y, size[:, None])
    assert low < value < high
    assert abs(value) < 0.3


def test_gain_of_a_signal_on_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    import early_score

    monkeypatch.setattr(early_score, "SPLITS", 20)
    random = np.random.default_rng(0)
    useful, useless, y = random.normal(size=(3, 60))
    y += useful
    found = early_score.halves(
        {"a": useful[:, None], "b": np.stack([useful, useless], 1), "c": useless[:, None]}, y
    )
    assert found["a"].shape == (20,)
    assert found["a"].mean() > 0.3
    assert abs((found["b"] - found["a"]).mean()) < 0.1
    assert abs(found["c"].mean()) < 0.3


def replayed(several: bool) -> Any:
    import replay

    return replay.Table("fashion-plain", several, np.arange(60))


def test_a_replay_without_pruning_takes_every_network_to_the_end() -> None:
    import replay

    table = replayed(several=False)
    order = np.random.default_rng(0).permutation(table.n)
    curve = replay.simulate(table, order, optuna.pruners.NopPruner(), 10 * table.epochs)
    assert [spent for spent, _, _ in curve] == [(i + 1) * table.epochs for i in range(10)]
    assert [epochs for _, _, epochs in curve] == [spent for spent, _, _ in curve]
    best = max(order[:10], key=lambda i: (table.validation[i], -table.loss[i]))
    assert curve[-1][1] == pytest.approx(table.test.max() - table.test[best])
    assert replay.at(curve, 25, start=9.0) == curve[1][1]
    assert replay.at(curve, 5, start=9.0) == 9.0


def test_the_page_compares_what_was_compared() -> None:
    import evidence
    import replay

    assert evidence.OTHERS == replay.OTHERS
    assert {*evidence.PRUNERS} == {*replay.pruners(12, several=False)}


def test_measuring_takes_time() -> None:
    import replay

    table = replayed(several=False)
    table.measuring = {"flatness": 0.5, "flatness_all": 2.0}
    pruner, order = optuna.pruners.NopPruner(), np.arange(table.n)
    both = ("flatness", "flatness_all")
    # All convolutions are measured after 4 of the 12 epochs: 12 + 6 + 8.
    assert replay.simulate(table, order, pruner, 26, both) == [
        (26, pytest.approx(table.regret([0])), 12)
    ]
    assert replay.simulate(table, order, pruner, 25.9, both) == []


def test_equal_validation_accuracies_are_decided_by_the_loss() -> None:
    table = replayed(several=False)
    table.validation, table.loss = np.zeros(60), np.ones(60)
    table.loss[7] = 0.5
    assert table.best([3, 7, 9]) == 7
    assert table.best([3, 9]) == 3
    assert table.regret([3, 7]) == pytest.approx(table.test.max() - table.test[7])


def test_when_the_mean_regret_is_that_of_others() -> None:
    import replay

    regrets = np.full((2, 100), 0.5)
    regrets[0, 20:], regrets[1, 40:] = 0.1, 0.3
    # The goal is a mean of 0.3: reached with .1 and .5 after 21%, of .2 after 41%.
    assert replay.reached(regrets, np.array([0.2, 0.4])) == 0.21
    assert replay.reached(regrets, np.array([0.2, 0.2])) == 0.41
    assert replay.reached(regrets, np.array([0.1, 0.1])) == math.inf


def test_what_is_pruned_by_flatness_alone() -> None:
    import replay

    flattest = replay.pruners(12, False)["flattest quarter pruned"]()
    study = optuna.create_study(direction="maximize", pruner=flattest)
    study.set_metric_names(["accuracy"])
    pruned = []
    for flatness in (1.0, 2.0, 3.0, 4.0, 5.0, 0.5, 9.0):
        trial = study.ask()
        flatsearch.report(trial, 0, accuracy=0.5, flatness=flatness)
        pruned.append(flatsearch.should_prune(trial))
        study.tell(trial, 0.5)
    assert pruned == [False] * 5 + [True, False]


@pytest.mark.parametrize("several", [False, True])
def test_a_replay_with_pruning_sees_more_networks(several: bool) -> None:
    import replay

    table = replayed(several)
    order = np.random.default_rng(0).permutation(table.n)
    make = replay.pruners(table.epochs, several)["calibrated"]
    curve = replay.simulate(table, order, make(), 20 * table.epochs)
    assert len(curve) > 25
    assert curve[-1][0] <= 20 * table.epochs
    regrets = [regret for _, regret, _ in curve]
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


def test_statistics_of_a_ranking_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    import nasbench201_analysis

    monkeypatch.setattr(nasbench201_analysis, "FIRST", 2)
    accuracy = np.array([1.0, 2.0, 3.0])
    best, worst = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    assert nasbench201_analysis.dcg_share(best, accuracy) == pytest.approx(1)
    ideal = 7 + 3 / math.log2(3)
    assert nasbench201_analysis.dcg_share(worst, accuracy) == pytest.approx(
        (1 + 3 / math.log2(3)) / ideal
    )
    assert nasbench201_analysis.regret(best, accuracy) == 0
    assert nasbench201_analysis.regret(worst, accuracy) == 2
    # Of two equal picks one is taken at random.
    assert nasbench201_analysis.regret(np.array([0.0, 5.0, 5.0]), accuracy) == 0.5


def test_what_is_not_finite_is_the_worst_cell() -> None:
    import nasbench201_analysis

    score, accuracy = np.arange(10.0), np.arange(10.0)
    score[0] = math.nan
    assert nasbench201_analysis.judged(score, accuracy)["tau"][0] == 1
    assert nasbench201_analysis.judged(score, accuracy, whole=True)["regret"] == [0]
    found = nasbench201_analysis.with_sums(dict.fromkeys(nasbench201_analysis.AZ_NAS, score))
    assert found.keys() == {*nasbench201_analysis.AZ_NAS, "AZ-NAS", "mean of all untrained"}


def test_size_of_a_cell_from_its_operations() -> None:
    import nasbench201_cells

    from flatsearch.networks.cost import count_flops, count_parameters
    from search_spaces.nasbench201 import parse_cell

    cell = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|nor_conv_1x1~2|"
    of = nasbench201_cells.counts(parse_cell(cell))
    assert of == (3, 0, 1, 2, 0)
    parameters, flops, layers = nasbench201_cells.size(of)
    model = nasbench201_cells.built(cell, 5)
    assert parameters == count_parameters(model)
    assert flops == count_flops(model, 3, 32)
    assert layers == 1 + 2 * 3 + 15 * 3 + 1


def test_what_of_a_cell_is_connected() -> None:
    import nasbench201_cells

    # Nothing comes into node 1, so that what leaves it is not connected either.
    cell = "|none~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_1x1~0|nor_conv_1x1~1|avg_pool_3x3~2|"
    found = nasbench201_cells.connected(cell)
    assert found == ("none", "skip_connect", "none", "nor_conv_1x1", "none", "avg_pool_3x3")
    assert nasbench201_cells.paths(found) == (1, 0, 2)
    # Node 2 leads nowhere.
    cell = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|none~0|nor_conv_1x1~1|none~2|"
    found = nasbench201_cells.connected(cell)
    assert found == ("nor_conv_3x3", "none", "none", "none", "nor_conv_1x1", "none")
    assert nasbench201_cells.paths(found) == (2, 2, 1)
    nothing = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    assert nasbench201_cells.paths(nasbench201_cells.connected(nothing)) == (-1, -1, 0)
    assert nasbench201_cells.graph([nothing])["parameters, connected"] == [0]
    assert nasbench201_cells.features([cell, nothing]).shape == (2, 30 + 5 + 3 + 3)
