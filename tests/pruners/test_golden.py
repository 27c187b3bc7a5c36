"""The calibrated rule decides as it did when its decisions were written down.

`python -m tests.pruners.test_golden` writes them anew, for a change of the rule that is meant.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import flatsearch
from flatsearch import FlatnessPruner, record

DECISIONS = Path(__file__).with_name("golden.json")
STEPS = 4


@dataclass(frozen=True)
class Case:
    """A synthetic study.

    Attributes:
        names: The objectives.
        options: Arguments of the pruner.
        trap: The trial from which on the best end worst; None for never.
        soft: Whether pruned trials are told as complete.
    """

    names: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    trap: int | None = None
    soft: bool = False


CASES = {
    "accuracy": Case(("accuracy",), {"n_startup_trials": 8, "audit": 0.3}),
    "accuracy and flatness": Case(("accuracy", "flatness"), {"limit": 0.8, "audit": 0.3}),
    "soft": Case(("accuracy", "latency"), {"limit": 0.8}, soft=True),
    "trap": Case(("accuracy",), {"n_startup_trials": 20, "audit": 0.6}, trap=25),
    "two objectives, trap": Case(("accuracy", "flatness"), {"limit": 0.9, "audit": 0.6}, trap=25),
    "every other step": Case(("loss",), {"n_warmup_steps": 1, "interval_steps": 2, "limit": 0.9}),
}


def decisions(case: Case, n_trials: int = 70) -> list[list[list[Any]]]:
    """Return [step, outcome, probability, limit, trials] of every decision of a study.

    Signals are missing or NaN now and then; some trials fail, some are infeasible.
    """
    generator = np.random.default_rng(3)
    ways = ["maximize" if name == "accuracy" else "minimize" for name in case.names]
    study = optuna.create_study(
        directions=ways, pruner=FlatnessPruner(**case.options), study_name="golden"
    )
    study.set_metric_names(list(case.names))
    for number in range(n_trials):
        quality, size, noise = generator.uniform(size=3)
        jitter = 0.1 * generator.normal(size=(STEPS, 4))
        lost, fails = generator.uniform(size=(STEPS, 2)) < 0.1, generator.uniform() < 0.05
        trial = study.ask()
        sizes = {"parameters": int(1000 * size), "flops": int(9000 * size)}
        record.write_trial(trial, metrics=sizes)
        pruned = False
        for step in range(STEPS):
            inverted = case.trap is not None and number >= case.trap and step == STEPS - 1
            shown = 3 - 2 * quality if inverted else quality
            final = {
                "accuracy": shown * (step + 1) / STEPS + jitter[step, 0],
                "loss": 2 - shown + jitter[step, 1],
                "flatness": (0.2 + size) * math.exp(jitter[step, 2]),
                "latency": size + noise,
            }
            metrics = {**final, "train_loss": 2 - shown + jitter[step, 3]}
            if lost[step, 0]:
                metrics["loss"] = math.nan
            if lost[step, 1] or step % 2:
                del metrics["flatness"]
            flatsearch.report(trial, step, **metrics)
            if flatsearch.should_prune(trial):
                pruned = True
                break
        if "latency" in case.names:
            record.write_constraints(trial, {"accuracy": 0.2 - final["accuracy"]})
        if case.soft:
            flatsearch.mark_pruned(trial, pruned=pruned)
        values = [final[name] for name in case.names]
        state = TrialState.FAIL if fails else TrialState.COMPLETE
        state = TrialState.PRUNED if pruned and not case.soft else state
        study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)
    return [
        [
            [d.step, d.outcome, d.probability, d.limit, d.n_trials]
            for d in record.TrialRecord(trial).decisions
        ]
        for trial in study.trials
    ]


@pytest.mark.parametrize("name", CASES)
def test_decisions_are_what_they_were(name: str) -> None:
    expected = json.loads(DECISIONS.read_text())[name]
    found = decisions(CASES[name])
    assert len(found) == len(expected)
    for number, (trial, golden) in enumerate(zip(found, expected, strict=True)):
        assert [d[:2] for d in trial] == [d[:2] for d in golden], number
        numbers = [d[2:] for d in trial]
        for ours, theirs in zip(numbers, [d[2:] for d in golden], strict=True):
            theirs = [math.nan if value is None else value for value in theirs]
            assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9, nan_ok=True), number


def test_every_outcome_is_among_them() -> None:
    found = {
        decision[1]
        for trials in json.loads(DECISIONS.read_text()).values()
        for trial in trials
        for decision in trial
    }
    assert found == {"start-up", "kept", "pruned", "audited", "under audit", "suspended"}


def main() -> None:
    """Write the decisions."""

    def short(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return None if math.isnan(value) else float(f"{value:.8g}")

    lines = [
        f"{json.dumps(name)}: [\n"
        + ",\n".join(
            json.dumps([[short(value) for value in d] for d in trial], separators=(",", ":"))
            for trial in decisions(case)
        )
        + "\n]"
        for name, case in CASES.items()
    ]
    DECISIONS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    main()
