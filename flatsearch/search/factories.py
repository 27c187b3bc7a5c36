"""Samplers and pruners by their command-line names."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import optuna

from flatsearch.errors import SettingsError, unknown_name
from flatsearch.pruners.flatness import FlatnessPruner
from flatsearch.pruners.halving import HalvingPromoter
from flatsearch.pruners.metric import MetricPruner
from flatsearch.pruners.one_rung import OneRungPromoter
from flatsearch.pruners.pareto import ParetoPruner
from flatsearch.search.constraints import sampler_options
from flatsearch.settings import COSTS, PRUNE_ON, PRUNERS, SAMPLERS

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["make_pruner", "make_sampler"]

# The shares of trials that are trained to the end, from scripts/experiments/replay_parking.py.
_BEST, _FRONT = 0.125, 0.25
# What scripts/experiments/replay_fronts.py was about.
_TWO = {"accuracy", "flatness"}
_VERSION = tuple(map(int, optuna.__version__.split(".")[:2]))


def make_sampler(name: str, seed: int, n_objectives: int = 1) -> optuna.samplers.BaseSampler:
    """Return a sampler by its command-line name.

    Args:
        name: "tpe", "nsga2", "gp" or "random".
        seed: The seed of its random numbers.
        n_objectives: The number of the study's objectives.

    Returns:
        The sampler.

    Raises:
        SettingsError: If the name is not known, or that sampler of this Optuna takes one objective.
    """
    sees = sampler_options()
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, **sees),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=12, **sees),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, **sees),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    if name not in samplers:
        raise SettingsError(unknown_name("sampler", name, SAMPLERS))
    if name == "gp" and n_objectives > 1 and _VERSION < (4, 4):
        raise SettingsError(
            f"sampler 'gp' takes one objective in Optuna {optuna.__version__}, and several from"
            " Optuna 4.4 on"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return samplers[name]()


def make_pruner(
    name: str, objectives: tuple[str, ...], prune_on: str | None = None, *, counted: bool = True
) -> optuna.pruners.BasePruner:
    """Return a pruner by its command-line name.

    Args:
        name: "flatness", "promote", "median", "asha", "hyperband" or "none".
        objectives: The study's objectives.
        prune_on: What median, asha and hyperband judge by, from `PRUNE_ON`. Where None, the
            objective of a single-objective study, else the Pareto rank.
        counted: Whether the run ends after a number of trials; one that ends when its time is up
            cannot wait with what it promotes.

    Returns:
        The pruner.

    Raises:
        SettingsError: If a name is not known, or the objective says nothing about an epoch.
    """
    if name not in PRUNERS:
        raise SettingsError(unknown_name("pruner", name, PRUNERS))
    if prune_on is not None and prune_on not in PRUNE_ON:
        raise SettingsError(unknown_name("metric to prune on", prune_on, PRUNE_ON))
    if prune_on is not None and name in {"none", "flatness", "promote"}:
        raise SettingsError(f"`prune_on` is for median, asha and hyperband, not for {name!r}")
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "flatness":
        return FlatnessPruner()
    if name == "promote" and not counted and set(objectives) == _TWO:
        return HalvingPromoter(
            ("loss", "parameters"),
            later=("loss", "train_loss", "parameters"),
            factor=3,
            most_rungs=2,
            first=True,
            in_turns=True,
            audit=0.0,
        )
    if name == "promote":
        # A front takes more networks than a best one.
        share = _BEST if len(objectives) == 1 else _FRONT
        return OneRungPromoter(promote=share, at_once=not counted)
    rules: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": optuna.pruners.MedianPruner,
        "asha": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    rule = rules[name]()
    if prune_on is None and len(objectives) == 1:
        if objectives[0] in COSTS:
            raise SettingsError(
                f"pruner {name!r} learns nothing from the objective {objectives[0]}, which is the"
                f" same in every epoch; give `prune_on`: {', '.join(PRUNE_ON)}"
            )
        return rule  # sees what is reported to Optuna
    if prune_on in {None, "pareto_rank"}:
        return ParetoPruner(rule)
    return MetricPruner(prune_on, rule, direction=PRUNE_ON[prune_on])
