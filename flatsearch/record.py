"""The schema of what a study stores: the only writer and reader of its attributes.

A trial holds one attribute per reported step, ``flatsearch:step:N``, with that step's metrics,
and flat attributes for the architecture, its recipe, size and final metrics, which
optuna-dashboard can plot. Nothing is stored as Optuna intermediate values except a
single-objective study's own objective: a pruned trial's last intermediate value becomes its
value, and Optuna's samplers rank pruned trials by it, so any other metric there would steer
the search; in a multi-objective study they would make the default sampler fail.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from optuna.samplers import GPSampler
from optuna.trial import TrialState

from flatsearch.errors import SpaceError, UsageError
from flatsearch.space import Architecture

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import optuna

__all__ = [
    "AUDITED",
    "FINISHED",
    "Decision",
    "TrialRecord",
    "first_flag",
    "is_feasible",
    "is_finished",
    "is_late",
    "is_over_limit",
    "is_reuse",
    "mirror_constraints",
    "network_of",
    "read_decisions",
    "read_noted",
    "read_run",
    "read_settings",
    "read_step",
    "read_steps",
    "read_tests",
    "read_trained",
    "read_trial",
    "stands_for",
    "worker_of",
    "write_architecture",
    "write_artifact",
    "write_decision",
    "write_failure",
    "write_final",
    "write_late",
    "write_layers",
    "write_limits",
    "write_minimum",
    "write_network",
    "write_noted",
    "write_pruned",
    "write_recipe",
    "write_repeat",
    "write_retry",
    "write_reuse",
    "write_run",
    "write_settings",
    "write_step",
    "write_test",
    "write_worker",
]

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# Outcomes of a decision that flags a trial and runs it on.
AUDITED = ("audited", "suspended")

_STEP = "flatsearch:step:"
_SETTINGS = "flatsearch:settings"
_RUN = "flatsearch:run"
_ARCHITECTURE = "architecture"
_ARTIFACT = "flatsearch:model"
_FAILURE = "failure"
_LIMIT = "flatsearch:max_"
_NETWORK = "flatsearch:network"
_RECIPE = "recipe"
_WORKER = "flatsearch:worker"
_RETRY = "flatsearch:retried"
_LATE = "flatsearch:late"
_TRACEBACK = "flatsearch:traceback"
# Some databases keep 64 kilobytes of a text.
_LONGEST_TRACE = 20_000
_MIN_ACCURACY = "flatsearch:min_accuracy"
_PRUNED = "flatsearch:pruned"
_SAME_AS = "flatsearch:same_as"
_DECISION = "flatsearch:decision:"
_LAYERS = "flatsearch:layers"
_TESTS = "flatsearch:tests"
_REPEATS = "flatsearch:repeats"
_NOTED = "flatsearch:noted"


@dataclass(frozen=True)
class Decision:
    """What a pruner decided after a step, and why.

    Attributes:
        step: The step.
        probability: Of ending among the best, as predicted; NaN where nothing was.
        limit: A smaller probability flags a trial; NaN in the start-up.
        outcome: "start-up", "kept", "pruned"; of a flagged trial that is run on "audited" or
            "suspended" (pruning is), and "under audit" at later steps.
        chance: The probability with which a trial that is flagged here is run on.
        n_trials: Complete trials that it was learnt from.
        best: The share of all trials that counts as the best; None where it is the front.
    """

    step: int
    probability: float
    limit: float
    outcome: str
    chance: float
    n_trials: int
    best: float | None = None


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


class TakesAttributes(Protocol):
    """A running trial, as far as this module needs one."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """Store an attribute."""


def write_decision(trial: TakesAttributes, decision: Decision) -> None:
    """Store what a pruner decided after a step."""
    stored = {k: _to_json(v) if isinstance(v, float) else v for k, v in asdict(decision).items()}
    trial.set_user_attr(f"{_DECISION}{stored.pop('step')}", stored)


def first_flag(decisions: Iterable[Decision]) -> Decision | None:
    """Return the decision by which a trial was flagged and run on all the same, or None."""
    return next((decision for decision in decisions if decision.outcome in AUDITED), None)


def stands_for(decisions: Iterable[Decision]) -> float:
    """Return how many trials one stands for among all: more than itself if it was audited."""
    flag = first_flag(decisions)
    return 1.0 if flag is None else 1.0 / flag.chance


def read_decisions(trial: optuna.trial.FrozenTrial) -> list[Decision]:
    """Return a trial's decisions in the order of steps."""
    found = [
        Decision(
            step=int(key[len(_DECISION) :]),
            probability=float(value["probability"]),
            limit=float(value["limit"]),
            outcome=str(value["outcome"]),
            chance=float(value["chance"]),
            n_trials=int(value["n_trials"]),
            best=value.get("best"),
        )
        for key, value in trial.user_attrs.items()
        if key.startswith(_DECISION)
    ]
    return sorted(found, key=lambda decision: decision.step)


def _to_json(value: float) -> float | str:
    """JSON has no NaN or infinity; they are stored as text."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


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
        values = {name: _to_json(value) for name, value in metrics.items()}
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
    trial.set_user_attr(
        _LAYERS, {name: _to_json(float(f"{v:.6g}")) for name, v in flatness.items()}
    )


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
        if not _is_mirrored(name):
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
        trial.set_user_attr(name, value if isinstance(value, int) else _to_json(value))


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


def write_limits(trial: optuna.Trial, excess: Mapping[str, float]) -> None:
    """Store how far a candidate is over each limit, as a fraction of it, as Optuna's constraints.

    Samplers learn from them where the limits are, and the best trials are those that keep them.
    """
    for name, value in excess.items():
        trial.set_constraint(f"{_LIMIT}{name}", value)


def write_minimum(trial: optuna.Trial, accuracy: float, least: float) -> None:
    """Store as a constraint by how much an accuracy falls short of the least that counts."""
    trial.set_constraint(_MIN_ACCURACY, least - accuracy)


def write_pruned(trial: optuna.Trial, *, pruned: bool) -> None:
    """Store whether a trial that is told as complete was pruned, as a constraint.

    All trials of a study have to have it: samplers want the same constraints everywhere.
    """
    trial.set_constraint(_PRUNED, float(pruned))


def mirror_constraints(trial: optuna.Trial) -> None:
    """Store the constraints' values once more where optuna-dashboard reads them.

    It knows only the list that older versions of Optuna had. Optuna reads both, so that every
    value counts twice: TPE and NSGA-II, which add up what is violated, propose the same; GP, which
    multiplies probabilities, would keep further away, so that its studies have no list. Samplers
    want the same number of constraints everywhere: the first complete trial decides for all.
    """
    # In the order of their names, which is the same in every trial.
    named = sorted(trial.constraints.items())
    values = [value for name, value in named if not _is_mirrored(name)]
    complete = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    first = next((t.constraints for t in complete if t.constraints), None)
    if first is None:
        wanted = not isinstance(trial.study.sampler, GPSampler)
    else:
        wanted = any(map(_is_mirrored, first))
    if values and wanted:
        trial.storage.set_trial_system_attr(trial._trial_id, "constraints", values)


def _is_mirrored(name: str) -> bool:
    """Return whether a constraint is an entry of the list: Optuna names it by its place."""
    return name.isdecimal()


def is_feasible(trial: optuna.Trial | optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial keeps all of its constraints."""
    return all(value <= 0 for value in trial.constraints.values())


def is_over_limit(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial's candidate costs more than the study allows."""
    return any(v > 0 for key, v in trial.constraints.items() if key.startswith(_LIMIT))


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
        if ":" not in name and (_is_number(value) or value in ("nan", "inf", "-inf"))
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
        ended_early=trial.constraints.get(_PRUNED, 0.0) > 0,
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


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def write_settings(study: optuna.Study, settings: Mapping[str, Any]) -> None:
    """Store what every trial of the study shares."""
    study.set_user_attr(_SETTINGS, dict(settings))


def read_settings(study: optuna.Study) -> dict[str, Any] | None:
    """Return what `write_settings` stored; None for a study that is not ours."""
    settings = study.user_attrs.get(_SETTINGS)
    return settings if isinstance(settings, dict) else None


def write_run(study: optuna.Study, run: Mapping[str, Any]) -> None:
    """Store how the study is being run: what a worker has to know that joins."""
    study.set_user_attr(_RUN, dict(run))


def read_run(study: optuna.Study) -> dict[str, Any] | None:
    """Return what `write_run` stored last; None if nothing was."""
    run = study.user_attrs.get(_RUN)
    return run if isinstance(run, dict) else None


def write_noted(study: optuna.Study, numbers: Iterable[int]) -> None:
    """Store which trials' notes say that they are on the front."""
    study.set_user_attr(_NOTED, list(numbers))


def read_noted(study: optuna.Study) -> list[int]:
    """Return what `write_noted` stored last."""
    return list(study.user_attrs.get(_NOTED, []))


def write_test(study: optuna.Study, number: int, accuracy: float, file: str) -> None:
    """Store that a trial's final network was tested, and where it is; nothing is forgotten."""
    tests = [*study.user_attrs.get(_TESTS, []), [number, accuracy, file]]
    study.set_user_attr(_TESTS, tests)


def read_tests(study: optuna.Study) -> tuple[tuple[int, float], ...]:
    """Return the looks that were taken at the test split, as (trial, accuracy), oldest first."""
    return tuple((int(n), float(a)) for n, a, _ in study.user_attrs.get(_TESTS, []))


def read_trained(study: optuna.Study, number: int) -> str | None:
    """Return the file of a trial's latest final network, or None."""
    files = [file for n, _, file in study.user_attrs.get(_TESTS, []) if n == number]
    return files[-1] if files else None
