"""The schema of what a study stores: the only writer and reader of its attributes.

A trial holds one attribute per reported step, ``flatsearch:step:N``, with that step's metrics,
and flat attributes for the architecture, its recipe, size and final metrics, which
optuna-dashboard can plot. Nothing is stored as Optuna intermediate values except a
single-objective study's own objective: a pruned trial's last intermediate value becomes its
value, and Optuna's samplers rank pruned trials by it, so any other metric there would steer
the search; in a multi-objective study they would make the default sampler fail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from flatsearch.errors import SpaceError, UsageError
from flatsearch.record.constraints import PRUNED_SOFTLY, is_feasible, is_mirrored, is_over_limit
from flatsearch.record.decisions import Decision, read_decisions
from flatsearch.record.numbers import is_number, to_json
from flatsearch.spaces.space import Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna

__all__ = [
    "FINISHED",
    "TrialRecord",
    "is_finished",
    "is_late",
    "is_reuse",
    "network_of",
    "read_step",
    "read_steps",
    "read_trial",
    "worker_of",
    "write_architecture",
    "write_artifact",
    "write_failure",
    "write_final",
    "write_late",
    "write_layers",
    "write_network",
    "write_recipe",
    "write_repeat",
    "write_retry",
    "write_reuse",
    "write_step",
    "write_worker",
]

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_STEP = "flatsearch:step:"
_ARCHITECTURE = "architecture"
_ARTIFACT = "flatsearch:model"
_FAILURE = "failure"
_NETWORK = "flatsearch:network"
_RECIPE = "recipe"
_WORKER = "flatsearch:worker"
_RETRY = "flatsearch:retried"
_LATE = "flatsearch:late"
_TRACEBACK = "flatsearch:traceback"
# Some databases keep 64 kilobytes of a text.
_LONGEST_TRACE = 20_000
_SAME_AS = "flatsearch:same_as"
_LAYERS = "flatsearch:layers"
_REPEATS = "flatsearch:repeats"


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the record holds it.

    Attributes:
        number: Optuna's trial number.
        state: "COMPLETE", "PRUNED", "FAIL", "RUNNING" or "WAITING".
        values: The objective values; None unless complete.
        params: Optuna's parameters.
        architecture: None if the trial ended before one was suggested.
        metrics: Final metrics and sizes by name.
        steps: The metrics of every reported step, by step (0 is the first epoch).
        failure: Why the trial did not complete, where it did not.
        artifact: Identifier of the saved model in the artifact store, if any.
        seconds: From start to end; None while running.
        recipe: Training settings that were suggested with the architecture; empty for none.
        same_as: Number of the earlier trial whose result this one took over, if any.
        repeats: Number of the earlier trial whose network this one trained again, if any.
        feasible: Whether it keeps every constraint; one that does not is never on the front.
        ended_early: Whether it was pruned softly: told as complete, with a violated constraint.
        over_limit: Whether it costs more than the study allows, and was not trained.
        decisions: What a pruner that records its decisions decided, by step.
        layers: Relative flatness of every convolution by name, in order of execution, where it was
            measured last.
        halved: Whether it was trained with every batch in two halves, for want of memory.
    """

    number: int
    state: str
    values: tuple[float, ...] | None
    params: Mapping[str, Any]
    architecture: Architecture | None
    metrics: Mapping[str, float]
    steps: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    failure: str | None = None
    artifact: str | None = None
    seconds: float | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    same_as: int | None = None
    repeats: int | None = None
    feasible: bool = True
    ended_early: bool = False
    over_limit: bool = False
    decisions: tuple[Decision, ...] = ()
    layers: Mapping[str, float] = field(default_factory=dict)
    halved: bool = False


def write_step(trial: optuna.Trial, step: int, metrics: Mapping[str, float]) -> None:
    """Store one step's metrics.

    Args:
        trial: The running trial.
        step: 0 for the first.
        metrics: Numbers by name.

    Raises:
        ValueError: If the step is negative or there are no metrics.
        TypeError: If a metric is not a number.
    """
    if step < 0:
        raise ValueError(f"`step` must be at least 0 but got {step}")
    if not metrics:
        raise ValueError("report at least one metric, for example accuracy=0.9")
    try:
        values = {name: to_json(value) for name, value in metrics.items()}
    except (TypeError, ValueError):
        raise TypeError(f"metrics must be numbers but got {dict(metrics)}") from None
    key = f"{_STEP}{step}"
    # Metrics may come one after the other; of one that comes twice the last value counts.
    trial.set_user_attr(key, {**trial.user_attrs.get(key, {}), **values})


def read_step(attributes: Mapping[str, Any], step: int) -> dict[str, float] | None:
    """Return one step's metrics from a trial's user attributes, or None if not reported."""
    values = attributes.get(f"{_STEP}{step}")
    return None if values is None else {name: float(value) for name, value in values.items()}


def read_steps(attributes: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Return every reported step's metrics in ascending order of step."""
    steps = sorted(int(key[len(_STEP) :]) for key in attributes if key.startswith(_STEP))
    return {step: read_step(attributes, step) or {} for step in steps}


def write_layers(trial: optuna.Trial, flatness: Mapping[str, float]) -> None:
    """Store the flatness of every convolution by name; of several times the last one counts."""
    trial.set_user_attr(_LAYERS, {name: to_json(float(f"{v:.6g}")) for name, v in flatness.items()})


def write_architecture(trial: optuna.Trial, architecture: Architecture) -> None:
    """Store the architecture before anything can go wrong with it."""
    trial.set_user_attr(_ARCHITECTURE, architecture.to_json())


def write_recipe(trial: optuna.Trial, recipe: Mapping[str, Any]) -> None:
    """Store the training settings that were suggested with the architecture."""
    trial.set_user_attr(_RECIPE, dict(recipe))


def write_worker(trial: optuna.Trial, worker: str) -> None:
    """Store which process runs a trial."""
    trial.set_user_attr(_WORKER, worker)


def worker_of(trial: optuna.trial.FrozenTrial) -> str | None:
    """Return what `write_worker` stored, or None."""
    return trial.user_attrs.get(_WORKER)


def write_network(trial: optuna.Trial, key: str) -> None:
    """Store what tells this candidate from others: equal for equal networks and recipes."""
    trial.set_user_attr(_NETWORK, key)


def network_of(trial: optuna.trial.FrozenTrial) -> str | None:
    """Return what `write_network` stored, or None."""
    return trial.user_attrs.get(_NETWORK)


def write_reuse(trial: optuna.Trial, earlier: optuna.trial.FrozenTrial) -> None:
    """Take over an earlier trial's result and say so; steps are not copied.

    Pruners compare steps between trials, where the same curve must not count twice. But an
    intermediate value is what a sampler ranks a pruned trial by; the last one is reported.
    """
    trial.set_user_attr(_SAME_AS, earlier.number)
    found = read_trial(earlier)
    write_final(trial, found.metrics)
    if found.artifact is not None:
        write_artifact(trial, found.artifact)
    for name, value in earlier.constraints.items():
        if not is_mirrored(name):
            trial.set_constraint(name, value)
    step = earlier.last_step
    if step is not None and earlier.state == TrialState.PRUNED:
        trial.report(earlier.intermediate_values[step], step)


def write_retry(trial: optuna.Trial, reason: str) -> None:
    """Store why a trial was trained once more, with half the batch at a time."""
    trial.set_user_attr(_RETRY, " ".join(reason.split())[:500])


def write_repeat(trial: optuna.Trial, earlier: int) -> None:
    """Store that an earlier trial's network is being trained again."""
    trial.set_user_attr(_REPEATS, earlier)


def write_final(trial: optuna.Trial, metrics: Mapping[str, float | int]) -> None:
    """Store final metrics and sizes as flat numbers."""
    for name, value in metrics.items():
        trial.set_user_attr(name, value if isinstance(value, int) else to_json(value))


def write_failure(trial: optuna.Trial, reason: str, trace: str | None = None) -> None:
    """Store in one line why a trial does not complete, and the traceback if there is one."""
    trial.set_user_attr(_FAILURE, reason)
    if trace is not None:
        trial.set_user_attr(_TRACEBACK, trace[-_LONGEST_TRACE:])


def write_late(trial: optuna.Trial, reason: str) -> None:
    """Store that a trial fails for want of time or budget, which is no fault of the candidate."""
    write_failure(trial, reason)
    trial.set_user_attr(_LATE, True)


def is_late(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether `write_late` has been called on a trial."""
    return bool(trial.user_attrs.get(_LATE))


def is_reuse(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial took over an earlier one's result."""
    return _SAME_AS in trial.user_attrs


def is_finished(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial counts towards the budget: it was trained, to the end or not."""
    return trial.state in FINISHED and not is_over_limit(trial) and not is_reuse(trial)


def write_artifact(trial: optuna.Trial, identifier: str) -> None:
    """Store the saved model's identifier in the artifact store."""
    trial.set_user_attr(_ARTIFACT, identifier)


def read_trial(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    """Return what the record holds on a trial, ours or not.

    Raises:
        UsageError: If it was written by another version, in a way that cannot be read.
    """
    attributes = trial.user_attrs
    stored = attributes.get(_ARCHITECTURE)
    metrics = {
        name: float(value)
        for name, value in attributes.items()
        if ":" not in name and (is_number(value) or value in ("nan", "inf", "-inf"))
    }
    values = trial.values if trial.state == TrialState.COMPLETE else None
    return TrialRecord(
        number=trial.number,
        state=trial.state.name,
        values=tuple(values) if values is not None else None,
        params=trial.params,
        architecture=_read_architecture(stored, trial.number),
        metrics=metrics,
        steps=read_steps(attributes),
        failure=attributes.get(_FAILURE),
        artifact=attributes.get(_ARTIFACT),
        seconds=trial.duration.total_seconds() if trial.duration else None,
        recipe=attributes.get(_RECIPE) or {},
        same_as=attributes.get(_SAME_AS),
        repeats=attributes.get(_REPEATS),
        feasible=is_feasible(trial),
        over_limit=is_over_limit(trial),
        ended_early=trial.constraints.get(PRUNED_SOFTLY, 0.0) > 0,
        decisions=tuple(read_decisions(trial)),
        layers={k: float(v) for k, v in (attributes.get(_LAYERS) or {}).items()},
        halved=_RETRY in attributes,
    )


def _read_architecture(stored: object, number: int) -> Architecture | None:
    # An attribute of that name may be somebody's own; ours is JSON.
    if not isinstance(stored, str) or not stored.startswith("{"):
        return None
    try:
        return Architecture.from_json(stored)
    except SpaceError as error:
        raise UsageError(
            f"the record of trial {number} is damaged, or of another version of flatsearch: {error}"
        ) from None
