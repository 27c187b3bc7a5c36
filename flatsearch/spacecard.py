"""What a search space offers, found by asking it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from flatsearch.models import count_flops, count_parameters
from flatsearch.space import SearchSpace, build_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution

__all__ = ["count_architectures", "describe_space"]

_SAMPLES = 100
_MOST_COUNTED = 50_000


def describe_space(space: SearchSpace, samples: int = _SAMPLES) -> dict[str, Any]:
    """Sample a space and describe its parameters and the sizes of its networks.

    Args:
        space: The search space.
        samples: Random architectures to draw.

    Returns:
        "parameters" (text by name), "architectures" (their number, None if there are more than
        can be counted), "samples", "example" (one of them), and "smallest" and "largest" network of
        the sample with their "parameters", "flops" and "architecture", for 3x32x32 images and
        10 classes.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    parameters: dict[str, str] = {}
    drawn = set()
    for _ in range(samples):
        trial = study.ask()
        drawn.add(space.suggest(trial))
        for name, distribution in trial.distributions.items():
            parameters[name] = _text(distribution)
    sized = []
    for architecture in drawn:
        model = build_model(space, architecture, in_channels=3, num_classes=10, image_size=32)
        sized.append((count_parameters(model), architecture.to_json(), architecture, model))
    low, high = (
        {
            "parameters": count,
            "flops": count_flops(model, 3, 32),
            "architecture": dict(architecture.values),
        }
        for count, _, architecture, model in (min(sized, key=_size), max(sized, key=_size))
    )
    return {
        "parameters": dict(sorted(parameters.items())),
        "architectures": count_architectures(space),
        "samples": samples,
        "example": dict(min(drawn, key=lambda architecture: architecture.key).values),
        "smallest": low,
        "largest": high,
    }


class _PathTrial(optuna.trial.FixedTrial):
    """A trial that takes a given choice of each parameter in turn, then the first of the others.

    Attributes:
        path: The number of the choice of every parameter that was asked for.
        counts: How many choices each of them has; None for a continuous one.
    """

    def __init__(self, path: Sequence[int]) -> None:
        super().__init__({})
        self._wanted = list(path)
        self.path: list[int] = []
        self.counts: list[int | None] = []
        self._given: dict[str, Any] = {}

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._given:
            return self._given[name]
        taken = len(self.path)
        choice = self._wanted[taken] if taken < len(self._wanted) else 0
        self.path.append(choice)
        if isinstance(distribution, CategoricalDistribution):
            self.counts.append(len(distribution.choices))
            value: Any = distribution.choices[choice]
        elif isinstance(distribution, (IntDistribution, FloatDistribution)):
            value = self._on_grid(distribution, choice)
        else:
            raise TypeError(f"unknown distribution {distribution!r}")
        self._given[name] = value
        return value

    def _on_grid(self, distribution: IntDistribution | FloatDistribution, choice: int) -> Any:
        low, high, step = distribution.low, distribution.high, distribution.step
        if step is None:
            self.counts.append(1 if low == high else None)
            return low
        self.counts.append(round((high - low) / step) + 1)
        return low + choice * step


def count_architectures(space: SearchSpace, most: int = _MOST_COUNTED) -> int | None:
    """Count a space's different architectures by trying every parameter setting.

    Args:
        space: The search space.
        most: Parameter settings to try.

    Returns:
        The number; None if there are more settings, or infinitely many.

    Example:
        >>> from flatsearch.registry import load_space
        >>> count_architectures(load_space("nasbench201"))
        15625
    """
    found = set()
    path: list[int] = []
    for _ in range(most):
        trial = _PathTrial(path)
        found.add(space.suggest(trial))
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


def _size(entry: tuple[int, str, object, object]) -> tuple[int, str]:
    return entry[:2]


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
