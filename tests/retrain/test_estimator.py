"""The estimator: scikit-learn's checks where they are about images, and use as people use it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import estimator_checks

from flatsearch import FlatSearchClassifier, record
from flatsearch.record.constraints import PRUNED_SOFTLY
from tests.fakes import Tiny

# The others fit tables of a few features, which are no images.
CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimators_unfitted",
    "check_get_params_invariance",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
]


def small(**options: Any) -> FlatSearchClassifier:
    known = {"n_trials": 1, "epochs": 1, "final_epochs": 2, "random_state": 0, "device": "cpu"}
    known["objectives"] = ("accuracy",)
    return FlatSearchClassifier(Tiny(), **{**known, **options})


def digits(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X[:n], y[:n]


@pytest.fixture(scope="module")
def fitted() -> FlatSearchClassifier:
    X, y = digits()
    return small().fit(X, np.array([f"digit {k}" for k in y]))


# Older versions of scikit-learn have fewer.
@pytest.mark.parametrize("check", [c for c in CHECKS if hasattr(estimator_checks, c)])
def test_a_check_of_scikit_learn(check: str) -> None:
    getattr(estimator_checks, check)("FlatSearchClassifier", FlatSearchClassifier(n_trials=1))


def test_what_is_known_after_fitting(fitted: FlatSearchClassifier) -> None:
    assert list(fitted.classes_) == [f"digit {k}" for k in range(10)]
    assert (fitted.n_features_in_, fitted.best_trial_) == (64, 0)
    assert fitted.architecture_ == record.TrialRecord(fitted.study_.trials[0]).architecture
    X, _ = digits(5)
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (5, 10)
    assert probabilities.sum(1) == pytest.approx(np.ones(5))
    assert list(fitted.predict(X)) == list(fitted.classes_[probabilities.argmax(1)])


def test_a_sampler_that_ignores_pruned_trials_is_told_softly() -> None:
    found = small(sampler="nsga2").fit(*digits(100)).study_.trials[0]
    assert record.read_constraints(found)[PRUNED_SOFTLY] == 0.0


def test_an_image_is_the_same_in_every_form(fitted: FlatSearchClassifier) -> None:
    X, _ = digits(5)
    expected = fitted.predict_proba(X)
    for form in (X.reshape(5, 8, 8), X.reshape(5, 1, 8, 8), X.reshape(5, 8, 8, 1)):
        assert np.array_equal(fitted.predict_proba(form), expected)
    assert np.array_equal(fitted.predict_proba(torch.from_numpy(X)), expected)


def test_it_is_repeatable_and_can_be_pickled(fitted: FlatSearchClassifier) -> None:
    X, y = digits()
    state = torch.get_rng_state()
    again = clone(fitted).fit(X, np.array([f"digit {k}" for k in y]))
    assert torch.equal(torch.get_rng_state(), state)
    loaded = pickle.loads(pickle.dumps(fitted))
    for other in (again, loaded):
        assert np.array_equal(other.predict_proba(X), fitted.predict_proba(X))
    assert len(loaded.study_.trials) == 1


def test_in_a_pipeline_and_a_cross_validation() -> None:
    X, y = digits(120)
    scores = cross_val_score(make_pipeline(MinMaxScaler(), small()), X, y, cv=2)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


def test_networks_that_guess_are_better_than_none() -> None:
    with pytest.warns(ConvergenceWarning, match="no trial has learnt clearly more than to guess"):
        fitted = small(objectives=("accuracy", "flatness")).fit(*digits(60))
    assert fitted.best_trial_ == 0


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (
            np.zeros((20, 7)),
            {},
            r"rows of 7 pixels are no images of shape .2, 2.; give `image_shape`",
        ),
        (np.zeros((20, 4, 6)), {}, "must be square and have 1 to 4 channels"),
        (np.zeros((20, 64)), {"image_shape": (8, 9)}, r"no images of shape .8, 9."),
        (np.full((20, 64), np.nan), {}, "Input X contains NaN or infinity"),
        (np.array([["a"]] * 20), {}, "X must be numbers"),
        (np.zeros((19, 64)), {}, "Found 19 images but 20 labels"),
        (np.zeros(20), {}, "Reshape your data"),
        (np.zeros((20, 64)), {"objectives": ("speed",)}, "unknown objective 'speed'"),
    ],
)
def test_what_is_refused(X: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options).fit(X, np.arange(20) % 2)


def test_other_images_and_none_fitted(fitted: FlatSearchClassifier) -> None:
    with pytest.raises(ValueError, match=r"is expecting .1, 8, 8. as input, 64 features"):
        fitted.predict(np.zeros((3, 49)))
    with pytest.raises(NotFittedError):
        small().predict(np.zeros((3, 64)))
