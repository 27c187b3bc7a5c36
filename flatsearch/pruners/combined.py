"""Several pruners as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.pruners import BasePruner

from flatsearch.pruners.arguments import check_pruner

if TYPE_CHECKING:
    import optuna

__all__ = ["AnyPruner"]


class AnyPruner(BasePruner):
    """Prune if any of several pruners does, for example one per metric.

    All of them are asked every time: a pruner that keeps a record of its own misses nothing.

    Args:
        *pruners: The pruners.

    Raises:
        ValueError: If no pruner is given.
        TypeError: If one is not a pruner.

    Example:
        >>> from optuna.pruners import MedianPruner
        >>> from flatsearch import FlatnessPruner, MetricPruner
        >>> pruner = AnyPruner(
        ...     FlatnessPruner(),
        ...     MetricPruner("loss", MedianPruner(), direction="minimize"),
        ... )
    """

    def __init__(self, *pruners: BasePruner) -> None:
        if not pruners:
            raise ValueError("give at least one pruner")
        for pruner in pruners:
            check_pruner(pruner)
        self._pruners = pruners

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Ask every pruner.

        Args:
            study: The study.
            trial: The running trial.

        Returns:
            True if any of them prunes.
        """
        decisions = [pruner.prune(study, trial) for pruner in self._pruners]
        return any(decisions)
