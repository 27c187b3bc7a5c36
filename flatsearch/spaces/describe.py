"""What a search space offers, found by asking it."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)

from flatsearch.errors import SpaceError
from flatsearch.networks.cost import count_parameters, measure_cost
from flatsearch.networks.drawing import draw
from flatsearch.networks.layers import executed_layers
from flatsearch.spaces.space import SearchSpace, build_model, suggest_checked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

__all__ = ["check_names", "count_architectures", "describe_space", "estimate_settings"]

_SAMPLES = 100
# What the networks are built for.
_IMAGES: dict[str, Any] = {"in_channels": 3, "num_classes": 10, "image_size": 32}
_MOST_COUNTED = 100_000
_ESTIMATES = 2_000
_CHECKS = 200


def describe_space(space: SearchSpace, samples: int = _SAMPLES) -> dict[str, Any]:
    """Sample a space and describe its parameters and the sizes of its networks.

    Args:
        space: The search space.
        samples: Random architectures to draw.

    Returns:
        "parameters" (text by name), "architectures" (their number, None if there are more than
        can be counted), "settings_estimate" (of the parameter settings in that case, see
        `estimate_settings`), "samples", "example" (one of them), "drawing" (lines of text that show
        it), and "smallest" and "largest" network of the sample with their "parameters", "flops",
        "memory" and "architecture", for 3x32x32 images and 10 classes.
    """
    estimate = estimate_settings(space)
    # Trying every setting takes a while, which is lost where there are far too many.
    few = estimate is not None and estimate < 10 * _MOST_COUNTED
    count = count_architectures(space) if few else None
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    parameters: dict[str, str] = {}
    drawn = set()
    for _ in range(samples):
        trial = study.ask()
        drawn.add(suggest_checked(space, trial))
        for name, distribution in trial.distributions.items():
            parameters[name] = _text(distribution)
    models = {architecture: build_model(space, architecture, **_IMAGES) for architecture in drawn}
    by_size = sorted(drawn, key=lambda a: (count_parameters(models[a]), a.to_json()))
    low, high = (
        {**measure_cost(models[end], 3, 32), "architecture": dict(end.values)}
        for end in (by_size[0], by_size[-1])
    )
    example = min(drawn, key=lambda architecture: architecture.key)
    layers = executed_layers(models[example], 3, 32)
    return {
        "parameters": dict(sorted(parameters.items())),
        "architectures": count,
        "settings_estimate": estimate if count is None else None,
        "samples": samples,
        "example": dict(example.values),
        "drawing": draw(layers, 3, 32),
        "smallest": low,
        "largest": high,
    }


def check_names(suggest: Callable[[BaseTrial], object], where: str) -> None:
    """Refuse parameters of one name that stand for other choices in another branch.

    Optuna takes ranges that differ, but neither other choices nor another kind of parameter, and
    says so only when a trial comes to the other branch. Random settings are tried.

    Args:
        suggest: A function that asks a trial for parameters; its own errors are left to others.
        where: What the message begins with.

    Raises:
        SpaceError: If there are such; names the parameter and both choices.
    """
    generator = np.random.default_rng(0)
    known: dict[str, BaseDistribution] = {}
    for _ in range(_CHECKS):
        trial = _PathTrial((), generator)
        with contextlib.suppress(SpaceError, optuna.TrialPruned):
            suggest(trial)
        for name, distribution in trial.distributions.items():
            first = known.setdefault(name, distribution)
            try:
                check_distribution_compatibility(first, distribution)
            except ValueError:
                raise SpaceError(
                    f"{where}: the parameter name {name!r} stands for {_text(first)} in one branch"
                    f" and for {_text(distribution)} in another, which Optuna does not take; give"
                    " them different names"
                ) from None


class _PathTrial(optuna.trial.FixedTrial):
    """A trial that takes a given choice of each parameter in turn, then the first of the others.

    A generator draws the other choices, in place of the first, and where there are infinitely many.

    Attributes:
        path: The number of the choice of every parameter that was asked for.
        counts: How many choices each of them has; None for a continuous one.
    """

    def __init__(self, path: Sequence[int], generator: np.random.Generator | None = None) -> None:
        super().__init__({})
        self._generator = generator
        self._wanted = list(path)
        self.path: list[int] = []
        self.counts: list[int | None] = []
        self._given: dict[str, Any] = {}

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._given:
            return self._given[name]
        taken = len(self.path)
        count = _choices(distribution)
        choice = 0
        self._distributions[name] = distribution
        if taken < len(self._wanted):
            choice = self._wanted[taken]
        elif self._generator is not None and count is not None:
            choice = int(self._generator.integers(count))
        self.path.append(choice)
        self.counts.append(count)
        if isinstance(distribution, CategoricalDistribution):
            value: Any = distribution.choices[choice]
        else:
            grid: Any = distribution
            value = grid.low + choice * (grid.step or 0)
            if count is None and self._generator is not None:
                value = self._generator.uniform(grid.low, grid.high)
        self._given[name] = value
        return value


def _choices(distribution: BaseDistribution) -> int | None:
    """Return how many values a parameter can take; None for a continuous one."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    grid: Any = distribution
    if grid.step is None:
        return 1 if grid.low == grid.high else None
    return round((grid.high - grid.low) / grid.step) + 1


def count_architectures(space: SearchSpace, most: int = _MOST_COUNTED) -> int | None:
    """Return a space's number of different architectures, by trying every parameter setting.

    None if there are more than `most` settings, or infinitely many.

    Example:
        >>> from flatsearch.spaces.registry import load_space
        >>> count_architectures(load_space("nasbench201"))
        15625
    """
    found = set()
    path: list[int] = []
    for _ in range(most):
        trial = _PathTrial(path)
        found.add(suggest_checked(space, trial))
        if None in trial.counts:
            return None
        # The next setting: the last parameter that has another choice takes it.
        path = list(trial.path)
        while path and path[-1] + 1 >= (trial.counts[len(path) - 1] or 0):
            path.pop()
        if not path:
            return len(found)
        path[-1] += 1
    return None


def estimate_settings(space: SearchSpace, samples: int = _ESTIMATES) -> float | None:
    """Return about how many settings a space's parameters have; None with a continuous one.

    Parameters that depend on earlier ones make a tree; the product of the numbers of choices along
    a random path is an unbiased estimate of its number of leaves (Knuth, "Estimating the efficiency
    of backtrack programs", 1975). Several settings may be the same architecture.

    Example:
        >>> from flatsearch.spaces.registry import load_space
        >>> estimate_settings(load_space("nasbench201"), samples=3)
        15625.0
    """
    generator = np.random.default_rng(0)
    total = 0.0
    for _ in range(samples):
        trial = _PathTrial((), generator)
        suggest_checked(space, trial)
        if None in trial.counts:
            return None
        total += math.prod(float(count or 1) for count in trial.counts)
    return total / samples


def _text(distribution: BaseDistribution) -> str:
    """Return a distribution in words.

    Example:
        >>> _text(IntDistribution(8, 32, step=8)), _text(CategoricalDistribution(["a", "b"]))
        ('8 to 32, step 8', 'a, b')
    """
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(str(choice) for choice in distribution.choices)
    if isinstance(distribution, (IntDistribution, FloatDistribution)):
        step = f", step {distribution.step:g}" if distribution.step not in {None, 1} else ""
        log = ", log" if distribution.log else ""
        return f"{distribution.low:g} to {distribution.high:g}{step}{log}"
    return str(distribution)
