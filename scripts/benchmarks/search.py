"""How many candidates a search trains in an hour, beside plain loops over the same candidates.

Three ways train the same networks for the same epochs on the same images, with the same recipe
(SGD with Nesterov momentum, one cycle of the learning rate, random crops and mirrored images):

*plain*      Optuna, a `DataLoader` over images and torchvision's transforms, an eager loop: what
             Optuna's example for PyTorch does.
*tuned*      the same with bfloat16 autocast, channels last in memory, and workers. Torch computes
             some networks wrongly so on a CPU, or ends (docs/torch-channels-last.md).
*flatsearch* `FlatnessObjective` with its defaults, flatness and storage included.

They take turns on every candidate, each in a process of its own, so that what else the machine does
hits all of them. Times are of the wall and of the processor (of workers, too); ratios are of sums
over the candidates, and those of the processor's time are to be trusted where the load average says
that others were busy. What flatsearch's share of each phase is, is measured in the same run.

    python scripts/benchmarks/search.py --data digits
    python scripts/benchmarks/search.py --data FOLDER --image-size 32 --images 2000 --epochs 2

With `--workers 2 --threads 2` each has two cores, one way after the other: the loops with two
threads, as torch takes them; flatsearch with two workers of one thread each. They take turns on ten
candidates then, and the ratio to look at is the wall's.

The documentation's tables are of scripts/results/search-DATA-PROCESSOR.json (`--out`), and of
two-cores-DATA-PROCESSOR.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import pkgutil
import platform
import resource
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import optuna
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from flatsearch import FlatnessObjective, load_data, load_space
from flatsearch.settings import RunSettings
from flatsearch.spaces.space import build_model
from flatsearch.training.computation import computes_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from torch import Tensor

    from flatsearch.data.splits import ImageData, Split
    from flatsearch.spaces.space import SearchSpace

# Where flatsearch's time goes: what is timed, by the phase. Time inside of another phase is its
# own.
PHASES = {
    "build": [
        "flatsearch.search.candidates.Candidates.build",
        "flatsearch.search.candidates.Candidates.key",
        "flatsearch.search.candidates.Candidates.cost",
    ],
    "train": ["flatsearch.training.trainer.Trainer.epoch"],
    "validate": ["flatsearch.training.trainer.validate"],
    "measure": [
        "flatsearch.search.epoch_metrics.Measuring.one",
        "flatsearch.search.epoch_metrics.Measuring.every",
    ],
    "storage": [
        "flatsearch.search.objective.write_trial",
        "flatsearch.search.epochs.write_trial",
        "flatsearch.search.epochs.report",
        "flatsearch.search.trial_files.TrialFiles.save",
    ],
}


class Images(Dataset[tuple["Tensor", int]]):
    """A split as a data set of single images, as torchvision's data sets are."""

    def __init__(self, split: Split, change: Callable[[Tensor], Tensor]) -> None:
        self.images, self.targets, self.change = split.images, split.targets.tolist(), change

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(self.images[index]), self.targets[index]


def plain(
    space: SearchSpace,
    data: ImageData,
    settings: RunSettings,
    device: str,
    *,
    tuned: bool,
    loaders: int = 1,
) -> Callable[[optuna.Trial], float]:
    """Return the objective that a user writes: a data loader, an eager loop."""
    augmentation = data.augmentation(settings.augment)
    mean, std = (value.flatten().tolist() for value in (data.train.mean, data.train.std))
    scale = data.train.images.dtype == torch.uint8
    if scale:  # v2 scales integers to [0, 1]
        mean, std = ([value / 255 for value in part] for part in (mean, std))
    always = [v2.ToDtype(torch.float32, scale=scale), v2.Normalize(mean, std)]
    random: list[Any] = []
    if augmentation is not None:
        random = [v2.RandomCrop(data.image_size, padding=augmentation.padding)]
        random += [v2.RandomHorizontalFlip()] if augmentation.flip else []
    options: dict[str, Any] = {"batch_size": settings.batch_size}
    if tuned:
        options |= {"num_workers": loaders, "persistent_workers": True}
        options |= {"pin_memory": device != "cpu"}
    training = Images(data.train, v2.Compose([*random, *always]))
    validation = Images(data.validation, v2.Compose(always))
    layout = torch.channels_last if tuned else torch.contiguous_format

    def cast() -> Any:
        return torch.autocast(device, dtype=torch.bfloat16, enabled=tuned)

    def objective(trial: optuna.Trial) -> float:
        torch.manual_seed(trial.number)
        model = build_model(
            space,
            space.suggest(trial),
            in_channels=data.in_channels,
            num_classes=data.num_classes,
            image_size=data.image_size,
        ).to(device, memory_format=layout)
        batches = DataLoader(training, shuffle=True, **options)
        held_out = DataLoader(validation, **options)
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=True,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=settings.lr,
            total_steps=settings.epochs * len(batches) + 1,
            cycle_momentum=False,
        )
        accuracy = 0.0
        for epoch in range(settings.epochs):
            model.train()
            for x, y in batches:
                images = x.to(device, memory_format=layout, non_blocking=True)
                optimizer.zero_grad()
                with cast():
                    loss = F.cross_entropy(model(images), y.to(device, non_blocking=True))
                loss.backward()
                optimizer.step()
                schedule.step()
            model.eval()
            right = 0
            with torch.no_grad():
                for x, y in held_out:
                    with cast():
                        logits = model(x.to(device, memory_format=layout))
                    right += int((logits.argmax(1) == y.to(device)).sum())
            accuracy = right / len(validation)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    return objective


class Clock:
    """Seconds by phase; those of a phase inside of another one count for the inner one only.

    Args:
        now: The clock: of the processor, or, where that waits for a device, of the wall.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            started = self._now()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent = self._now() - started
                self.seconds[phase] += spent - self._inner.pop()
                self._inner[-1] += spent

        return call

    def watch(self) -> Iterator[Any]:
        """Yield patches that time what is listed in `PHASES`."""
        for phase, targets in PHASES.items():
            for target in targets:
                holder, _, name = target.rpartition(".")
                owner = pkgutil.resolve_name(holder)
                yield mock.patch.object(owner, name, self.timed(phase, getattr(owner, name)))


def spent() -> tuple[float, float]:
    """Return the time of the wall, and that of the processor with finished child processes."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


def prepare(options: argparse.Namespace) -> tuple[ImageData, RunSettings]:
    """Return some of the images, and the settings that all share."""
    settings = RunSettings(
        objectives=("accuracy", "flatness"),
        epochs=options.epochs,
        batch_size=options.batch_size,
        image_size=options.image_size,
        duplicates="retrain",
        **({"layers": options.layers} if options.layers else {}),
    )
    data = load_data(options.data, **settings.data_options(), root=options.data_root)
    if options.images:
        data = shortened(data, options.images, options.validation)
    return data, settings


def shortened(data: ImageData, images: int, validation: int) -> ImageData:
    """Return the data with fewer training and validation images."""

    def some(split: Split, count: int) -> Split:
        chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
        return dataclasses.replace(
            split, images=split.images[chosen], targets=split.targets[chosen]
        )

    return dataclasses.replace(
        data, train=some(data.train, images), validation=some(data.validation, validation)
    )


def draw(space: SearchSpace, count: int, seed: int) -> list[dict[str, Any]]:
    """Return the parameters of random candidates."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = []
    for _ in range(count):
        trial = study.ask()
        space.suggest(trial)
        drawn.append(trial.params)
    return drawn


def way(name: str, options: argparse.Namespace) -> Callable[[optuna.Trial], Any]:
    """Return the objective of a name."""
    data, settings = prepare(options)
    if name == "flatsearch":
        return FlatnessObjective(options.space, data, settings=settings, device=options.device)
    space, tuned = load_space(options.space), name == "tuned"
    return plain(space, data, settings, options.device, tuned=tuned, loaders=options.loaders)


def serve(name: str, options: argparse.Namespace, database: str, pipe: Connection) -> None:
    """Train the candidates that are asked for, in a process of its own; answer with what it took.

    Each way has processes, as it has where it is used: what it sets there (how memory is kept, how
    products are rounded) is its own.
    """
    # Loaders' workers start as in a program of its own, not as this process did.
    multiprocessing.set_start_method(None, force=True)
    quiet(options.threads // processes_of(name, options))
    objective = way(name, options)
    study = optuna.create_study(
        storage=f"sqlite:///{database}",
        directions=getattr(objective, "directions", ["maximize"]),
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
    )
    clock = Clock(time.process_time if options.device == "cpu" else time.perf_counter)
    watched = list(clock.watch()) if name == "flatsearch" else []
    pipe.send(None)  # ready
    while True:
        try:
            parameters = pipe.recv()
        except EOFError:  # there are no more
            return
        study.enqueue_trial(parameters)
        clock.seconds.clear()
        before = spent()
        with contextlib.ExitStack() as stack:
            for patch in watched:
                stack.enter_context(patch)
            study.optimize(objective, n_trials=1)
        if options.device != "cpu":
            torch.cuda.synchronize()
        wall, processor = (b - a for a, b in zip(before, spent(), strict=True))
        trial = study.get_trials(deepcopy=False)[-1]
        accuracy = trial.values[0] if trial.values else math.nan
        found = {"wall": wall, "processor": processor, "accuracy": accuracy}
        phases = {phase: clock.seconds[phase] for phase in PHASES} if watched else {}
        pipe.send((found, phases))


def processes_of(name: str, options: argparse.Namespace) -> int:
    """Return in how many processes at once a way trains candidates."""
    workers: int = options.workers
    return workers if name == "flatsearch" else 1


def quiet(threads: int) -> None:
    """Set up a process."""
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(threads)


class Way:
    """The processes of a way.

    Args:
        name: Of the way.
        options: The command line's.
        folder: Where its storage is.
    """

    def __init__(self, name: str, options: argparse.Namespace, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for number in range(processes_of(name, options)):
            ours, theirs = context.Pipe()
            arguments = (name, options, f"{folder}/{name}-{number}.db", theirs)
            process = context.Process(target=serve, args=arguments)
            process.start()
            theirs.close()  # so that a process that has ended is noticed
            ours.recv()
            self._pipes.append(ours)
            self._processes.append(process)

    def train(self, candidates: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Any]]:
        """Train candidates, each in the first process that is free.

        Returns:
            For each what was found, and flatsearch's seconds by phase. The wall's time is its share
            of what all have taken.
        """
        begun, left = time.perf_counter(), list(range(len(candidates)))
        found: list[Any] = [None] * len(candidates)
        busy: dict[Connection, int] = {}
        while left or busy:
            for pipe in self._pipes:
                if left and pipe not in busy:
                    busy[pipe] = left.pop(0)
                    pipe.send(candidates[busy[pipe]])
            ready = connection.wait(list(busy))
            for pipe in [pipe for pipe in busy if pipe in ready]:
                found[busy.pop(pipe)] = pipe.recv()
        if len(self._pipes) > 1:
            wall = (time.perf_counter() - begun) / len(candidates)
            found = [({**row, "wall": wall}, phases) for row, phases in found]
        return found

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


def compare(options: argparse.Namespace, folder: str) -> Iterator[dict[str, Any]]:
    """Let every way train every candidate, in turns; yield what is known after each turn."""
    with contextlib.ExitStack() as stack:
        ways = {}
        for name in ("plain", *options.beside):
            ways[name] = Way(name, options, folder)
            stack.callback(ways[name].close)
        space, each = load_space(options.space), 1 if options.workers == 1 else 10
        for one in ways.values():  # a first one warms up each process
            one.train(draw(space, options.workers, 1))
        candidates, rows = draw(space, options.candidates, 0), list[dict[str, Any]]()
        seconds: dict[str, float] = defaultdict(float)
        for turn, first in enumerate(range(0, len(candidates), each)):
            some = candidates[first : first + each]
            these: list[dict[str, Any]] = [{"parameters": parameters} for parameters in some]
            for name in [list(ways), list(ways)[::-1]][turn % 2]:
                for row, (found, phases) in zip(these, ways[name].train(some), strict=True):
                    row[name] = found
                    for phase, value in phases.items():
                        seconds[phase] += value
            rows += these
            for number, row in enumerate(these, first + 1):
                shown = (f"{name} {row[name]['processor']:.1f} s" for name in ways)
                print(f"{number:3d}  {', '.join(shown)}", flush=True)
            on_cpu = options.device == "cpu"
            yield {"summary": summarise(rows, list(ways), seconds, on_cpu=on_cpu), "rows": rows}


def summarise(
    rows: list[dict[str, Any]], names: list[str], phases: Any, *, on_cpu: bool
) -> dict[str, Any]:
    """Return candidates per hour, accuracies, and the seconds of each phase."""
    n, summary = len(rows), dict[str, Any]()
    for name in names:
        total = {kind: sum(row[name][kind] for row in rows) for kind in ("wall", "processor")}
        accuracies = [row[name]["accuracy"] for row in rows]
        difference = [row[name]["accuracy"] - row["plain"]["accuracy"] for row in rows]
        error = statistics.stdev(difference) / math.sqrt(n) if n > 1 else math.nan
        summary[name] = {
            "candidates_per_hour": 3600 * n / total["wall"],
            "candidates_per_processor_hour": 3600 * n / total["processor"],
            "over_plain": sum(row["plain"]["processor"] for row in rows) / total["processor"],
            "over_plain_wall": sum(row["plain"]["wall"] for row in rows) / total["wall"],
            "accuracy": statistics.fmean(accuracies),
            "accuracy_minus_plain": statistics.fmean(difference),
            "standard_error": error,
        }
    own = sum(row["flatsearch"]["processor" if on_cpu else "wall"] for row in rows)
    seconds = {phase: phases[phase] / n for phase in PHASES}
    summary["phases"] = {**seconds, "rest": own / n - sum(seconds.values())}
    return summary


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--space", default="resnet_small")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="training images; all where not given")
    parser.add_argument("--validation", type=int, default=500, help="validation images then")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--layers", help="flatsearch's setting; its default where not given")
    parser.add_argument("--threads", type=int, default=1, help="of each way, with all its workers")
    parser.add_argument("--workers", type=int, default=1, help="flatsearch's processes")
    parser.add_argument("--loaders", type=int, default=1, help="workers of the tuned data loader")
    parser.add_argument("--device", default="cpu")
    others = ["tuned", "flatsearch"]
    parser.add_argument("--beside", nargs="+", choices=others, default=others, help="beside plain")
    parser.add_argument("--out", type=Path, help="write rows and environment after each candidate")
    options = parser.parse_args()
    if options.threads < options.workers:
        parser.error("--threads must be at least --workers: each worker has one")
    quiet(options.threads)
    environment = {
        "torch": torch.__version__,
        "optuna": optuna.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "native_bfloat16": computes_bfloat16(torch.device(options.device)),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[2],
        **{key: value for key, value in vars(options).items() if key not in {"out", "data_root"}},
        "data": Path(options.data).name,
    }
    with tempfile.TemporaryDirectory() as folder:
        for found in compare(options, folder):
            if options.out is not None:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                result = {"environment": environment, **found}
                options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    main()
