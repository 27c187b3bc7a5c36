"""Whether candidates, or their order, pay for being trained in bfloat16.

    python scripts/experiments/precision.py digits
    python scripts/experiments/precision.py FOLDER --image-size 32 --images 2000

The same random candidates are trained in float32 with two seeds, and in bfloat16 with the first of
them. What bfloat16 changes is compared with what another seed changes: the mean of the accuracies,
and the order of the candidates (Kendall's tau of their validation losses). Rows are appended to
scripts/results/precision.csv; candidates that have theirs are not trained again.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import sys
from pathlib import Path
from statistics import fmean, stdev

import optuna
import torch
from scipy.stats import kendalltau

from flatsearch import RunSettings, load_data, load_space
from flatsearch.search.candidates import Candidates
from flatsearch.training.trainer import train

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from search import draw, shortened

RESULT = Path(__file__).parents[1] / "results" / "precision.csv"
PLACE = ("torch", "capability", "space", "data", "size", "images", "epochs")
COLUMNS = (*PLACE, "candidate", "precision", "seed", "accuracy", "loss")
RUNS = (("float32", 0), ("float32", 1), ("bfloat16", 0))


def recorded() -> list[dict[str, str]]:
    """Return the rows there are."""
    if not RESULT.exists():
        return []
    with RESULT.open(newline="") as file:
        return list(csv.DictReader(file))


def report(rows: list[dict[str, str]]) -> None:
    """Print what another precision changes, and another seed."""
    for place in sorted({tuple(row[name] for name in PLACE) for row in rows}):
        found = {
            (row["precision"], int(row["seed"]), int(row["candidate"])): row
            for row in rows
            if tuple(row[name] for name in PLACE) == place
        }
        whole = [c for c in range(len(found)) if all((*run, c) in found for run in RUNS)]
        if len(whole) < 2:
            continue
        base = [found["float32", 0, c] for c in whole]
        for run in RUNS[1:]:
            other = [found[(*run, c)] for c in whole]
            more = [
                100 * (float(a["accuracy"]) - float(b["accuracy"]))
                for a, b in zip(other, base, strict=True)
            ]
            losses = ([float(row["loss"]) for row in part] for part in (other, base))
            mean, error = fmean(more), stdev(more) / math.sqrt(len(more))
            print(
                f"{' '.join(place)}: {len(whole)} candidates, {run[0]} with seed {run[1]} less"
                f" float32 with seed 0: {mean:+.2f} ± {error:.2f} points of accuracy, tau of the"
                f" losses {kendalltau(*losses).statistic:.2f}"
            )


def main() -> None:
    """Train what is missing, and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("data")
    parser.add_argument("--space", default="resnet_small")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="training images; all where not given")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=24)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    settings = RunSettings(epochs=options.epochs, image_size=options.image_size)
    data = load_data(options.data, **settings.data_options())
    if options.images:
        data = shortened(data, options.images, 1000)
    space, name = load_space(options.space), Path(options.data).name
    study, candidates = optuna.create_study(), Candidates(space, data, settings)
    rows = recorded()
    have = {tuple(row[column] for column in COLUMNS[:-2]) for row in rows}
    capability = torch.backends.cpu.get_cpu_capability()
    data_set = (options.space, name, data.image_size, len(data.train), options.epochs)
    place = tuple(map(str, (torch.__version__, capability, *data_set)))
    for index, parameters in enumerate(draw(space, options.candidates, 0)):
        study.enqueue_trial(parameters)
        candidate = candidates.propose(study.ask())
        for precision, seed in RUNS:
            run = (*place, str(index), precision, str(seed))
            if run in have:
                continue
            model = candidates.build(dataclasses.replace(candidate, seed=seed))
            recipe = dataclasses.replace(settings, precision=precision)
            *_, last = train(model, data, recipe, seed=seed)
            new = not RESULT.exists()
            with RESULT.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(COLUMNS)
                writer.writerow((*run, f"{last.accuracy:.5f}", f"{last.loss:.5f}"))
    report(recorded())


if __name__ == "__main__":
    main()
