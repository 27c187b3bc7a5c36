"""Train and measure the networks of the design, one row each.

    python scripts/experiments/generalisation/run.py --dataset fashion --data FOLDER

`docs/generalisation-protocol.md` says what is run, why, and what will be concluded; `images.py`
what FOLDER has to hold. Rows are appended to scripts/results/generalisation/DATASET.csv as networks
are done, in the order of `design.order`; what is there already is not run again, so the script can
be stopped at any time and goes on where it was. Beside it, DATASET.json says what was run where.

One network again, to compare: `--only 17 --seed 2` prints the row and how it differs from the
recorded one, and writes nothing. On the same kind of CPU with the same version of PyTorch all
numbers are the same; others round differently, and training makes that grow.

Columns: `configuration`, `seed`, `block`, the factors, `parameters`, `status` ("done", or "limit"
if the training loss did not get below 0.01 in time, or "diverged"), `epochs`, and
`NAME@CHECKPOINT`: at the checkpoints `brief` (after 5 epochs), `0.5` and `0.1` (after the first
epoch with a training loss below it) and `end`, the `epoch`, the training `loss` and `accuracy`, the
`test_loss` and `test_accuracy`, `validation_losses` and `validation_hits` (of 40 groups of 25
images: mean loss, and how many are right), and every signal of `signals.py`; `rescaled` are the
signals after rescaling every filter without changing the function. `seconds.*` is processor time.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import scipy
import torch
from design import FACTORS, SEEDS, Configuration, configurations, order
from images import GROUPS, PER_CLASS, Images, load, with_noise
from networks import build
from signals import COSTLY, SIGNALS, costly, measure, rescaled
from training import LEVELS, MILESTONES, SAM_RADIUS, score, train, weights

import flatsearch
from flatsearch.errors import NonFiniteError

FOLDER = Path(__file__).resolve().parents[2] / "results" / "generalisation"
BRIEF, LIMIT, DONE = 5, 120, 0.01
LOSSES = (0.5, 0.1)
CHECKPOINTS = ("brief", "0.5", "0.1", "end")
SCORES = [
    "epoch",
    "loss",
    "accuracy",
    "test_loss",
    "test_accuracy",
    "validation_losses",
    "validation_hits",
]
COLUMNS = [
    "configuration",
    "seed",
    "block",
    *FACTORS,
    "parameters",
    "status",
    "epochs",
    "kind",
    *(f"{name}@{checkpoint}" for checkpoint in CHECKPOINTS for name in [*SCORES, *SIGNALS]),
    *(f"{name}@end" for name in COSTLY),
    *(f"{name}@rescaled" for name in SIGNALS),
    "seconds.training",
    "seconds.measuring",
    "seconds.costly",
]


def held_out(net: torch.nn.Module, images: Images) -> dict:
    """Return the losses and accuracies on images that were not trained on."""
    losses, right = score(net, *images.test)
    found = {"test_loss": float(losses.mean()), "test_accuracy": float(right.double().mean())}
    losses, right = (part.view(GROUPS, -1) for part in score(net, *images.validation))
    found["validation_losses"] = " ".join(f"{v:.5g}" for v in losses.mean(1).tolist())
    found["validation_hits"] = " ".join(map(str, right.sum(1).tolist()))
    return found


def run(configuration: Configuration, seed: int, images: Images, limit: int = LIMIT) -> dict:
    """Train one network, and return its row."""
    levels, (x, targets) = configuration.levels, images.train
    y = with_noise(targets, levels["label_noise"], seed)
    own = 1000 * seed + configuration.index
    torch.manual_seed(own)
    net = build(levels["family"], levels["width"], levels["depth"], x.shape[1])
    initial = [w.detach().clone() for w in weights(net)]
    row = {"configuration": configuration.index, "seed": seed, "block": configuration.block}
    row |= levels | {"parameters": sum(p.numel() for p in net.parameters()), "status": "limit"}
    seconds = {"training": 0.0, "measuring": 0.0, "costly": 0.0}
    started = time.process_time()

    def lap(what: str) -> None:
        nonlocal started
        now = time.process_time()
        seconds[what] += now - started
        started = now

    for epoch, loss, _ in train(net, x, y, levels, own, limit):
        lap("training")
        row["epochs"] = epoch
        if not math.isfinite(loss):
            row["status"] = "diverged"
            break
        row["status"] = "done" if loss < DONE else "limit"
        end = loss < DONE or epoch == limit
        reached = [str(v) for v in LOSSES if loss < v and f"loss@{v}" not in row]
        reached += ["brief"] * (epoch == BRIEF or (end and epoch < BRIEF)) + ["end"] * end
        if not reached:
            continue
        try:
            signals = measure(net, x, y, initial, own)
        except NonFiniteError:
            row["status"] = "diverged"
            break
        found = {"epoch": epoch, **held_out(net, images), **signals}
        row["kind"] = found.pop("kind")
        row |= {f"{k}@{checkpoint}": v for checkpoint in reached for k, v in found.items()}
        lap("measuring")
        if end:
            row |= {f"{k}@end": v for k, v in costly(net, x, y, own).items()}
            other = measure(rescaled(net, own), x, y, initial, own)
            row |= {f"{k}@rescaled": other[k] for k in SIGNALS}
            lap("costly")
            break
    row |= {f"seconds.{k}": round(v, 1) for k, v in seconds.items()}
    return {k: f"{v:.7g}" if isinstance(v, float) else str(v) for k, v in row.items()}


def recorded(file: Path) -> list[dict]:
    """Return the rows of a file; a last line that was not finished is cut off."""
    if not file.exists():
        return []
    content = file.read_bytes()
    if not content.endswith(b"\n"):
        file.write_bytes(content[: content.rfind(b"\n") + 1])
    with file.open(newline="") as source:
        rows = list(csv.DictReader(source))
    if rows and list(rows[0]) != COLUMNS:
        raise SystemExit(f"{file} has other columns than this version writes")
    return rows


def append(file: Path, row: dict) -> None:
    """Write one row, whole, to the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists() or file.stat().st_size == 0
    with file.open("a", newline="") as target:
        writer = csv.DictWriter(target, COLUMNS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
        target.flush()
        os.fsync(target.fileno())


def describe(file: Path, dataset: str, images: Images) -> None:
    """Write what is run where, a list entry per place and version."""
    place = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "flatsearch": flatsearch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "images": images.digest,
    }
    places = json.loads(file.read_text())["places"] if file.exists() else []
    settings = {
        "dataset": dataset,
        "train": 10 * PER_CLASS,
        "image": list(images.train[0].shape[1:]),
        "limit": LIMIT,
        "done": DONE,
        "brief": BRIEF,
        "levels": LEVELS,
        "sam_radius": SAM_RADIUS,
        "milestones": MILESTONES,
        "factors": FACTORS,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    every = places if place in places else [*places, place]
    file.write_text(json.dumps({**settings, "places": every}, indent=1) + "\n")


def compare(row: dict, rows: list[dict]) -> None:
    """Print a row, and how it differs from the one that is recorded."""
    print(json.dumps(row, indent=1))
    key = row["configuration"], row["seed"]
    old = next((r for r in rows if (r["configuration"], r["seed"]) == key), None)
    if old is None:
        print("no such row is recorded")
        return
    names = [c for c in COLUMNS if "seconds" not in c and row.get(c, "") != old[c]]
    for name in names:
        print(f"{name}: recorded {old[name]}, now {row.get(name, '')}")
    print(f"{len(names)} of {len(COLUMNS)} columns differ from the recorded row")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, choices=["fashion", "cifar10"])
    parser.add_argument("--data", required=True, type=Path, help="folder with the images")
    parser.add_argument("--only", type=int, help="run this configuration again and compare")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="the seed for --only")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no network after")
    parser.add_argument("--networks", type=int, help="stop after so many")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, file = load(args.dataset, args.data), args.out / f"{args.dataset}.csv"
    rows = recorded(file)
    if args.only is not None:
        every = configurations()
        if not 0 <= args.only < len(every):
            parser.error(f"--only must be from 0 to {len(every) - 1} but got {args.only}")
        compare(run(every[args.only], args.seed or 0, images), rows)
        return
    describe(file.with_suffix(".json"), args.dataset, images)
    have = {(int(row["configuration"]), int(row["seed"])) for row in rows}
    missing = [(c, seed) for c, seed in order() if (c.index, seed) not in have][: args.networks]
    started = time.monotonic()
    for configuration, seed in missing:
        if time.monotonic() - started > 60 * args.minutes:
            break
        row = run(configuration, seed, images)
        append(file, row)
        took = sum(float(value) for name, value in row.items() if name.startswith("seconds."))
        print(
            f"{args.dataset} {configuration.index}, seed {seed}: {row['status']} after"
            f" {row['epochs']} epochs, {took:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
