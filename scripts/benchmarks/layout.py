"""A step of training in both layouts of maps in memory, beside the rule that chooses one.

    python scripts/benchmarks/layout.py [--size 8] [--spaces resnet_small ...] [--seed 2]

Random candidates of each space take a step (forward and backward, 64 random images, float32) in
both layouts, in turns; the least of three processor times counts. Rows are appended to
scripts/results/layout.csv. The means over all rows of that file are printed: of what the rule's
layout takes, and of what the better one does, each as a share of the contiguous one.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from statistics import fmean

import optuna
import torch
import torch.nn.functional as F

from flatsearch import load_space
from flatsearch.spaces.space import build_model
from flatsearch.training.computation import Computation, choose_computation

RESULT = Path(__file__).parents[1] / "results" / "layout.csv"
SPACES = ("resnet_small", "plain_cnn", "mobilenet_small", "convnext_small", "densenet_small")
COLUMNS = ("torch", "capability", "space", "size", "seed", "rule", "contiguous", "channels_last")
IMAGES, CLASSES, TIMES = 64, 10, 3


def step(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, layout: str) -> float:
    """Return the processor time of a step of training."""
    computation = Computation("float32", layout)  # type: ignore[arg-type]
    computation.convert(model)
    model.train().zero_grad()
    images = computation.lay_out(x)
    started = time.process_time()
    F.cross_entropy(model(images), y).backward()
    return time.process_time() - started


def main() -> None:
    """Time candidates and print the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--spaces", nargs="*", default=SPACES)
    parser.add_argument("--size", type=int, default=8, help="height and width of the images")
    parser.add_argument("--networks", type=int, default=14, help="of each space")
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    channels = 1 if options.size < 16 else 3
    x = torch.randn(IMAGES, channels, options.size, options.size)
    y = torch.arange(IMAGES) % CLASSES
    environment = [torch.__version__, torch.backends.cpu.get_cpu_capability()]
    new = not RESULT.exists()
    with RESULT.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        for name in options.spaces:
            space = load_space(name)
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(options.seed))
            for _ in range(options.networks):
                model = build_model(
                    space,
                    space.suggest(study.ask()),
                    in_channels=channels,
                    num_classes=CLASSES,
                    image_size=options.size,
                )
                rule = choose_computation(model, channels, options.size).memory_format
                layouts = ("contiguous", "channels_last")
                turns = [[step(model, x, y, layout) for layout in layouts] for _ in range(TIMES)]
                least = [f"{min(times):.5f}" for times in zip(*turns, strict=True)]
                writer.writerow([*environment, name, options.size, options.seed, rule, *least])
                file.flush()
    with RESULT.open() as file:
        rows = [
            ({k: float(row[k]) for k in COLUMNS[-2:]}, row["rule"]) for row in csv.DictReader(file)
        ]
    chosen = fmean(times[rule] / times["contiguous"] for times, rule in rows)
    better = fmean(min(times.values()) / times["contiguous"] for times, _ in rows)
    print(f"{len(rows)} networks: by the rule {chosen:.2f}, in the better layout {better:.2f}")


if __name__ == "__main__":
    main()
