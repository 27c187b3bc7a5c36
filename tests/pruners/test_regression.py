from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from flatsearch.pruners.regression import Prior, Reference, fit


def test_scores_are_those_of_ranks_alone() -> None:
    values = np.random.default_rng(0).normal(size=20)
    scores = Reference(values).score(values)
    assert np.allclose(Reference(np.exp(values)).score(np.exp(values)), scores)
    assert np.allclose(Reference(-values).score(-values), -scores)
    assert np.allclose(np.sort(scores), stats.norm.ppf((np.arange(20) + 1) / 21))


def test_ties_infinities_and_nan() -> None:
    reference = Reference(np.array([1.0, 1.0, np.nan, np.inf]))
    assert reference.score(np.array([1.0]))[0] == pytest.approx(stats.norm.ppf(1.5 / 4))
    assert reference.score(np.array([np.inf]))[0] == pytest.approx(stats.norm.ppf(3 / 4))
    assert reference.score(np.array([np.nan, -np.inf]))[0] == 0
    assert Reference(np.array([])).score(np.array([3.0]))[0] == 0  # nothing to compare with


def test_weights_undo_a_selection() -> None:
    # Of the worse half one in ten is seen, and counts for ten.
    generator = np.random.default_rng(1)
    values = generator.normal(size=20_000)
    seen = (values > 0) | (generator.random(20_000) < 0.1)
    weights = np.where(values > 0, 1.0, 10.0)[seen]
    limits = np.array([-1.0, 0.0, 1.0])
    corrected = Reference(values[seen], weights).score(limits)
    assert np.allclose(corrected, limits, atol=0.05)
    assert not np.allclose(Reference(values[seen]).score(limits), limits, atol=0.3)


def test_weights_are_repetitions() -> None:
    points = np.array([0.5, 1.0, 1.5])
    twice = Reference(np.array([1.0, 2.0]), np.array([3.0, 1.0])).score(points)
    assert np.allclose(twice, Reference(np.array([1.0, 1.0, 1.0, 2.0])).score(points))


def test_the_posterior_is_the_limit_of_regressions() -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(size=(4000, 2))
    y = x @ [0.8, -0.3] + generator.normal(scale=0.5, size=4000)
    posterior = fit(x, y, Prior(np.array([-1.0, 1.0])))
    assert np.allclose(posterior.mean, [0.8, -0.3], atol=0.03)
    assert posterior.variance == pytest.approx(0.25, rel=0.1)
    assert np.allclose(posterior.errors, 0.5 / np.sqrt(4000), rtol=0.1)
    # And without data it is the prior.
    empty = fit(np.zeros((0, 2)), np.zeros(0), Prior(np.array([-1.0, 1.0]), variance=0.3))
    assert empty.mean.tolist() == [-1.0, 1.0]
    assert empty.variance == pytest.approx(0.3)


def test_the_posterior_is_that_of_integration() -> None:
    # One coefficient, the joint density of (b, s^2) on a grid.
    x, y = np.array([1.0, 0.5, -2.0]), np.array([0.7, 0.9, -1.0])
    prior = Prior(np.array([0.2]), strength=3.0, variance=0.4, shape=2.5)
    b, s2 = np.meshgrid(np.linspace(-4, 5, 1801), np.geomspace(0.005, 60, 2000), indexing="ij")
    density = stats.invgamma.pdf(s2, prior.shape, scale=prior.shape * prior.variance)
    density = density * stats.norm.pdf(b, 0.2, np.sqrt(s2 / 3.0))
    for xi, yi in zip(x, y, strict=True):
        density = density * stats.norm.pdf(yi, xi * b, np.sqrt(s2))
    density = density * s2  # the grid is logarithmic in s^2
    density /= density.sum()
    posterior = fit(x[:, None], y, prior)
    assert posterior.mean[0] == pytest.approx((density * b).sum(), abs=1e-3)
    for new, limit in ((1.5, 0.8), (-0.5, 0.1)):
        over = (density * stats.norm.sf(limit, new * b, np.sqrt(s2))).sum()
        found = posterior.exceeds(np.array([[new]]), limit)[0]
        assert found == pytest.approx(over, abs=2e-3)


def test_probabilities_are_calibrated() -> None:
    # Drawn from the prior, an event of stated probability p happens in p of the cases.
    generator = np.random.default_rng(3)
    prior = Prior(np.array([0.5, 0.0]), strength=4.0, variance=0.5, shape=4.0)
    stated, happened = [], []
    for _ in range(4000):
        s2 = stats.invgamma.rvs(4.0, scale=4.0 * 0.5, random_state=generator)
        b = generator.normal(prior.mean, np.sqrt(s2 / 4.0))
        x = generator.normal(size=(9, 2))
        y = x @ b + generator.normal(scale=np.sqrt(s2), size=9)
        posterior = fit(x[:8], y[:8], prior)
        stated.append(posterior.exceeds(x[8:], 0.5)[0])
        happened.append(y[8] > 0.5)
    stated, happened = np.array(stated), np.array(happened)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (stated >= low) & (stated < low + 0.2)
        assert happened[inside].mean() == pytest.approx(stated[inside].mean(), abs=0.06)
