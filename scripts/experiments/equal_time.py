"""The same time for every pruner: `flatsearch run` on CIFAR-10, the best network by the clock.

    python scripts/experiments/equal_time.py --images FOLDER

Protocol, written before any of it was run.

*Runs.* `flatsearch run --space resnet_small --objectives accuracy --max-flops 30M`, eight epochs a
network (the default), as the command line has it otherwise, for six minutes on one processor: with
the default pruner (`promote`), with Optuna's Hyperband, with the calibrated `flatness` rule (the
default before), and with none; the seeds 0 to 4 each, seed by seed, the pruners in another order
for every seed. Images are 32x32: of each class of CIFAR-10's training images 100 to train on and 50
to choose by, which do not depend on the seed. Larger networks are left out because one of them
takes half of the time. Start-up counts; one process, one thread.

*Reported.* At every moment the best validation accuracy among the networks that had been trained to
the end by then (a network that is parked or stopped is none that a user gets); the mean over seeds,
and the area under it. At the end, of the chosen network, the test accuracy (2,000 test images) as
it was trained in the search, and how many networks were begun and finished. Differences between a
pruner and none are paired by seed, with the standard error over the five.

A row per run is written to scripts/results/equal-time.csv as soon as it is done; runs that have a
row are left out. `seconds` is the run's time by the wall, `processor` that of the processor: where
they differ, the machine did other work meanwhile. `curve`: pairs of seconds, and the best
validation accuracy from then on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from PIL import Image

import flatsearch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from docs_tables import best_by_the_clock  # noqa: E402

OUT = HERE.parent / "results" / "equal-time.csv"
FIGURE = HERE.parents[1] / "docs" / "equal-time.svg"
PRUNERS = ("promote", "hyperband", "flatness", "none")
SEEDS = range(5)
SECONDS = 360
TRAIN, VALIDATION, TEST = 100, 50, 200
COLUMNS = (
    "pruner", "seed", "begun", "finished", "validation", "test", "seconds", "processor", "curve",
)  # fmt: skip


def prepare(images: Path, out: Path) -> None:
    """Write the images that are used into one file."""

    def read(split: str, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        folders = sorted(path for path in (images / split).iterdir() if path.is_dir())
        files = [sorted(folder.iterdir())[first : first + count] for folder in folders]
        pixels = [np.asarray(Image.open(file).convert("RGB")) for part in files for file in part]
        return np.stack(pixels), np.repeat(np.arange(len(folders)), count)

    splits = {
        "train": read("train", 0, TRAIN),
        "val": read("train", TRAIN, VALIDATION),
        "test": read("test", 0, TEST),
    }
    np.savez(
        out,
        **{f"{split}_images": x for split, (x, _) in splits.items()},
        **{f"{split}_labels": y for split, (_, y) in splits.items()},
    )


def processor() -> float:
    """Return the processor time of finished child processes, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(pruner: str, seed: int, data: Path) -> dict[str, Any]:
    """Search for the time and return what was found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "flatsearch", "run", "--quiet", "--space", "resnet_small"),
            *(
                "--data",
                str(data),
                "--objectives",
                "accuracy",
                "--pruner",
                pruner,
                "--max-flops",
                "30M",
            ),
            *("--seed", str(seed), "--trials", "100000", "--timeout", str(SECONDS)),
        ]
        before, begin = processor(), time.time()
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        subprocess.run(command, cwd=folder, env=os.environ | threads, check=True)
        spent, seconds = processor() - before, time.time() - begin
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/flatsearch.db")
        trials = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        trials = [trial for trial in trials if trial.datetime_complete]
        best, curve = 0.0, []
        for trial in sorted(trials, key=lambda trial: trial.datetime_complete.timestamp()):
            if trial.value > best:
                best = trial.value
                curve.append((round(trial.datetime_complete.timestamp() - begin, 1), best))
        counts = flatsearch.summarise(study).counts
        return {
            "pruner": pruner,
            "seed": seed,
            "begun": sum(counts.get(state, 0) for state in ("COMPLETE", "PRUNED", "PARKED")),
            "finished": len(trials),
            "validation": best,
            "test": test_accuracy(Path(folder), data),
            "seconds": round(seconds, 1),
            "processor": round(spent, 1),
            "curve": json.dumps(curve),
        }


def test_accuracy(folder: Path, data: Path) -> float:
    """Return what the study's best network reaches on the test images, as the search trained it."""
    export = [sys.executable, "-m", "flatsearch", "export", "--out", "best.pt2"]
    subprocess.run(export, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    classifier = flatsearch.load(folder / "best.pt2")
    with np.load(data) as arrays:
        said = classifier(arrays["test_images"].transpose(0, 3, 1, 2)).argmax(1).numpy()
        right = np.asarray(classifier.class_names)[said].astype(int) == arrays["test_labels"]
    return round(float(right.mean()), 4)


def draw(done: list[dict[str, str]]) -> None:
    """Draw the best validation accuracy so far by the clock, the mean over seeds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "flatsearch"
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(PRUNERS, ("#cc3311", "#999933", "#4477aa", "#333333"), strict=True))
    for pruner, colour in colours.items():
        curves = [best_by_the_clock(row["curve"]) for row in done if row["pruner"] == pruner]
        axes.plot(range(SECONDS + 1), np.mean(curves, axis=0), color=colour, label=pruner)
    axes.set(xlabel="seconds", ylabel="best validation accuracy so far", xlim=(0, SECONDS))
    axes.legend(loc="lower right")
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """Run what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=Path, help="CIFAR-10 as train/CLASS/*, test/CLASS/*")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    done: list[dict[str, str]] = []
    if options.out.exists():
        done = list(csv.DictReader(options.out.open()))
    if options.images:
        with tempfile.TemporaryDirectory() as folder:
            prepare(options.images, data := Path(folder, "cifar10.npz"))
            for seed in SEEDS:
                for pruner in PRUNERS[seed % 4 :] + PRUNERS[: seed % 4]:
                    if any((row["pruner"], row["seed"]) == (pruner, str(seed)) for row in done):
                        continue
                    row = run(pruner, seed, data)
                    new = not options.out.exists()
                    with options.out.open("a", newline="") as file:
                        writer = csv.DictWriter(file, COLUMNS)
                        if new:
                            writer.writeheader()
                        writer.writerow(row)
                    print({name: row[name] for name in COLUMNS[:-1]}, flush=True)
        done = list(csv.DictReader(options.out.open()))
    draw(done)


if __name__ == "__main__":
    main()
