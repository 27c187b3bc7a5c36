"""A step of training in every precision and layout of maps, beside what the rule chooses.

    python scripts/benchmarks/computation.py [--size 8] [--spaces resnet_small ...] [--seed 2]

Random candidates of each space take a step (forward and backward, 64 random images) in float32 and,
where the processor multiplies it natively, in bfloat16, each with channels side by side and not, in
turns; the least of four processor times counts. Rows are appended to
scripts/results/computation.csv; there is no time of what torch computes wrongly. The means over all
rows of that file are printed, per processor: of what the rule's choice takes, and of what the best
one does, each as a share of float32 with contiguous maps.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import optuna
import torch
import torch.nn.functional as F

from flatsearch import load_space
from flatsearch.spaces.space import build_model
from flatsearch.training.computation import Computation, choose_computation, computes_bfloat16
from flatsearch.training.memory import freed_memory_kept

RESULT = Path(__file__).parents[1] / "results" / "computation.csv"
SPACES = ("resnet_small", "plain_cnn", "mobilenet_small", "convnext_small", "densenet_small")
WAYS = [(p, f) for p in ("float32", "bfloat16") for f in ("contiguous", "channels_last")]
COLUMNS = ("torch", "capability", "space", "size", "seed", "rule", *map(" ".join, WAYS))
IMAGES, CLASSES, TIMES = 64, 10, 4


def step(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, way: Computation) -> float:
    """Return the processor time of a step of training."""
    way.convert(model)
    model.train().zero_grad()
    images = way.lay_out(x)
    started = time.process_time()
    with way.autocast(x.device):
        loss = F.cross_entropy(model(images), y)
    loss.backward()
    return time.process_time() - started


def times(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[str]:
    """Return the least time of each way; nothing for ways that are not computed here."""
    ways = []
    for precision, layout in WAYS:
        chosen = choose_computation(
            model, x.shape[1], x.shape[2], precision=precision, memory_format=layout
        )
        native = precision == "float32" or computes_bfloat16(x.device)
        ways.append(chosen if native and chosen.memory_format == layout else None)
    turns = [[step(model, x, y, way) for way in ways if way is not None] for _ in range(TIMES)]
    least = iter(map(min, zip(*turns, strict=True)))
    return ["" if way is None else f"{next(least):.5f}" for way in ways]


def measure(options: argparse.Namespace) -> None:
    """Time candidates; append a row for each."""
    channels = 1 if options.size < 16 else 3
    x = torch.randn(IMAGES, channels, options.size, options.size)
    y = torch.arange(IMAGES) % CLASSES
    capability = torch.backends.cpu.get_cpu_capability()
    native = " bfloat16" if computes_bfloat16(x.device) else ""
    new = not RESULT.exists()
    with RESULT.open("a", newline="") as file, freed_memory_kept(x.device):
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
                rule = choose_computation(model, channels, options.size)
                place = [torch.__version__, capability + native, name, options.size, options.seed]
                chosen = f"{rule.precision} {rule.memory_format}"
                writer.writerow([*place, chosen, *times(model, x, y)])
                file.flush()


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
    measure(options)
    shares = defaultdict(list)
    with RESULT.open() as file:
        for row in csv.DictReader(file):
            known = {way: float(row[way]) for way in COLUMNS[6:] if row[way]}
            base = known["float32 contiguous"]
            share = known[row["rule"]] / base, min(known.values()) / base
            shares[row["capability"]].append(share)
    for place, found in shares.items():
        chosen, best = map(fmean, zip(*found, strict=True))
        print(f"{place}: {len(found)} networks, by the rule {chosen:.2f}, at best {best:.2f}")


if __name__ == "__main__":
    main()
