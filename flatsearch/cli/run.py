"""`flatsearch run` and `flatsearch worker`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.cli.options import (
    add_data,
    add_device,
    add_json,
    add_storage,
    add_timeout,
    artifact_store,
    count,
    make_console,
    milliseconds,
    print_json,
    storage_option,
)
from flatsearch.errors import UsageError, unknown_name
from flatsearch.settings import (
    AUGMENTATIONS,
    DEFAULT_ARTIFACTS,
    DEFAULT_FAILURES,
    DEFAULT_PRUNER,
    DEFAULT_TRIALS,
    DUPLICATES,
    OBJECTIVES,
    PRUNE_MODES,
    PRUNE_ON,
    PRUNERS,
    SAMPLERS,
    SOFT_SAMPLERS,
    RunSettings,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import optuna

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.reports.dashboard import Publisher
    from flatsearch.reports.progress import Progress
    from flatsearch.search.objective import FlatnessObjective

__all__ = ["add_run"]


def add_run(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch run`."""
    d = RunSettings()
    parser.description = (
        "Search. Each trial builds a network from the space, trains it briefly, measures its"
        " relative flatness after every epoch and records both. Going on with a study needs the"
        " settings it was made with."
    )
    parser.add_argument(
        "--space", required=True, help="a name (see 'flatsearch spaces'), pkg.mod:Class or"
        " ./file.py:Class",
    )  # fmt: skip
    add_data(parser, "digits")
    parser.add_argument(
        "--objectives", default=",".join(d.objectives), metavar="NAMES",
        help=f"comma-separated, of {', '.join(OBJECTIVES)} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--trials", type=int, metavar="N",
        help="finish N more trials (default: fill the study up to"
        f" {DEFAULT_TRIALS} finished trials)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=int, default=d.epochs, help="per trial (default: %(default)s)"
    )
    add_timeout(parser)
    parser.add_argument(
        "--workers", type=int, default=1, metavar="W",
        help="processes on this machine, one trial each at a time; GPUs are used in turn. Other"
        " machines join with 'flatsearch worker' (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-failures", type=int, default=DEFAULT_FAILURES, metavar="N",
        help="failed trials in a row that end the run (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--study", metavar="NAME", help="the study's name (default: SPACE-DATA)")
    add_storage(parser)
    add_device(parser)
    parser.add_argument(
        "--sampler", default="tpe", help=f"{', '.join(SAMPLERS)} (default: %(default)s)"
    )
    parser.add_argument(
        "--pruner", default=DEFAULT_PRUNER,
        help=f"{', '.join(PRUNERS)} (default: %(default)s). flatness ends a trial that will hardly"
        " be among the best, as predicted from its first epochs: accuracy, losses, size and"
        " flatness, with weights and signs learnt from this study's own finished trials; it lets a"
        " tenth of those run on to check itself. median, asha and hyperband are Optuna's, and work"
        " with any number of objectives.",
    )  # fmt: skip
    parser.add_argument(
        "--prune-on", metavar="METRIC",
        help=f"what median, asha and hyperband judge by: {', '.join(PRUNE_ON)} (default: the"
        " objective, or pareto_rank with several)",
    )  # fmt: skip
    parser.add_argument(
        "--prune-mode", default="auto",
        help="hard: a pruned trial is Optuna's PRUNED; soft: it is complete, with a violated"
        " constraint, for samplers that ignore pruned trials; auto: soft for"
        f" {' and '.join(SOFT_SAMPLERS)} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=d.seed, help="of everything random (default: %(default)s)"
    )
    parser.add_argument(
        "--artifacts", default=DEFAULT_ARTIFACTS, metavar="DIR",
        help="where trained models are saved, or 'none' (default: %(default)s)",
    )  # fmt: skip
    add_json(parser)
    limits = parser.add_argument_group(
        "limits", "a candidate over a limit is not trained, and does not count as a trial"
    )
    limits.add_argument("--max-params", type=count, metavar="N", help="parameters, e.g. 200k")
    limits.add_argument("--max-flops", type=count, metavar="N", help="per image, e.g. 30M")
    limits.add_argument(
        "--max-memory", type=count, metavar="BYTES", help="of one image's activations, e.g. 2M"
    )
    limits.add_argument(
        "--max-latency", type=milliseconds, metavar="TIME", help="of one image, e.g. 2ms"
    )
    limits.add_argument(
        "--max-batch-latency", type=milliseconds, metavar="TIME", help="of 64 images, e.g. 50ms"
    )
    training = parser.add_argument_group("training and data")
    training.add_argument(
        "--batch-size", type=int, default=d.batch_size, help="(default: %(default)s)"
    )
    training.add_argument(
        "--lr",
        type=float,
        default=d.lr,
        help="peak of the one-cycle schedule (default: %(default)s)",
    )
    training.add_argument(
        "--weight-decay", type=float, default=d.weight_decay, help="(default: %(default)s)"
    )
    training.add_argument(
        "--momentum", type=float, default=d.momentum, help="Nesterov (default: %(default)s)"
    )
    training.add_argument(
        "--augment", default=d.augment, help=f"{', '.join(AUGMENTATIONS)} (default: %(default)s)"
    )
    training.add_argument(
        "--tune-recipe", action="store_true",
        help="search learning rate, weight decay, batch size and augmentation too",
    )  # fmt: skip
    training.add_argument(
        "--min-accuracy", type=float, metavar="A",
        help="validation accuracy that a trial must reach to be on the front (default: clearly"
        " more than guessing the most frequent class; 0 for none)",
    )  # fmt: skip
    training.add_argument(
        "--duplicates", default=d.duplicates,
        help=f"{' or '.join(DUPLICATES)}: what becomes of a candidate that is the same network as"
        " an earlier one; reuse takes its result over and does not count as a trial (default:"
        " %(default)s)",
    )  # fmt: skip
    training.add_argument(
        "--image-size", type=int, metavar="PIXELS",
        help="resize images (default: their own size, their median one if they differ; at most 64)",
    )  # fmt: skip
    training.add_argument(
        "--probe-size", type=int, default=d.probe_size,
        help="training images the flatness is measured on (default: %(default)s)",
    )  # fmt: skip
    training.add_argument(
        "--layers", default=d.layers,
        help="convolutions whose flatness is measured: last, after every epoch; all, also all of"
        " them together in the first epochs and at the end (default: %(default)s)",
    )  # fmt: skip
    training.add_argument(
        "--validation-fraction", type=float, default=d.validation_fraction,
        help="of the training images (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(call=_run)


def _study_name(space: str, data: str) -> str:
    """Return SPACE-DATA without folders and endings.

    Example:
        >>> _study_name("./my_space.py:MySpace", "/home/me/photos/")
        'MySpace-photos'
    """
    parts = (space.rpartition(":")[2], Path(data).stem or data)
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


def _run(options: argparse.Namespace) -> int:
    settings = RunSettings(
        objectives=tuple(name.strip() for name in options.objectives.split(",") if name.strip()),
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        augment=options.augment,
        probe_size=options.probe_size,
        layers=options.layers,
        validation_fraction=options.validation_fraction,
        image_size=options.image_size,
        seed=options.seed,
        tune_recipe=options.tune_recipe,
        duplicates=options.duplicates,
        min_accuracy=options.min_accuracy,
        max_parameters=options.max_params,
        max_flops=options.max_flops,
        max_memory=options.max_memory,
        max_latency=options.max_latency,
        max_batch_latency=options.max_batch_latency,
    )
    if options.trials is not None and options.trials < 1:
        raise UsageError(f"--trials must be at least 1 but got {options.trials}")
    for option in ("workers", "max_failures"):
        if getattr(options, option) < 1:
            name = option.replace("_", "-")
            raise UsageError(f"--{name} must be at least 1 but got {getattr(options, option)}")
    if options.timeout is not None and not options.timeout > 0:
        raise UsageError(f"--timeout must be positive but got {options.timeout:g}")

    import optuna
    from rich.console import Console

    from flatsearch.analysis.summary import summarise
    from flatsearch.device import resolve_device
    from flatsearch.record import write_study
    from flatsearch.reports.dashboard import Publisher
    from flatsearch.reports.progress import Progress
    from flatsearch.reports.terminal import print_summary
    from flatsearch.search.factories import make_pruner, make_sampler
    from flatsearch.search.storage import open_storage
    from flatsearch.search.study import open_study
    from flatsearch.search.trial_budget import finished_count
    from flatsearch.spaces.registry import load_space

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    # Everything that can be refused is refused before data are read or a study is made.
    load_space(options.space)
    resolve_device(options.device)
    make_sampler(options.sampler, 0)
    make_pruner(options.pruner, settings.objectives, options.prune_on)
    if options.prune_mode not in PRUNE_MODES:
        raise UsageError(unknown_name("prune mode", options.prune_mode, PRUNE_MODES))
    artifact_store(options.artifacts)
    storage = open_storage(options.storage)
    progress = Progress(Console(stderr=True), settings)
    objective = make_objective(options, settings, progress)
    objective.check()
    name = options.study or _study_name(options.space, options.data)
    study = open_study(
        name, storage, objective,
        sampler=options.sampler, pruner=options.pruner, prune_on=options.prune_on,
    )  # fmt: skip
    finished = finished_count(study)
    n_trials = options.trials or max(0, DEFAULT_TRIALS - finished)
    progress.announce(study, objective.data, objective.device, finished, n_trials)
    run = {key: getattr(options, key) for key in RUN_OPTIONS}
    write_study(study, run={**run, "target": finished + n_trials})
    publisher = Publisher(progress.say)
    try:
        if n_trials and options.workers > 1:
            _run_workers(name, options, progress.say)
        elif n_trials:
            run_trials(study, objective, progress, options, finished + n_trials, publisher)
    finally:
        summary = summarise(study)
        if options.json:
            print_json({**summary.to_dict(), "storage": options.storage})
        else:
            console = make_console()
            print_summary(summary, console)
            console.print(_next_steps(summary, options), highlight=False, markup=False)
        publisher.now(study, summary)
        if n_trials and "COMPLETE" not in summary.counts:
            reasons = [trial.failure for trial in summary.trials if trial.failure]
            last = f"; the last one: {reasons[-1]}" if reasons else ""
            print(f"flatsearch run: no trial completed{last}", file=sys.stderr)
    return int(bool(n_trials) and "COMPLETE" not in summary.counts)


# What is stored for workers that join.
RUN_OPTIONS = (
    "space", "data", "data_root", "sampler", "pruner", "prune_on", "prune_mode", "artifacts",
    "max_failures",
)  # fmt: skip


def make_objective(
    options: argparse.Namespace, settings: RunSettings, progress: Progress
) -> FlatnessObjective:
    """Read the data and return the objective of a run."""
    from flatsearch.data.loading import load_data
    from flatsearch.search.objective import FlatnessObjective

    soft = options.prune_mode == "soft" or (
        options.prune_mode == "auto" and options.sampler in SOFT_SAMPLERS
    )
    data = load_data(
        options.data,
        image_size=settings.image_size,
        validation_fraction=settings.validation_fraction,
        probe_size=settings.probe_size,
        seed=settings.seed,
        root=options.data_root,
    )
    return FlatnessObjective(
        options.space,
        data,
        settings=settings,
        device=options.device,
        prune_mode="soft" if soft else "hard",
        artifact_store=artifact_store(options.artifacts),
        on_epoch=progress.epoch,
    )


def run_trials(
    study: optuna.Study,
    objective: FlatnessObjective,
    progress: Progress,
    options: argparse.Namespace,
    target: int,
    publisher: Publisher | None,
) -> None:
    """Run the study in this process."""
    from flatsearch.search.loop import run_study
    from flatsearch.search.trial_budget import finished_count

    if options.artifacts != "none":
        Path(options.artifacts).mkdir(parents=True, exist_ok=True)

    def on_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        progress.trial(study, trial)
        if publisher is not None:
            publisher.trial(study)

    with progress.running(target - finished_count(study)):
        ended = run_study(
            study, objective, target=target, timeout=options.timeout,
            max_failures=options.max_failures, on_trial=on_trial,
        )  # fmt: skip
    if ended:
        print(f"flatsearch {options.command}: {ended}", file=sys.stderr)


def _run_workers(name: str, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run the study in several processes, each with the command that anyone can join by."""
    from flatsearch.device import worker_device
    from flatsearch.search.workers import run_workers

    commands = []
    for index in range(options.workers):
        command = ["worker", name, "--storage", options.storage, "--index", str(index)]
        command += ["--device", worker_device(options.device, index)]
        if options.timeout is not None:
            command += ["--timeout", str(options.timeout)]
        commands.append(command)
    run_workers(commands, say)


def _next_steps(summary: StudySummary, options: argparse.Namespace) -> str:
    """Say what to type next."""
    study = f"{summary.name}{storage_option(options)}"
    lines = ["next:", f"  flatsearch report {study}", f"  flatsearch dashboard {study}"]
    if summary.front:
        lines.append(f"  flatsearch train {study}    # the final model")
    given = " ".join(sys.argv[1:]) if sys.argv[0].endswith("flatsearch") else ""
    if given and "--trials" not in given:
        lines.append(f"  flatsearch {given} --trials 10    # ten more trials")
    return "\n".join(lines)
