"""Which of several networks are the best so far, by what they have recorded after an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flatsearch.errors import SettingsError, unknown_name
from flatsearch.signals.curve import with_tse
from flatsearch.signals.table import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.record import LeastAccuracy
    from flatsearch.record.networks import Network

__all__ = ["Judge", "check_signals"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def check_signals(names: Sequence[str]) -> None:
    """Refuse signals that nobody knows, and those of which it is not known which way is good.

    Args:
        names: From `flatsearch.signals.table.SIGNALS`, or of any recorded metric; "-" in front says
            that smaller is better, "+" that larger is.

    Raises:
        SettingsError: If there are none, or one is unknown or has no good direction.
    """
    if isinstance(names, str) or not names:
        raise SettingsError(f"`signals` must be names of signals but got {names!r}")
    for name in names:
        if name[:1] in {"+", "-"}:
            continue
        if name not in SIGNALS:
            raise SettingsError(
                f"{unknown_name('signal', name, tuple(SIGNALS))}; '-{name}' is any metric of which"
                " smaller values are better"
            )
        if SIGNALS[name].sign == 0:
            raise SettingsError(
                f"signal {name!r} has no good direction of its own; give '-{name}' if smaller"
                f" values are better, or '+{name}'"
            )


@dataclass(frozen=True)
class Judge:
    """Ranks networks among each other after an epoch.

    With one objective, by the sum of the ranks in several signals: no unit matters, and a signal
    that misleads (the training loss does where networks overfit) does not decide alone. With
    several, by the number of networks that dominate one, where the accuracy is judged by that sum
    and every other objective by its value after the epoch; then by the sum of the ranks in all.
    Those that know too little for the front beside the best of the epoch come after the others,
    and are ranked by the accuracy's sum alone: what is flat or small for knowing nothing is nothing
    to go on with.

    In turns, by the accuracy's sum, but every third place is for the best of the better half in
    another objective. Who knows too little is not asked then: after an epoch or three accuracies
    are so noisy that hardly anybody knows enough, and not the best.

    Attributes:
        signals: See `check_signals`.
        objectives: The names of the study's objectives; empty where they have none.
        signs: 1 for an objective that is maximised, -1 for one that is minimised.
        least: What the study says that a network of its front must have learnt.
        later: The signals after more than one epoch; where empty, those after the first.
        in_turns: Whether with several objectives places are given in turns.
    """

    signals: tuple[str, ...]
    objectives: tuple[str, ...] = ()
    signs: tuple[float, ...] = (1.0,)
    least: LeastAccuracy | None = None
    later: tuple[str, ...] = ()
    in_turns: bool = False

    def order(self, networks: Sequence[Network], epoch: int) -> list[Network]:
        """Return networks that have been trained for an epoch at least, the best first.

        Args:
            networks: The networks; those that have not come to the epoch are left out.
            epoch: The number of epochs after which they are compared.

        Returns:
            The networks. Those that break a constraint are last; of equal ones the older is first.
        """
        there = [network for network in networks if epoch - 1 in network.steps]
        if not there:
            return []
        losses = self._losses(there, epoch - 1)
        ranks = np.sum([_ranks(column) for column in losses.T], axis=0)
        if self.in_turns and len(self.signs) > 1:
            behind = np.zeros(len(there), bool)
            first = _in_turns(losses, self._of_accuracy())
        else:
            lower = (losses[:, None] < losses[None]).any(axis=2)
            dominated = (lower & ~lower.T).sum(axis=0)
            behind = self._behind(there, epoch - 1)
            first = np.where(behind, losses[:, self._of_accuracy()], dominated)
        keys = [
            (not network.feasible, bool(behind[i]), first[i], ranks[i], network.number)
            for i, network in enumerate(there)
        ]
        return [there[i] for i in sorted(range(len(there)), key=keys.__getitem__)]

    def _losses(self, networks: Sequence[Network], step: int) -> _Array:
        """Return what networks are compared by, smaller is better, (networks, objectives)."""
        judged = self._rank_sum(networks, step)
        columns = []
        for name, sign in zip(self.objectives or ("",) * len(self.signs), self.signs, strict=True):
            own = np.array([
                -sign * network.steps[step].get(name, math.nan) for network in networks
            ])
            by_signals = name in {"", "accuracy"} or np.isnan(own).all()
            columns.append(judged if by_signals and judged is not None else own)
        return np.nan_to_num(np.stack(columns, axis=1), nan=np.inf)

    def _of_accuracy(self) -> int:
        of_accuracy = (i for i, name in enumerate(self.objectives) if name.endswith("accuracy"))
        return next(of_accuracy, 0)

    def _behind(
        self, networks: Sequence[Network], step: int
    ) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which networks know too little for the front, as far as is known."""
        metric = "accuracy" if self.least is None else self.least.metric
        known = np.array([network.steps[step].get(metric, math.nan) for network in networks])
        if self.least is None or len(self.signs) == 1 or np.isnan(known).all():
            return np.zeros(len(networks), bool)
        return known < self.least.beside(float(np.nanmax(known)))

    def _rank_sum(self, networks: Sequence[Network], step: int) -> _Array | None:
        """Return the sums of ranks in the signals, 1 for the best; None if none is recorded."""
        total, found = np.zeros(len(networks)), False
        for signal in (self.later if step > 0 else ()) or self.signals:
            name = signal.lstrip("+-")
            sign = {"+": 1, "-": -1}.get(signal[0]) or SIGNALS[name].sign
            values = np.array([-sign * _value(network, name, step) for network in networks])
            if not np.isnan(values).all():
                found = True
                total += _ranks(np.nan_to_num(values, nan=np.inf))
        return total if found else None


def _in_turns(losses: _Array, main: int) -> _Array:
    """Return places, the first in one objective but for every third, which is another one's.

    Args:
        losses: (networks, objectives), smaller is better.
        main: The objective that two of three places are for, and whose better half the others are.
    """
    ahead = (losses[:, main] < losses[:, main, None]).sum(axis=1)
    half = 2 * ahead < len(losses)
    places = ahead + ahead // 2.0  # 0, 1, 3, 4, 6, ...
    others = [i for i in range(losses.shape[1]) if i != main]
    for turn, column in enumerate(losses[:, others].T):
        better = (half & (column < column[:, None])).sum(axis=1)
        # Before the third in the main objective, the fifth, ...
        places = np.minimum(places, 3.0 * (len(others) * better + turn) + 2)
    return np.where(half, places, 3.0 * len(losses) + ahead)


def _ranks(values: _Array) -> _Array:
    """Return ranks from 1; equal values have the mean of theirs."""
    # Not `scipy.stats`, which takes a second to load.
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[place]


def _value(network: Network, name: str, step: int) -> float:
    if name in SIGNALS and SIGNALS[name].first == "untrained":
        return network.fixed.get(name, math.nan)
    steps = with_tse(network.steps) if name == "tse" else network.steps
    return steps[step].get(name, math.nan)
