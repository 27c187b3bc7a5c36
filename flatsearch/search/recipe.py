"""The training recipe as a part of the search: what `tune_recipe` adds to every trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flatsearch.errors import SettingsError, SpaceError
from flatsearch.spaces.space import blaming

if TYPE_CHECKING:
    import optuna

    from flatsearch.settings import RunSettings
    from flatsearch.spaces.space import SearchSpace

__all__ = ["RECIPE", "suggest_recipe"]

# The settings a recipe may set.
RECIPE = ("lr", "weight_decay", "batch_size", "augment", "momentum")


def _default_recipe(trial: optuna.trial.BaseTrial, *, may_flip: bool) -> dict[str, Any]:
    augmentations = ["none", "crop", "crop+flip"] if may_flip else ["none", "crop"]
    return {
        "lr": trial.suggest_float("recipe_lr", 0.01, 0.5, log=True),
        "weight_decay": trial.suggest_float("recipe_weight_decay", 1e-5, 1e-2, log=True),
        "batch_size": trial.suggest_categorical("recipe_batch_size", [32, 64, 128, 256]),
        "augment": trial.suggest_categorical("recipe_augment", augmentations),
    }


def suggest_recipe(
    space: SearchSpace,
    trial: optuna.trial.BaseTrial,
    settings: RunSettings,
    *,
    may_flip: bool,
) -> tuple[RunSettings, dict[str, Any]]:
    """Ask a trial for a training recipe.

    Learning rate 0.01 to 0.5 and weight decay 1e-5 to 1e-2, both on a logarithmic scale, batch
    size 32 to 256, and augmentation. A search space that knows better has a method
    `suggest_recipe(trial)` of its own, which returns settings by name: any of lr, weight_decay,
    batch_size, augment and momentum.

    Args:
        space: The search space.
        trial: An Optuna trial.
        settings: What the recipe does not set.
        may_flip: Whether a mirrored image still is of its class.

    Returns:
        The settings with the recipe's values, and the recipe: what was set, by name.

    Raises:
        SpaceError: If the space's own recipe fails or sets something else; names the class and
            the method.

    Example:
        >>> import optuna
        >>> from flatsearch import RunSettings, load_space
        >>> trial = optuna.trial.FixedTrial({
        ...     "recipe_lr": 0.2, "recipe_weight_decay": 1e-4, "recipe_batch_size": 32,
        ...     "recipe_augment": "crop",
        ... })
        >>> space = load_space("resnet_small")
        >>> settings, recipe = suggest_recipe(space, trial, RunSettings(), may_flip=False)
        >>> settings.lr, sorted(recipe)
        (0.2, ['augment', 'batch_size', 'lr', 'weight_decay'])
    """
    own = getattr(space, "suggest_recipe", None)
    if own is None:
        with blaming(f"{type(space).__name__}.suggest and the training recipe"):
            default = _default_recipe(trial, may_flip=may_flip)
        return dataclasses.replace(settings, **default), default
    where = f"{type(space).__name__}.suggest_recipe"
    with blaming(where):
        returned = own(trial)
    if not isinstance(returned, Mapping):
        raise SpaceError(f"{where} must return settings by name but returned {returned!r}")
    # 1 and 1.0 are the same recipe.
    recipe: dict[Any, Any] = {
        name: float(value) if type(value) is int and name != "batch_size" else value
        for name, value in returned.items()
    }
    if unknown := [name for name in recipe if name not in RECIPE]:
        raise SpaceError(
            f"{where} must return settings of {', '.join(RECIPE)} but returned"
            f" {', '.join(map(repr, unknown))}"
        )
    try:
        return dataclasses.replace(settings, **recipe), recipe
    except SettingsError as error:
        raise SpaceError(f"{where}: {error}") from error
