"""What a search space offers, found by asking it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from flatsearch.models import count_flops, count_parameters
from flatsearch.space import SearchSpace, build_model

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["describe_space"]

_SAMPLES = 100


def describe_space(space: SearchSpace, samples: int = _SAMPLES) -> dict[str, Any]:
    """Sample a space and describe its parameters and the sizes of its networks.

    Args:
        space: The search space.
        samples: Random architectures to draw.

    Returns:
        "parameters" (text by name), "samples", and "smallest" and "largest" network of the
        sample with their "parameters", "flops" and "architecture", for 3x32x32 images and 10
        classes.
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
        "samples": samples,
        "smallest": low,
        "largest": high,
    }


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
