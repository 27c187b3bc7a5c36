"""Studies made by hand, for what reads them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import TrialState

from flatsearch import Architecture, mark_pruned, record
from flatsearch.analysis.paired import Estimate
from flatsearch.retrain.result import FinalTraining, SeedResult, Validated
from flatsearch.training.evaluation import Scores

if TYPE_CHECKING:
    from collections.abc import Sequence


def study_of(*names: str) -> optuna.Study:
    directions = ["maximize" if name == "accuracy" else "minimize" for name in names]
    study = optuna.create_study(directions=directions, study_name="made")
    study.set_metric_names(list(names))
    return study


def add(
    study: optuna.Study,
    curve: Sequence[tuple[float, float]],
    *,
    state: TrialState = TrialState.COMPLETE,
    gap: float = 0.0,
    soft: bool = False,
    diverged: bool = False,
    constraint: float | None = None,
    words: str = "3",
) -> None:
    """Add a trial with (accuracy, flatness) by epoch."""
    trial = study.ask()
    record.write_trial(trial, architecture=Architecture("toy", {"kernel": words}))
    for step, (accuracy, flatness) in enumerate(curve):
        record.write_step(trial, step, {"accuracy": accuracy, "flatness": flatness})
    last = dict(zip(("accuracy", "flatness"), curve[-1], strict=True))
    record.write_trial(trial, metrics={**last, "train_accuracy": curve[-1][0] + gap})
    if diverged:
        record.write_trial(trial, failure="training diverged", diverged=True)
    if soft:
        mark_pruned(trial, pruned=True)
    if constraint is not None:
        record.write_constraints(trial, {"c": constraint})
    values = [last[name] for name in study.metric_names or ()]
    if state == TrialState.COMPLETE:
        study.tell(trial, values)
    else:
        study.tell(trial, state=state)


def small_study() -> optuna.Study:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 4.0), (0.9, 40.0)])  # 0: front
    add(study, [(0.4, 2.0), (0.6, 1.0)])  # 1: front
    add(study, [(0.3, 9.0), (0.5, 50.0)])  # 2: dominated
    add(study, [(0.2, 3.0)], state=TrialState.PRUNED)  # 3
    add(study, [(0.25, 0.5)], soft=True)  # 4
    add(study, [(0.95, 0.1), (0.95, 0.2)], constraint=1.0)  # 5
    return study


@functools.cache
def large_study(n: int, epochs: int = 8) -> optuna.Study:
    """Return a study of random curves, half of them pruned, as a search would leave it, to read."""
    rng = np.random.default_rng(0)
    study = study_of("accuracy", "flatness")
    trials = []
    for i in range(n):
        good, flat = rng.random(), float(np.exp(rng.normal()))
        steps = epochs if rng.random() < 0.5 else 3
        text = Architecture("toy", {"width": int(rng.integers(8, 64)), "kernel": 3}).to_json()
        attributes: dict[str, Any] = {"architecture": text}
        metrics: dict[str, float] = {}
        for step in range(steps):
            reached = good * (1 - 0.5 ** (step + 1))
            metrics = {
                "accuracy": reached, "flatness": flat * (step + 1), "hessian_trace": flat,
                "flatness_all": flat * 3, "train_loss": 1 - reached, "train_accuracy": good,
                "loss": 1.0,
            }  # fmt: skip
            attributes[f"flatsearch:step:{step}"] = metrics
        attributes |= {**metrics, "parameters": 1000 + i}
        attributes["flatsearch:layers"] = {f"features.{k}.conv": flat * k for k in range(20)}
        whole = steps == epochs
        trials.append(
            optuna.create_trial(
                state=TrialState.COMPLETE if whole else TrialState.PRUNED,
                values=[metrics["accuracy"], metrics["flatness"]] if whole else None,
                user_attrs=attributes,
            )
        )
    study.add_trials(trials)
    return study


def final_training(classes: int) -> FinalTraining:
    """A final training of two trials' networks."""
    confusion = tuple(
        tuple(100 * (i == j) + (i < j) for j in range(classes)) for i in range(classes)
    )
    scores = Scores(0.9512, 0.1234, 0.0456, confusion, 100 * classes, ((0.9, 0.95, 100 * classes),))
    loss, accuracy = Estimate(0.1111, 0.02, 0.07, 0.15), Estimate(0.95, 0.01, 0.93, 0.97)
    seeds = tuple(
        SeedResult(
            trial, 0, f"models/trial-{trial}-seed-0.pt", scores, 123.4, 56.7, 0.0123, 0.00456, 0.3,
            Validated(loss, accuracy, loss if trial else None),
        )
        for trial in (0, 1)
    )  # fmt: skip
    names = tuple(f"{i}-class-number" for i in range(classes))
    return FinalTraining(0, "", "the loss", 40, 0.95, 0.9, 0.99, None, seeds, names, ())
