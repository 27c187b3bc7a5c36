"""Workers that are killed and storages that go away: nothing is lost, nothing done twice."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import faults

    yield faults
    for name in ("faults", "parked_faults"):
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR")
@pytest.mark.parametrize(
    ("kind", "trials"),
    [
        ("postgres", 60),
        ("sqlite", 10),
        ("journal", 10),
        ("grpc", 10),
    ],
)
def test_nothing_is_lost_and_nothing_done_twice(faults: ModuleType, kind: str, trials: int) -> None:
    plan = faults.Plan(trials=trials, seconds=0.1, kill_every=trials // 5, paused=1.0)
    # Not pytest's folder, which it closes to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory() as folder:
        found = faults.Round(kind, plan, Path(folder)).run()
    assert found["faults"] == {}
    assert found["finished"] == trials
    assert found["killed"] > 0
    assert found["restarts"] == (2 if kind in {"postgres", "grpc"} else 0)


def test_a_killed_worker_costs_an_epoch_where_trials_are_parked(faults: ModuleType) -> None:
    import parked_faults

    plan = faults.Plan(trials=8, seconds=0.3, kill_every=2)
    with tempfile.TemporaryDirectory() as folder:
        found = parked_faults.ParkedRound("sqlite", plan, Path(folder)).run()
    assert found["faults"] == {}
    assert (found["networks"], found["promoted"] >= 2, found["killed"] > 0) == (8, True, True)
