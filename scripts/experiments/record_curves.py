"""Record what a pruner could see: train a sample of a space with the project's own trainer.

    python scripts/experiments/record_curves.py TABLE --data DATA [--networks 100] [--jobs 2]

TABLE is a name in `TABLES` below, DATA anything `flatsearch.load_data` takes. Writes
scripts/results/curves/TABLE.csv, one row per network and epoch, and TABLE.json with what was run
where. Network i is the same for every run of the table; networks that are there already are not
trained again, so the script can be stopped at any time and goes on where it was, and a larger
--networks adds to a table.

Columns, of every row: `network` (index), `epoch`; `p.NAME`, the space's parameters, and `r.NAME`,
the recipe's, where it is varied; `z.NAME`, signals of the untrained network
(`flatsearch.signals`, on one batch of 128 training images); `test_accuracy`, `test_loss`,
`fit_accuracy`, `fit_loss` (on all training images, without augmentation) after the last epoch, and
`published`, NAS-Bench-201's mean validation accuracy after 200 epochs, where TABLE has it. Of the
epoch: `accuracy`, `loss` (validation), `train_loss`, `train_accuracy` (running means over the
epoch), `tse`, `weight_movement`, `gradient_norm` (of all weights, on the probe, in eval mode),
`probe_loss`, `kappa_last`, `trace_last`, `kappa_last_input` (normalised by the inputs),
`kappa_all`, `trace_all` (sums over all convolutions), `log_kappa_all` (mean of the logarithms),
`layers` (kappa:trace of every convolution, in order of execution), `kind`, `seconds` (training and
validation) and `measure_seconds`. A network whose training diverges has only the rows before that,
without a final accuracy.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import json
import math
import platform
import queue
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
import tables
import torch
import torch.multiprocessing

import flatsearch
from flatsearch.errors import DivergedError, FlatsearchError, NonFiniteError
from flatsearch.networks.cost import count_flops, count_parameters
from flatsearch.search.recipe import suggest_recipe
from flatsearch.settings import RunSettings
from flatsearch.signals.compute import ProxyInput, initial_weights, measure
from flatsearch.signals.curve import tse
from flatsearch.signals.table import PROXIES, SIGNALS
from flatsearch.spaces.space import build_model, suggest_checked
from flatsearch.training.evaluation import evaluate
from flatsearch.training.trainer import train
from search_spaces.nasbench201 import NasBench201

if TYPE_CHECKING:
    from flatsearch.data.splits import ImageData, Split

FOLDER = Path(__file__).resolve().parents[1] / "results" / "curves"
# Images: reduced where it says so, so that a CPU gets somewhere.
VALIDATION = 1000


@dataclasses.dataclass(frozen=True)
class Table:
    """What is recorded: a space on a data set, with a fixed or a varied recipe."""

    space: str
    image_size: int
    train: int
    epochs: int
    max_flops: float = math.inf
    tune_recipe: bool = False


# The half of the tables that `correlate.py` and `replay.py` may tune on is named there.
TABLES = {
    "fashion-plain": Table("plain_cnn", 14, 4000, 12, 15e6),
    "fashion-resnet": Table("resnet_small", 14, 4000, 12, 10e6),
    "cifar10-plain": Table("plain_cnn", 16, 4000, 12, 15e6),
    "cifar10-resnet": Table("resnet_small", 16, 4000, 12, 10e6),
    "cifar10-recipes": Table("plain_cnn", 16, 4000, 12, 15e6, tune_recipe=True),
    "fashion-recipes": Table("resnet_small", 14, 4000, 12, 10e6, tune_recipe=True),
    "cifar10-nasbench201": Table("nasbench201", 16, 4000, 3),
    # The same in full, for a GPU.
    "cifar10-resnet-full": Table("resnet_small", 32, 40000, 30),
    "cifar10-plain-full": Table("plain_cnn", 32, 40000, 30),
    "fashion-resnet-full": Table("resnet_small", 28, 48000, 20),
    "cifar10-nasbench201-full": Table("nasbench201", 32, 40000, 3),
}


def candidates(name: str, table: Table, data: ImageData, networks: int, cells: list[str]):
    """Yield (index, parameters, architecture, settings, recipe) of distinct networks."""
    settings = RunSettings(epochs=table.epochs, tune_recipe=table.tune_recipe, probe_size=128)
    space = flatsearch.load_space(table.space)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=zlib.crc32(name.encode()))
    study = optuna.create_study(sampler=sampler)
    seen, index = set(), 0
    order = np.random.default_rng(0).permutation(len(cells))
    while index < (min(networks, len(cells)) if cells else networks):
        if cells:
            architecture = flatsearch.Architecture(table.space, {"cell": cells[order[index]]})
            yield index, {"cell": cells[order[index]]}, architecture, settings, {}
            index += 1
            continue
        trial = study.ask()
        architecture = suggest_checked(space, trial)
        model = build_model(
            space, architecture, in_channels=data.in_channels, num_classes=data.num_classes,
            image_size=data.image_size,
        )  # fmt: skip
        if count_flops(model, data.in_channels, data.image_size) > table.max_flops:
            continue
        recipe, used = {}, settings
        if table.tune_recipe:
            used, recipe = suggest_recipe(space, trial, settings, may_flip=data.may_flip)
        key = architecture.key + json.dumps(recipe)
        if key not in seen:
            seen.add(key)
            params = {k: v for k, v in trial.params.items() if not k.startswith("recipe_")}
            yield index, params, architecture, used, recipe
            index += 1


def small(table: Table, data: ImageData) -> ImageData:
    """Return the data with fewer images, the first ones of a fixed permutation."""

    def some(split: Split, n: int) -> Split:
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:n]
        return dataclasses.replace(split, images=split.images[order], targets=split.targets[order])

    chosen = some(data.train, table.train)
    return dataclasses.replace(
        data,
        train=chosen,
        validation=some(data.validation, VALIDATION if table.train < 10_000 else 10_000),
        # The probe has to be of the images that are trained on.
        probe=dataclasses.replace(chosen, images=chosen.images[:128], targets=chosen.targets[:128]),
    )


def zero_cost(table: Table, architecture, data: ImageData, device) -> dict[str, float]:
    """Return the signals of the untrained network; of the benchmark's own size for its cells."""
    torch.manual_seed(0)
    model = build_model(
        flatsearch.load_space(table.space), architecture, in_channels=data.in_channels,
        num_classes=data.num_classes, image_size=32 if table.space == "nasbench201" else
        data.image_size,
    ).to(device)  # fmt: skip
    x, y = data.probe.tensors()
    if table.space == "nasbench201" and x.shape[-1] != 32:
        x = torch.nn.functional.interpolate(x, size=32, mode="bilinear")
    found = measure(proxies("untrained"), ProxyInput(model, x, y))
    return {
        "z.parameters": float(count_parameters(model)),
        "z.flops": float(count_flops(model, x.shape[1], x.shape[2])),
        **{tables.column_of(SIGNALS[name]): value for name, value in found.items()},
    }


def proxies(first: str) -> list[str]:
    """Return the names of the proxies that are known untrained, or after an epoch."""
    return [name for name, signal in PROXIES.items() if signal.first == first]


def measure_flatness(model, data: ImageData) -> dict:
    """Return everything about flatness, on the probe."""
    probe = data.probe.tensors()
    last = flatsearch.relative_flatness(model, probe)
    scaled = flatsearch.relative_flatness(model, probe, normalize="input")
    every = flatsearch.relative_flatness(model, probe, layers="all")
    layers = list(every.layers.values())
    positive = [math.log(v.relative_flatness) for v in layers if v.relative_flatness > 0]
    return {
        "probe_loss": last.loss,
        "kappa_last": last.relative_flatness,
        "trace_last": last.hessian_trace,
        "kappa_last_input": scaled.relative_flatness,
        "kappa_all": every.relative_flatness,
        "trace_all": every.hessian_trace,
        "log_kappa_all": sum(positive) / len(positive) if positive else math.nan,
        "kind": f"{last.kind}/{every.kind}",
        "layers": " ".join(f"{v.relative_flatness:.3g}:{v.hessian_trace:.3g}" for v in layers),
    }


def record(table: Table, data: ImageData, job, device) -> list[dict]:
    """Train one network and return its rows."""
    index, params, architecture, settings, recipe = job
    shared = {"network": index}
    shared |= {f"p.{k}": v for k, v in params.items()} | {f"r.{k}": v for k, v in recipe.items()}
    shared |= zero_cost(table, architecture, data, device)
    torch.manual_seed(index)
    space = flatsearch.load_space(table.space)
    if table.space == "nasbench201" and table.image_size < 32:
        space = NasBench201(width=8, cells=1)
    model = space.build(
        architecture, in_channels=data.in_channels, num_classes=data.num_classes,
        image_size=data.image_size,
    ).to(device)  # fmt: skip
    initial = initial_weights(model)
    rows, losses = [], []
    try:
        for epoch in train(model, data, settings, seed=index):
            losses.append(epoch.train_loss)
            started = time.perf_counter()
            given = ProxyInput(model, *data.probe.tensors(), initial)
            row = {"epoch": epoch.epoch, **dataclasses.asdict(epoch), "tse": tse(losses)}
            row |= measure(proxies("epoch"), given)
            row |= measure_flatness(model, data)
            row["measure_seconds"] = time.perf_counter() - started
            rows.append({**shared, **row})
        final = dict(zip(("test_loss", "test_accuracy"), evaluate(model, data.test), strict=True))
        final |= dict(zip(("fit_loss", "fit_accuracy"), evaluate(model, data.train), strict=True))
        rows = [{**row, **final} for row in rows]
    except (DivergedError, NonFiniteError) as error:
        print(f"network {index}: {error}", flush=True)
    return rows or [{**shared, "epoch": 0}]


def work(table: Table, data: ImageData, jobs, results, device: str, threads: int) -> None:
    """Record jobs until there are none."""
    torch.set_num_threads(threads)
    data = data.to(device)
    while True:
        try:
            job = jobs.get(timeout=5)
        except queue.Empty:
            return
        try:
            results.put((job[0], record(table, data, copy.deepcopy(job), torch.device(device))))
        except FlatsearchError as error:
            print(f"network {job[0]}: {error}", flush=True)
            results.put((job[0], []))


def columns(rows: list[dict]) -> list[str]:
    """Return the columns in a fixed order: what all epochs share comes first."""
    names = dict.fromkeys(name for row in rows for name in row)
    first = [n for n in names if n in {"network", "epoch"}]
    return first + sorted(n for n in names if n not in first)


def read(path: Path) -> list[dict]:
    """Return the rows of a table."""
    with path.open() as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict]) -> None:
    """Write a table whole and move it into place: a killed run leaves the last one."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns(rows), restval="")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def text(value) -> str:
    """Return a number in five digits."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Record a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--data", required=True)
    parser.add_argument("--root", default="data", help="where torchvision's files are")
    parser.add_argument("--published", type=Path, help="CSV of NAS-Bench-201 accuracies")
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start none after this")
    args = parser.parse_args()
    table, started = TABLES[args.table], time.monotonic()
    data = flatsearch.load_data(args.data, image_size=table.image_size, root=args.root)
    data = small(table, data)
    published = {}
    if args.published:
        published = {r["arch"]: float(r["val_acc_200ep_mean"]) for r in read(args.published)}
    elif table.space == "nasbench201":
        parser.error("cells need --published")
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{args.table}.csv"
    rows = read(path) if path.exists() else []
    done = {int(row["network"]) for row in rows}
    context = torch.multiprocessing.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    waiting = 0
    for job in candidates(args.table, table, data, args.networks, list(published)):
        if job[0] not in done:
            jobs.put(job)
            waiting += 1
    threads = max(1, torch.get_num_threads() // args.jobs)
    workers = [
        context.Process(
            target=work, args=(table, data, jobs, results, args.device, threads), daemon=True
        )
        for _ in range(args.jobs)
    ]
    for worker in workers:
        worker.start()
    while waiting and time.monotonic() - started < args.seconds:
        if not any(worker.is_alive() for worker in workers):
            raise SystemExit("all workers have died")
        try:
            index, found = results.get(timeout=5)
        except queue.Empty:
            continue
        waiting -= 1
        for row in found:
            if published:
                row["published"] = published[row["p.cell"]]
            rows.append({name: text(value) for name, value in row.items()})
        rows.sort(key=lambda row: (int(row["network"]), int(row["epoch"])))
        write(path, rows)
        final = found[-1].get("test_accuracy", math.nan) if found else math.nan
        print(f"{args.table} {index}: {final:.3f}, {waiting} to go", flush=True)
        environment = {
            "table": args.table,
            "settings": dataclasses.asdict(table) | {"max_flops": text(table.max_flops)},
            "validation": len(data.validation),
            "test": len(data.test),
            "networks": len({row["network"] for row in rows}),
            "device": torch.cuda.get_device_name() if args.device != "cpu" else "cpu",
            "processor": platform.machine(),
            "threads": threads,
            "torch": torch.__version__,
            "optuna": optuna.__version__,
            "python": platform.python_version(),
        }
        path.with_suffix(".json").write_text(json.dumps(environment, indent=1) + "\n")
    for worker in workers:
        worker.terminate()


if __name__ == "__main__":
    main()
