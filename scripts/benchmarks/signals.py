"""What the proxies cost, in images of training.

    python scripts/benchmarks/signals.py [--image-size 16] [--networks 3] [--device cpu]
        [--out scripts/results/signals-cpu.json]

Of random small networks of two built-in spaces, on random images of three channels and ten
classes: the time of every proxy of `flatsearch.signals` on 128 images, and of a training step on 64
(forward, backward and step of the optimiser), each the least of three after one to warm up:
processor time of one thread, or the time of a GPU. A proxy's cost is its time as a number of images
that training would take in that time, median over the networks, with the least and the largest.
Beside them the measure of the last convolution on 128 images, and of all convolutions.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import optuna
import torch

import flatsearch
from flatsearch.networks.cost import count_flops
from flatsearch.signals.compute import ProxyInput, initial_weights, measure
from flatsearch.signals.table import PROXIES
from flatsearch.spaces.space import build_model, suggest_checked

SPACES = ("plain_cnn", "resnet_small")
IMAGES, BATCH, REPEATS = 128, 64, 3
# Of the size of the networks in the recorded tables, so that a CPU gets somewhere.
MAX_FLOPS = 10e6


def clock(device: torch.device) -> float:
    """Return seconds: of this process, which others do not slow down, or since any moment."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def least(function, device: torch.device) -> float:
    """Return the least seconds of a call, after one to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        started = clock(device)
        function()
        times.append(clock(device) - started)
    return min(times[1:])


def train_step(model, x, y) -> None:
    """Take a step on a batch."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def costs(model, x, y) -> dict[str, float]:
    """Return the cost of everything for one network, in images of training."""
    given = ProxyInput(model, x, y, initial_weights(model))
    functions = {name: lambda name=name: measure([name], given) for name in PROXIES}
    functions["flatness"] = lambda: flatsearch.relative_flatness(model, (x, y))
    functions["flatness_all"] = lambda: flatsearch.relative_flatness(model, (x, y), layers="all")
    image = least(lambda: train_step(model, x[:BATCH], y[:BATCH]), x.device) / BATCH
    return {name: least(function, x.device) / image for name, function in functions.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--networks", type=int, default=3, help="of each space")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = torch.device(options.device)
    x = torch.randn(IMAGES, 3, options.image_size, options.image_size, device=device)
    y = torch.arange(IMAGES, device=device) % 10
    found: list[dict[str, float]] = []
    for name in SPACES:
        space = flatsearch.load_space(name)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        count = 0
        while count < options.networks:
            architecture = suggest_checked(space, study.ask())
            model = build_model(space, architecture, in_channels=3, num_classes=10,
                                image_size=options.image_size)  # fmt: skip
            if count_flops(model, 3, options.image_size) > MAX_FLOPS:
                continue
            count += 1
            found.append(costs(model.to(device), x, y))
            print(f"network {len(found)}", flush=True)
    table = {}
    for signal in found[0]:
        values = np.array([row[signal] for row in found])
        table[signal] = {"median": round(float(np.median(values))), "least": round(values.min()),
                         "largest": round(values.max())}  # fmt: skip
        print(f"{signal:26}", *(f"{value:8,}" for value in table[signal].values()))
    if options.out:
        environment = {
            "torch": torch.__version__, "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        fields = {"unit": "images of training", "images": IMAGES, "image_size": options.image_size,
                  "networks": len(found), "spaces": SPACES, "costs": table,
                  "environment": environment}  # fmt: skip
        options.out.write_text(json.dumps(fields, indent=1) + "\n")


if __name__ == "__main__":
    main()
