"""Run Optuna's own pruner tests with its pruners behind `MetricPruner`.

    python scripts/optuna_pruner_tests.py PATH

PATH is a checkout of Optuna's repository, or a folder with its `tests/pruners_tests`. In the tests
every pruner that reads reported values is replaced by a `MetricPruner` that asks the original; its
metric is what was reported to Optuna. Options after PATH go to pytest.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import optuna
import pytest

import flatsearch
from flatsearch.pruners.metric_view import MetricView

NAMES = (
    "MedianPruner",
    "PercentilePruner",
    "PatientPruner",
    "ThresholdPruner",
    "WilcoxonPruner",
    "SuccessiveHalvingPruner",
    "HyperbandPruner",
)


def behind(original: type[optuna.pruners.BasePruner]) -> type:
    """Return a stand-in that takes the original's arguments."""

    class StandIn(flatsearch.MetricPruner):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__("reported", original(*arguments, **options))

        def _view(self, study: optuna.Study) -> MetricView:
            def curve(trial: optuna.trial.FrozenTrial) -> dict[int, float]:
                return dict(sorted(trial.intermediate_values.items()))

            return MetricView(study, study.direction.name, curve, objective=0)

        def __getattr__(self, name: str) -> object:
            # What the tests look at inside the original.
            if name.startswith("__") or "_pruner" not in self.__dict__:
                raise AttributeError(name)
            return getattr(self.__dict__["_pruner"], name)

    StandIn.__name__ = original.__name__
    StandIn.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return StandIn


def main() -> int:
    """Run the tests."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    folder = next(
        (
            p
            for p in (Path(sys.argv[1]), Path(sys.argv[1]) / "tests" / "pruners_tests")
            if (p / "test_median.py").exists()
        ),
        None,
    )
    if folder is None:
        print(f"no tests/pruners_tests in {sys.argv[1]}")
        return 2
    for name in NAMES:
        setattr(optuna.pruners, name, behind(getattr(optuna.pruners, name)))
    return int(pytest.main(["-q", "-p", "no:cacheprovider", str(folder), *sys.argv[2:]]))


if __name__ == "__main__":
    sys.exit(main())
