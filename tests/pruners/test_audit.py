"""When pruning by stated probabilities is suspended."""

from __future__ import annotations

import numpy as np
import pytest

from flatsearch.pruners.audit import Audit, Ended, draw, tail_probability


def test_tail_probability() -> None:
    assert tail_probability([], 0) == 1
    assert tail_probability([0.1, 0.2, 0.3], 3) == pytest.approx(0.006)
    assert tail_probability([0.1, 0.2, 0.3], 1) == pytest.approx(1 - 0.9 * 0.8 * 0.7)
    assert tail_probability([0.1, 0.2], 3) == 0


def test_a_draw_is_uniform_and_anybodys() -> None:
    drawn = [draw("study", number) for number in range(2000)]
    assert draw("study", 3) == drawn[3] != draw("another", 3)
    assert np.histogram(drawn, 4, (0, 1))[0].tolist() == pytest.approx([500] * 4, abs=70)


def ended(final: float, stated: float | None = None, **options: bool) -> Ended:
    return Ended((final,), 1.0, 0.0, options.get("feasible", True), stated)


def test_suspends_while_more_are_good_than_stated() -> None:
    audit = Audit(best=0.2)
    assert not audit.suspends()
    for final in range(10):
        audit.add(ended(float(final)))
    assert not audit.suspends()
    audit.add(ended(20.0, stated=0.3))  # good, as may happen
    assert not audit.suspends()
    audit.add(ended(20.0, stated=0.01))
    assert audit.suspends()
    for _ in range(20):
        audit.add(ended(30.0))  # no longer among the best
    assert not audit.suspends()


def test_what_is_not_feasible_is_not_audited() -> None:
    for best in (0.2, None):
        audit = Audit(best)
        for final in range(5):
            audit.add(ended(float(final)))
        audit.add(ended(20.0, stated=0.001, feasible=False))
        assert not audit.suspends()


def test_a_place_on_the_front_is_judged_when_it_was_stated() -> None:
    audit = Audit(None)
    audit.add(Ended((1.0, 1.0), 1.0, 0.0, True, None))
    audit.add(Ended((2.0, 2.0), 1.0, 1.0, True, 0.01))
    audit.add(Ended((3.0, 3.0), 1.0, 2.0, True, None))  # moves the front afterwards
    assert audit.suspends()
    audit = Audit(None)
    audit.add(Ended((3.0, 3.0), 1.0, 0.0, True, None))
    audit.add(Ended((2.0, 2.0), 1.0, 1.0, True, 0.01))
    assert not audit.suspends()
