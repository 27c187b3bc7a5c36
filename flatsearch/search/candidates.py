"""Candidates: what a trial proposes, how it becomes a network, and when two are the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch

from flatsearch.errors import NonFiniteError, SpaceError, UnsupportedModelError
from flatsearch.flatness import relative_flatness
from flatsearch.networks.cost import excess, measure_cost, over_limit
from flatsearch.networks.duplicate_key import network_key
from flatsearch.record import write_constraints, write_trial
from flatsearch.record.constraints import LIMIT
from flatsearch.search.recipe import suggest_recipe
from flatsearch.signals.compute import ProxyInput, measure
from flatsearch.signals.table import PROXIES
from flatsearch.spaces.describe import check_names
from flatsearch.spaces.space import (
    Architecture,
    OnceTrial,
    SearchSpace,
    build_model,
    suggest_checked,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial
    from torch import nn

    from flatsearch.data.splits import ImageData
    from flatsearch.settings import RunSettings

__all__ = ["Candidate", "Candidates"]

# Candidates that `Candidates.check` tries.
_CHECKS = 5
# Images that one of them is measured on.
_CHECKED_IMAGES = 8


@dataclass(frozen=True)
class Candidate:
    """An architecture and how it is to be trained.

    Attributes:
        architecture: The architecture that was suggested.
        settings: The settings of the run, with the recipe's in place of those of the same names.
        recipe: The training settings that were suggested with the architecture.
        seed: The seed of initialisation, batch order and augmentation.
    """

    architecture: Architecture
    settings: RunSettings
    recipe: Mapping[str, Any]
    seed: int


class Candidates:
    """Makes candidates of a search space for a data set.

    Args:
        space: The search space.
        data: The images, on the device that networks are built for.
        settings: The settings of the run.
    """

    def __init__(self, space: SearchSpace, data: ImageData, settings: RunSettings) -> None:
        self._space, self._data, self._settings = space, data, settings

    def propose(self, trial: BaseTrial, number: int | None = None) -> Candidate:
        """Ask a trial for a candidate, whose seed is repeatable.

        Args:
            trial: The trial.
            number: The number of the trial that its seed is derived from; its own where None.

        Returns:
            The candidate.
        """
        once: Any = OnceTrial(trial)
        architecture = suggest_checked(self._space, once)
        settings, recipe = self._settings, dict[str, Any]()
        if settings.tune_recipe:
            may_flip = self._data.may_flip
            settings, recipe = suggest_recipe(self._space, once, settings, may_flip=may_flip)
        if "batch_size" in recipe:
            # A batch has no more images than there are: the same training, the same key.
            recipe["batch_size"] = min(settings.batch_size, len(self._data.train))
            settings = replace(settings, batch_size=recipe["batch_size"])
        number = trial.number if number is None else number
        sequence = np.random.SeedSequence([self._settings.seed, number])
        return Candidate(architecture, settings, recipe, int(sequence.generate_state(1)[0]))

    def build(self, candidate: Candidate) -> nn.Module:
        """Return a candidate's network, initialised with its seed, on the data's device."""
        torch.manual_seed(candidate.seed)
        return self._build(candidate, check=False).to(self._data.probe.targets.device)

    def key(self, candidate: Candidate) -> str:
        """Return what tells a candidate from others: its network and its recipe."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self._build(candidate)
        network = network_key(model, self._data.in_channels, self._data.image_size)
        suffix = json.dumps(candidate.recipe, sort_keys=True) if candidate.recipe else ""
        return (network or candidate.architecture.key) + suffix

    def cost(
        self, trial: optuna.Trial, model: nn.Module, known: Mapping[str, float] | None
    ) -> Mapping[str, float]:
        """Record what is known of a network untrained; of one over a limit only what it costs.

        Args:
            trial: The trial.
            model: The network.
            known: What an earlier trial of the same network has found, if there was one.

        Returns:
            Costs and signals by their names.
        """
        data, settings = self._data, self._settings
        cost = known or measure_cost(
            model, data.in_channels, data.image_size, {*settings.limits, *settings.objectives}
        )
        write_trial(trial, metrics=cost)
        over = excess(cost, settings.limits)
        write_constraints(trial, {f"{LIMIT}{name}": value for name, value in over.items()})
        untrained = [name for name in settings.signals if PROXIES[name].first == "untrained"]
        if known is not None or not untrained or over_limit(cost, settings.limits):
            return cost
        known = {**cost, **measure(untrained, ProxyInput(model, *data.probe.tensors()))}
        write_trial(trial, metrics=known)
        return known

    def _build(self, candidate: Candidate, *, check: bool = True) -> nn.Module:
        return build_model(
            self._space,
            candidate.architecture,
            in_channels=self._data.in_channels,
            num_classes=self._data.num_classes,
            image_size=self._data.image_size,
            check=check,
        )

    def check(self) -> None:
        """Build and measure a random candidate, untrained, so that a broken space shows early.

        Names of parameters are looked at in many candidates. A space some of whose candidates fail
        is no reason to refuse it: a few are tried.

        Raises:
            SpaceError: If the space fails or breaks its contract; names the class and method.
        """
        check_names(self.propose, f"{type(self._space).__name__}.suggest")
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        first: SpaceError | None = None
        for _ in range(_CHECKS):
            try:
                return self._check(study.ask())
            except optuna.TrialPruned:  # noqa: PERF203 - not worth a function of its own
                continue
            except SpaceError as error:
                first = first or error
        raise first or SpaceError(f"{type(self._space).__name__}.suggest prunes every candidate")

    def _check(self, trial: optuna.Trial) -> None:
        candidate = self.propose(trial)
        inputs, targets = self._data.probe.tensors()
        with torch.random.fork_rng(devices=[]):
            model = self._build(candidate).to(inputs.device)
        images = inputs[:_CHECKED_IMAGES], targets[:_CHECKED_IMAGES]
        layers = "all" if self._settings.needs_all else self._settings.layer
        try:
            relative_flatness(model, images, layers)
        except (NonFiniteError, UnsupportedModelError) as error:
            raise SpaceError(
                f"{type(self._space).__name__}.build returned a model whose flatness cannot be"
                f" measured: {error}"
            ) from error
