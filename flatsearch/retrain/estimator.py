"""Search and final training as one estimator with scikit-learn's conventions."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d
from tqdm.auto import tqdm

from flatsearch.analysis.selection import Choice, choose_best
from flatsearch.analysis.summary import require_complete, summarise
from flatsearch.data.arrays import as_labels
from flatsearch.data.loading import load_data
from flatsearch.data.values import plain
from flatsearch.errors import DataError, UsageError
from flatsearch.export.card import ModelCard
from flatsearch.export.classifier import Classifier
from flatsearch.retrain.checkpoint import SeedTraining
from flatsearch.retrain.training import build_network, default_epochs
from flatsearch.search.loop import run_study
from flatsearch.search.objective import FlatnessObjective
from flatsearch.search.study import open_study
from flatsearch.settings import RunSettings, how_to_prune_under

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from flatsearch.spaces.space import SearchSpace

__all__ = ["FlatSearchClassifier"]

_CHANNELS = (1, 2, 3, 4)


def _checked(check: Callable[[Any, str], Any], given: Any, what: str) -> Any:
    """Return what a check of data returns, whose errors are scikit-learn's here."""
    try:
        return check(given, what)
    except DataError as error:
        raise ValueError(str(error)) from None


class FlatSearchClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of images whose network is searched, and then trained, by `fit`.

    A fifth of the images is the validation split of the search (`settings.validation_fraction`);
    the chosen architecture is trained anew on all of them, as `flatsearch train` does. Nothing is
    held out for a test: that is what `cross_val_score` and a split of your own are for. Training
    images are mirrored at random: where left and right matter, as in digits, give
    `settings=RunSettings(augment="crop")`.

    Args:
        space: A search space, or its name.
        n_trials: Trials of the search.
        objectives: What is optimised, see `flatsearch.settings.OBJECTIVES`.
        epochs: Epochs of a trial.
        final_epochs: Epochs of the final training; five times those of a trial where None.
        prefer: The objective whose best trial is trained; that of the front's knee where None.
        settings: Every other setting of the search.
        image_shape: The shape of an image, (H, W) or (C, H, W), where X has rows of pixels. Where
            None, a row of F pixels is a gray image of sqrt(F) x sqrt(F).
        sampler: What proposes trials, see `flatsearch.settings.choices.SAMPLERS`.
        pruner: What stops them, see `flatsearch.settings.choices.PRUNERS`; where None, "flatness":
            no artifacts are kept, so that no network can be parked.
        timeout: Seconds after which no new trial begins; None for no end.
        device: Where to train, see `flatsearch.device.resolve_device`.
        random_state: The seed, as an integer, of search and training; drawn where None.
        verbose: Whether a progress bar is shown, in a notebook as a widget.

    Attributes:
        classes_: The labels, (K,).
        n_features_in_: The numbers in one image.
        study_: Optuna's study, for `flatsearch.study_frame`, reports and plots.
        best_trial_: The number of the trial that was trained.
        architecture_: Its architecture.
        model_: Its network, on the CPU, in eval mode.
        card_: What the network has to be fed, for `flatsearch.save_model(model_, card_, file)`.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> search = FlatSearchClassifier("plain_cnn", n_trials=2, epochs=1, random_state=0)
        >>> search.fit(X[:300], y[:300]).predict(X[300:]).shape  # doctest: +SKIP
        (1497,)
    """

    def __init__(
        self,
        space: SearchSpace | str = "resnet_small",
        *,
        n_trials: int = 20,
        objectives: Sequence[str] = ("accuracy", "flatness"),
        epochs: int = 8,
        final_epochs: int | None = None,
        prefer: str | None = None,
        settings: RunSettings | None = None,
        image_shape: Sequence[int] | None = None,
        sampler: str = "tpe",
        pruner: str | None = None,
        timeout: float | None = None,
        device: str = "auto",
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.space = space
        self.n_trials = n_trials
        self.objectives = objectives
        self.epochs = epochs
        self.final_epochs = final_epochs
        self.prefer = prefer
        self.settings = settings
        self.image_shape = image_shape
        self.sampler = sampler
        self.pruner = pruner
        self.timeout = timeout
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> FlatSearchClassifier:
        """Search an architecture for labelled images, and train it on all of them.

        Args:
            X: Images: (N, H, W), (N, H, W, C) or (N, C, H, W), with H = W, or rows of pixels (N, F)
                as scikit-learn has them. Bytes are pixel values from 0 to 255.
            y: Their labels, (N,), of any type.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If images, labels or a parameter are not accepted.
            FlatsearchError: If no trial completes, or the final training diverges.
        """
        images = self._images(X)
        if y is None:
            raise ValueError(
                "FlatSearchClassifier requires y to be passed, but the target y is None"
            )
        _checked(as_labels, y, "y")
        y = column_or_1d(y, warn=True)
        if len(images) != len(y):
            raise ValueError(f"Found {len(images)} images but {len(y)} labels")
        self.classes_, targets = np.unique(y, return_inverse=True)
        self.n_features_in_ = math.prod(images.shape[1:])
        seed = self.random_state
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31))
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            objective = self._begin(images, targets, seed)
            choice = self._search(objective)
        finally:
            optuna.logging.set_verbosity(verbosity)
        assert choice.trial.architecture is not None  # noqa: S101 - every trial of it has one
        self.best_trial_, self.architecture_ = choice.trial.number, choice.trial.architecture
        self.model_ = self._train(choice, objective, seed)
        self.card_ = ModelCard.of(objective.data, objective.space_reference, self.architecture_)
        return self

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Return the probabilities of the classes, (N, K), in the order of `classes_`.

        Args:
            X: Images of the shape that was fitted.

        Returns:
            The softmax of the logits.

        Raises:
            ValueError: If the images have another shape.
        """
        check_is_fitted(self, "model_")
        images = self._images(X)
        wanted = (self.card_.in_channels, self.card_.image_size, self.card_.image_size)
        if images.shape[1:] != wanted:
            raise ValueError(
                f"X has images of shape {images.shape[1:]}, but FlatSearchClassifier is expecting"
                f" {wanted} as input, {self.n_features_in_} features"
            )
        classifier = Classifier(self.card_, lambda x: self.model_(self.card_.normalise(x)), None)
        probabilities: np.ndarray[Any, Any] = classifier(images).double().softmax(1).numpy()
        return probabilities

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """Return the most probable class of every image, (N,).

        Args:
            X: Images of the shape that was fitted.

        Returns:
            Labels, of the type of y.
        """
        places = self.predict_proba(X).argmax(1)
        predicted: np.ndarray[Any, Any] = self.classes_[places]
        return predicted

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.non_deterministic = self.random_state is None
        return tags

    def _images(self, X: Any) -> np.ndarray[Any, Any]:
        """Return images (N, C, S, S), in bytes or float32."""
        images = np.asarray(_checked(plain, X, "X"))
        if images.dtype.kind not in "buif":
            raise ValueError(f"X must be numbers but has type {images.dtype}")
        if images.ndim not in {2, 3, 4}:
            raise ValueError(
                "Expected images (N, H, W), (N, H, W, C) or (N, C, H, W), or rows of pixels (N, F),"
                f" but X has shape {images.shape}. Reshape your data"
            )
        if images.ndim == 2:
            images = images.reshape(len(images), *self._shape(images.shape[1]))
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[3] in _CHANNELS and images.shape[1] not in _CHANNELS:
            images = images.transpose(0, 3, 1, 2)
        if images.shape[1] not in _CHANNELS or images.shape[2] != images.shape[3]:
            raise ValueError(
                f"images must be square and have 1 to 4 channels but X has shape {np.shape(X)}"
            )
        if not len(images):
            raise ValueError(
                "Found array with 0 sample(s) (images) while a minimum of 1 is required"
            )
        if images.dtype == np.uint8:
            return np.ascontiguousarray(images)
        images = np.ascontiguousarray(images, dtype=np.float32)
        if not np.isfinite(images).all():
            raise ValueError("Input X contains NaN or infinity")
        return images

    def _shape(self, n: int) -> tuple[int, ...]:
        """Return the shape of an image of n pixels."""
        square = (math.isqrt(n),) * 2
        shape = square if self.image_shape is None else tuple(self.image_shape)
        if len(shape) not in {2, 3} or math.prod(shape) != n:
            raise ValueError(
                f"rows of {n} pixels are no images of shape {shape}; give `image_shape`"
            )
        return shape

    def _begin(self, images: Any, targets: Any, seed: int) -> FlatnessObjective:
        """Open the study, and return its objective."""
        try:
            settings = dataclasses.replace(
                self.settings or RunSettings(),
                objectives=tuple(self.objectives),
                epochs=self.epochs,
                image_size=images.shape[2],
                seed=seed,
            )
            data = load_data((images, targets), **settings.data_options()).merged("test")
            mode = how_to_prune_under(self.sampler)
            objective = FlatnessObjective(
                self.space, data, settings=settings, device=self.device, prune_mode=mode
            )
            storage = optuna.storages.InMemoryStorage()
            name, sampler, pruner = type(self).__name__, self.sampler, self.pruner
            self.study_ = open_study(name, storage, objective, sampler=sampler, pruner=pruner)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return objective

    def _search(self, objective: FlatnessObjective) -> Choice:
        """Run the search, and return the trial that is to be trained."""
        with tqdm(total=self.n_trials, unit="trial", disable=not self.verbose) as bar:
            run_study(
                self.study_,
                objective,
                target=self.n_trials,
                timeout=self.timeout,
                on_trial=lambda *_: bar.update(),
            )
        summary = summarise(self.study_, statistics=False)
        require_complete(summary)
        if summary.front:
            return choose_best(summary, self.prefer)
        warnings.warn(
            "no trial has learnt clearly more than to guess; the most accurate one is trained",
            ConvergenceWarning,
            stacklevel=3,
        )
        complete = [trial for trial in summary.trials if trial.complete and trial.own]
        kind = objective.settings.accuracy
        return Choice(max(complete, key=lambda t: t.metrics[kind]), "the most accurate")

    def _train(self, choice: Choice, objective: FlatnessObjective, seed: int) -> nn.Module:
        """Return the chosen network, trained on all images, on the CPU."""
        trial, data = choice.trial, objective.data
        epochs = default_epochs(self.study_) if self.final_epochs is None else self.final_epochs
        settings = dataclasses.replace(objective.settings, **{**trial.recipe, "epochs": epochs})
        with (
            torch.random.fork_rng(),
            tempfile.TemporaryDirectory() as folder,
            tqdm(total=epochs, unit="epoch", disable=not self.verbose) as bar,
        ):
            training = SeedTraining(
                build_network(objective.space, trial, seed, data),
                data.merged(),
                settings,
                seed,
                Path(folder) / "checkpoint",
                "",
                2 if trial.halved else 1,
            )
            return training.run(lambda *_: bar.update()).cpu()
