"""Which default front of accuracy and flatness holds points that somebody would ship?

    python scripts/experiments/fronts.py record TABLE [--networks 34]
    python scripts/experiments/fronts.py judge

**Protocol**, written before anything was measured.

*What is judged.* A definition of the second objective (smaller is better, beside validation
accuracy), and of the least validation accuracy that a trial of the front must have:

    kappa            relative flatness of the main path's last convolution: the default so far
    kappa_all        of all convolutions together
    kappa/loss       kappa divided by the loss on the probe, which it shrinks with
    kappa matched    kappa when the running training loss first passes a level that three quarters
                     of the networks reach; networks that never do are not on the front
    noise_loss       rise of the loss under 10% weight noise, main path's last convolution
    noise_loss_all   of all convolutions together

each with a least accuracy of `guessing`, that is clearly more than guessing, or of
guess + s (best - guess), where best is the best validation accuracy of the study, guess that of the
most frequent class, and s one of 0.8, 0.9, 0.95.

*On what.* Simulated studies of 20 networks (the default number of trials), drawn from a table
without replacement, 400 for each definition. Tables: those of `scripts/results/curves`, where the
first four definitions can be judged, and those that `record` makes with the default settings of a
search: networks drawn at random (sampler seed 0; network i is initialised and trained with seed i;
those of more than 15 million FLOPs an image are left out, to keep the time of a CPU bounded), with
all six.

*Criterion.* A network is **shippable** if its test accuracy beyond guessing is at least 90% of that
of the best network of its study.

    A  of the points of a front, on average at least 90% are shippable, on every table;
    B  among those that hold A, the mean number of shippable points is the larger the better: a
       front of one point offers no choice;
    C  the front has what flatness is for: the best test accuracy after weight noise (10% and 20% of
       every filter's norm, three draws of each) and after rounding the weights to 4 bits, among the
       front's points, is on average within 0.01 of the best among all networks of the study; and
       it is compared with that of the most accurate network alone;
    D  of definitions that are alike in B and C, the one that costs less to measure.

The least accuracy is judged on the validation split and shippability on the test split, so A does
not hold by construction.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import record_curves
import tables
import torch
from record_curves import text, write

import flatsearch
from flatsearch.errors import DivergedError, NonFiniteError
from flatsearch.networks.cost import count_flops
from flatsearch.settings import RunSettings
from flatsearch.spaces.space import build_model, suggest_checked
from flatsearch.training.evaluation import evaluate
from flatsearch.training.trainer import train

FOLDER = Path(__file__).resolve().parents[1] / "results" / "fronts"
STUDIES, TRIALS, DRAWS = 400, 20, 3
SHARES = (0.8, 0.9, 0.95)
SHIPPABLE = 0.9
MOST_FLOPS = 15e6
TABLES = {"digits-resnet": "resnet_small", "digits-plain": "plain_cnn"}


# --- record ---------------------------------------------------------------------------------------


def disturbed(model, size: float, seed: int):
    """Return a copy with Gaussian noise of a size relative to every filter's norm."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for p in found.parameters():
        if p.dim() > 1:
            filters = p.data.flatten(1)
            noise = torch.randn(filters.shape, generator=generator)
            scale = size * filters.norm(dim=1, keepdim=True) / math.sqrt(filters.shape[1])
            p.data += (scale * noise).view_as(p)
    return found


def rounded(model, bits: int = 4):
    """Return a copy whose filters are rounded to so many bits, symmetrically, each by its scale."""
    found = copy.deepcopy(model)
    levels = 2 ** (bits - 1) - 1
    for p in found.parameters():
        if p.dim() > 1:
            filters = p.data.flatten(1)
            scale = filters.abs().amax(1, keepdim=True).clamp_min(1e-12) / levels
            p.data = (torch.round(filters / scale) * scale).view_as(p)
    return found


def robustness(model, data) -> dict[str, float]:
    """Return the test accuracy as it is, and of disturbed and rounded copies."""
    row = dict(zip(("test_loss", "test_accuracy"), evaluate(model, data.test), strict=True))
    for percent in (10, 20):
        copies = (disturbed(model, percent / 100, seed) for seed in range(DRAWS))
        row[f"noise{percent}"] = float(np.mean([evaluate(m, data.test)[1] for m in copies]))
    row["bits4"] = evaluate(rounded(model), data.test)[1]
    return row


def record(name: str, data, networks: int) -> None:
    """Train and measure; goes on where it was."""
    settings, space = RunSettings(), flatsearch.load_space(TABLES[name])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.csv"
    rows = record_curves.read(path) if path.exists() else []
    done = {int(row["network"]) for row in rows}
    probe = data.probe.tensors()
    for index in range(networks):
        architecture = suggest_checked(space, study.ask())
        if index in done:
            continue
        torch.manual_seed(index)
        model = build_model(
            space, architecture, in_channels=data.in_channels, num_classes=data.num_classes,
            image_size=data.image_size,
        )  # fmt: skip
        if count_flops(model, data.in_channels, data.image_size) > MOST_FLOPS:
            continue
        started = time.perf_counter()
        try:
            for epoch in train(model, data, settings, seed=index):
                one = flatsearch.relative_flatness(model, probe, "main")
                row = {
                    "network": index, "epoch": epoch.epoch, "accuracy": epoch.accuracy,
                    "train_loss": epoch.train_loss, "probe_loss": one.loss,
                    "kappa": one.relative_flatness, "noise_loss": one.noise_loss(),
                }  # fmt: skip
                rows.append({key: text(value) for key, value in row.items()})
            every = flatsearch.relative_flatness(model, [t[:128] for t in probe], "all")
        except (DivergedError, NonFiniteError) as error:
            print(f"network {index}: {error}", flush=True)
            continue
        last = {"kappa_all": every.relative_flatness, "noise_loss_all": every.noise_loss()}
        last |= robustness(model, data)
        rows[-1] |= {key: text(value) for key, value in last.items()}
        write(path, rows)
        seconds = time.perf_counter() - started
        print(f"{name} {index}: {last['test_accuracy']:.3f} in {seconds:.0f} s", flush=True)
    environment = {
        "space": TABLES[name], "data": data.name, "train": len(data.train), "test": len(data.test),
        "validation": len(data.validation), "guess": largest_class(data), "epochs": settings.epochs,
        "networks": networks, "torch": torch.__version__, "python": platform.python_version(),
        "processor": platform.machine(),
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(environment, indent=1) + "\n")


def largest_class(data) -> float:
    """Return the share of the most frequent class of the test split."""
    return float(data.test.targets.bincount().max() / len(data.test))


# --- judge ----------------------------------------------------------------------------------------


def recorded() -> dict[str, dict[str, np.ndarray]]:
    """Return the tables: by name, one number per network and column, after the last epoch."""
    found = {}
    for name in tables.names():
        curves = tables.load(name)
        if curves.published:
            continue  # three epochs of a small network say nothing of the benchmark's accuracy
        last = {
            "accuracy": "accuracy", "test_accuracy": "test_accuracy", "probe_loss": "probe_loss",
            "kappa": "kappa_last", "kappa_all": "kappa_all",
        }  # fmt: skip
        table = {key: curves.column(column) for key, column in last.items()}
        table["kappa matched"] = curves.at_matched_loss("kappa_last")
        found[f"curves/{name}"] = table | {"guess": np.full(len(curves), 0.1)}
    for path in sorted(FOLDER.glob("*.csv")):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        networks: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            networks.setdefault(row["network"], []).append(row)
        whole = tuple(tuple(rows) for rows in networks.values() if rows[-1].get("test_accuracy"))
        curves = tables.Curves(path.stem, whole, 8, len(networks) - len(whole))
        columns = [c for c in rows[0] if c not in {"network", "epoch", "train_loss"}]
        table = {column: curves.column(column) for column in columns}
        table["kappa matched"] = curves.at_matched_loss("kappa")
        guess = json.loads(path.with_suffix(".json").read_text())["guess"]
        found[f"fronts/{path.stem}"] = table | {"guess": np.full(len(whole), guess)}
    for table in found.values():
        table["kappa/loss"] = table["kappa"] / table["probe_loss"]
    return found


OBJECTIVES = ("kappa", "kappa_all", "kappa/loss", "kappa matched", "noise_loss", "noise_loss_all")
PERTURBED = ("noise10", "noise20", "bits4")


def front(accuracy: np.ndarray, flatness: np.ndarray) -> np.ndarray:
    """Return which points no other dominates."""
    better = (accuracy[None] >= accuracy[:, None]) & (flatness[None] <= flatness[:, None])
    strictly = (accuracy[None] > accuracy[:, None]) | (flatness[None] < flatness[:, None])
    return ~np.any(better & strictly, axis=1)


def judge_one(table: dict[str, np.ndarray], objective: str, share: float | None) -> dict:
    """Return what the criterion asks of a definition, as means over simulated studies."""
    generator = np.random.default_rng(0)
    n = len(table["accuracy"])
    points, kept, regrets, alone = [], [], {p: [] for p in PERTURBED}, {p: [] for p in PERTURBED}
    lowest = []
    for _ in range(STUDIES):
        drawn = generator.permutation(n)[:TRIALS]
        view = {key: column[drawn] for key, column in table.items()}
        guess, accuracy, test = view["guess"][0], view["accuracy"], view["test_accuracy"]
        least = guess + 0.05 if share is None else guess + share * (accuracy.max() - guess)
        eligible = np.flatnonzero((accuracy >= least) & np.isfinite(view[objective]))
        on = eligible[front(accuracy[eligible], view[objective][eligible])]
        shippable = test - guess >= SHIPPABLE * (test.max() - guess)
        points.append(len(on))
        kept.append(int(shippable[on].sum()))
        if len(on):
            lowest.append(float(test[on].min()))
        best = int(np.argmax(accuracy))
        for p in PERTURBED:
            if p in view and len(on):
                regrets[p].append(float(view[p].max() - view[p][on].max()))
                alone[p].append(float(view[p].max() - view[p][best]))
    mean = lambda values: round(float(np.mean(values)), 4) if values else None  # noqa: E731
    ratios = [k / p for k, p in zip(kept, points, strict=True) if p]
    return {
        "points": mean(points), "shippable": mean(kept), "share_shippable": mean(ratios),
        "lowest_accuracy": mean(lowest),
        "lost": {p: mean(regrets[p]) for p in PERTURBED},
        "lost_by_most_accurate": {p: mean(alone[p]) for p in PERTURBED},
    }  # fmt: skip


def judge() -> dict:
    """Judge every definition on every table."""
    found: dict[str, dict] = {}
    for name, table in recorded().items():
        rows = found[name] = {"networks": len(table["accuracy"]), "definitions": {}}
        rows["best_test_accuracy"] = round(float(table["test_accuracy"].max()), 4)
        for objective in OBJECTIVES:
            if objective in table:
                for share in (None, *SHARES):
                    label = f"{objective}, {'guessing' if share is None else share}"
                    rows["definitions"][label] = judge_one(table, objective, share)
    return found


def main() -> None:
    """Record a table, or judge all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("record", "judge"))
    parser.add_argument("table", nargs="?", choices=TABLES)
    parser.add_argument("--networks", type=int, default=34)
    args = parser.parse_args()
    if args.what == "judge":
        found = judge()
        (FOLDER / "judged.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    if args.table is None:
        parser.error("record needs a table")
    record(args.table, flatsearch.load_data("digits"), args.networks)


if __name__ == "__main__":
    sys.exit(main())
