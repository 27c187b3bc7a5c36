from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from flatsearch.pruners.predictor import Observation, Predictor
from flatsearch.pruners.regression import Posterior, fit


def trials(n: int, seed: int, noise: float = 0.5) -> list[tuple[float, float]]:
    """Return (signal, final) of n trials; the final is the signal and noise."""
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=n)
    return list(zip(signal, signal + noise * generator.normal(size=n), strict=True))


def test_knows_nothing_at_first() -> None:
    predictor = Predictor(("a",))
    estimate = predictor.ask(Observation({0: {"a": 1.0}}), 0)
    assert (estimate.probability, estimate.n_trials) == (1.0, 0)
    predictor.add(Observation({0: {"a": 1.0}}))  # pruned: no final value
    assert predictor.ask(Observation({0: {"a": 1.0}}), 0).n_trials == 0


def test_stated_probabilities_come_true() -> None:
    predictor = Predictor(("a", "noise"), best=0.2)
    data = trials(4000, 0)
    generator = np.random.default_rng(9)
    for signal, final in data[:1000]:
        curve = {0: {"a": signal, "noise": generator.normal()}}
        predictor.add(Observation(curve, final=(final,)))
    limit = np.quantile([final for _, final in data], 0.8)
    stated, happened = [], []
    for signal, final in data[1000:]:
        curve = {0: {"a": signal, "noise": generator.normal()}}
        stated.append(predictor.ask(Observation(curve), 0).probability)
        happened.append(final > limit)
    stated, happened = np.array(stated), np.array(happened)
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (stated >= low) & (stated <= low + 0.25)
        assert happened[inside].mean() == pytest.approx(stated[inside].mean(), abs=0.1)


def test_the_sign_is_learnt() -> None:
    for sign in (1.0, -1.0):
        predictor = Predictor(("a",), prior=({"a": -sign},))
        for signal, final in trials(100, 1):
            predictor.add(Observation({0: {"a": sign * signal}}, final=(final,)))
        good, bad = (predictor.ask(Observation({0: {"a": sign * x}}), 0) for x in (2.0, -2.0))
        assert good.probability > 0.3 > bad.probability


def test_an_audit_makes_up_for_what_was_pruned() -> None:
    # The worse half is flagged at the first step; one in five of it is run on.
    data = trials(3000, 2)
    generator = np.random.default_rng(3)
    pruned, audited = Predictor(("a",)), Predictor(("a",))
    everything = Predictor(("a",))
    for signal, final in data:
        curve = {0: {"a": signal}, 1: {"a": signal}}
        everything.add(Observation(curve, final=(final,)))
        if signal > 0:
            for predictor in (pruned, audited):
                predictor.add(Observation(curve, final=(final,)))
        elif generator.random() < 0.2:
            audited.add(Observation(curve, final=(final,), flagged=0, weight=5.0))
        else:
            audited.add(Observation({0: {"a": signal}}))
            pruned.add(Observation({0: {"a": signal}}))
    for step in (0, 1):
        for signal in (0.5, 1.5, 2.5):
            asked = Observation({0: {"a": signal}, 1: {"a": signal}})
            truth = everything.ask(asked, step).probability
            assert audited.ask(asked, step).probability == pytest.approx(truth, abs=0.05)
    asked = Observation({0: {"a": 1.0}, 1: {"a": 1.0}})
    wrong = pruned.ask(asked, 1).probability - everything.ask(asked, 1).probability
    assert abs(wrong) > 0.05  # survivors alone look better than they are, so this one worse


def test_what_is_missing_is_in_the_middle() -> None:
    predictor = Predictor(("a", "b"))
    for signal, final in trials(50, 4):
        predictor.add(Observation({0: {"a": signal}}, final=(final,)))
    with_nan = predictor.ask(Observation({0: {"a": 1.0, "b": math.nan}}), 0)
    assert with_nan == predictor.ask(Observation({0: {"a": 1.0}}), 0)
    fixed = predictor.ask(Observation({0: {}}, fixed={"a": 1.0}), 0)
    assert fixed == with_nan


def test_front() -> None:
    # Two objectives that pull apart: signals tell both finals exactly, up to a little noise.
    predictor = Predictor(("a", "b"))
    generator = np.random.default_rng(5)
    for _ in range(200):
        a, b = generator.uniform(size=2)
        predictor.add(Observation({0: {"a": a, "b": b}}, final=(a, b)))

    def on_front(a: float, b: float) -> float:
        return predictor.ask(Observation({0: {"a": a, "b": b}}), 0).probability

    assert on_front(2.0, 2.0) > 0.9
    assert on_front(2.0, -1.0) > 0.4  # the best in one objective
    assert on_front(0.3, 0.3) < 0.02
    assert on_front(0.3, 0.3) == on_front(0.3, 0.3)


def test_depends_on_ranks_alone() -> None:
    plain, bent = Predictor(("a",)), Predictor(("a",))
    for signal, final in trials(40, 6):
        plain.add(Observation({0: {"a": signal}}, final=(final,)))
        bent.add(Observation({0: {"a": math.exp(3 * signal)}}, final=(math.exp(final),)))
    for signal in (-1.0, 0.0, 1.0):
        first = plain.ask(Observation({0: {"a": signal}}), 0).probability
        second = bent.ask(Observation({0: {"a": math.exp(3 * signal)}}), 0).probability
        assert first == pytest.approx(second)


def test_the_base_rate_is_what_is_known_without_signals() -> None:
    predictor = Predictor(("a",), best=0.2)
    for signal, final in trials(30, 11):
        predictor.add(Observation({0: {"a": signal}}, final=(final,)))
    assert predictor.ask(Observation({0: {"a": 0.0}}), 0).base == 0.2
    front = Predictor(("a", "b"))
    for i in range(10):  # one point dominates all others
        front.add(Observation({0: {"a": i, "b": i}}, final=(i, i)))
    assert front.ask(Observation({0: {"a": 0.0}}), 0).base == 0.1


def test_all_that_tie_for_the_last_place_are_among_the_best() -> None:
    generator = np.random.default_rng(12)
    predictor = Predictor(("a",), best=0.1)
    for signal in generator.normal(size=200):
        predictor.add(Observation({0: {"a": signal}}, final=(min(signal, 0.0),)))
    # Half of all end at 0, the best there is.
    asked = (predictor.ask(Observation({0: {"a": x}}), 0).probability for x in (1.0, -1.0))
    good, bad = asked
    assert good > 0.8
    assert bad < 0.2
    constant = Predictor(("a",))
    for signal in generator.normal(size=20):
        constant.add(Observation({0: {"a": signal}}, final=(1.0,)))
    assert constant.ask(Observation({0: {"a": -3.0}}), 0).probability == 1.0


def test_a_trial_without_any_signal_has_the_base_rate() -> None:
    for finals in (1, 2):
        predictor = Predictor(("a",), best=0.2)
        for signal, final in trials(60, 6):
            predictor.add(Observation({0: {"a": signal}}, final=(final,) * finals))
        for nothing in ({}, {"a": math.nan}, {"b": 1.0}):
            estimate = predictor.ask(Observation({0: nothing}), 0)
            assert estimate.probability == estimate.base < 1


def test_a_decision_among_many_trials_costs_no_more_than_among_a_hundred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits: list[int] = []

    def counted(x: Any, y: Any, prior: Any) -> Posterior:
        fits.append(len(y))
        return fit(x, y, prior)

    monkeypatch.setattr("flatsearch.pruners.predictor.fit", counted)
    predictor = Predictor(("accuracy",))
    for i in range(400):
        predictor.add(Observation({0: {"accuracy": i % 7}}, final=(i % 7,)))
        predictor.ask(Observation({0: {"accuracy": 3.0}}), 0)
    assert fits[:99] == list(range(1, 100))
    assert fits[-1] >= 370
    assert len(fits) < 140
