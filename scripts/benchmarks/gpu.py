"""Everything that a GPU is needed for, measured in less than ten minutes.

    python scripts/benchmarks/gpu.py --data FOLDER --out scripts/results/gpu.json
    python scripts/benchmarks/gpu.py --device cpu --quick       # shows that it runs

Parts, each of which can be chosen by --parts:

*numbers*   what only a real device shows: the measure is that of the CPU in float64, whatever is
            allowed of TF32, of the same kind (so the proof knows the device's operations), and the
            same again; a seed gives the same training again.
*spaces*    the same for candidates of every search space, and whether steps that are replayed as
            CUDA graphs train them as plain steps do.
*program*   the commands: a search by two workers, its report, a final training, the export.
*step*      images a second in training, without and with CUDA graphs, by precision and layout.
*measure*   relative flatness, first and again (`FlatnessMeter`), over a forward pass, beside
            torch.func and BackPACK.
*search*    candidates an hour beside plain loops, and seconds by phase: `search.py`.
*workers*   candidates an hour with one process and with several.
*accuracy*  a good resnet_small candidate to 90% on the images of --data, and how long that takes.

`utilisation` is the mean, over a part, of the share of the time in which the device was computing
anything, as its driver says. Nothing that is printed is a claim about another device.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure
import optuna
import search
import torch
from peers import METHODS

from flatsearch import FlatnessMeter, RunSettings, load_data, load_space, relative_flatness
from flatsearch.signals.table import PROXIES
from flatsearch.spaces.registry import space_names
from flatsearch.spaces.space import build_model
from flatsearch.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from flatsearch import ImageData

# A good one of a search on CIFAR-10, wide enough for the accuracy that is asked for.
GOOD = {
    "stem_width": 32, "stages": 3, "blocks_1": 3, "blocks_2": 3, "widen_2": 2.0, "blocks_3": 3,
    "widen_3": 2.0, "block": "basic", "kernel": 3, "activation": "relu", "pre_activation": True,
    "squeeze_excitation": False,
}  # fmt: skip
# The same with less of everything, to see that it runs.
SMALL = GOOD | {"stem_width": 16, "stages": 1, "blocks_1": 1}
PEER_BATCH = 32
PEERS = ("torch.func vmap(jacrev)", "BackPACK DiagGGNExact")


def wait(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str, repeats: int = 3) -> float:
    """Return the least time that a call took."""
    times = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


@contextlib.contextmanager
def watched(device: str) -> Iterator[list[float]]:
    """Yield a list that fills with the device's utilisation, five times a second."""
    samples: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        with contextlib.suppress(Exception):  # the driver's library may be missing
            while not ended.wait(0.2):
                samples.append(torch.cuda.utilization() / 100)

    thread = threading.Thread(target=sample)
    if device != "cpu":
        thread.start()
    try:
        yield samples
    finally:
        ended.set()
        if device != "cpu":
            thread.join()


def images(options: argparse.Namespace) -> ImageData:
    """Return the images of --data, or scikit-learn's digits at 32x32."""
    size = None if options.data or options.quick else 32
    data = load_data(options.data or "digits", image_size=size)
    return search.shortened(data, 256, 128) if options.quick else data


def candidate(
    data: ImageData, options: argparse.Namespace, device: str, parameters: dict[str, Any] = GOOD
) -> nn.Module:
    """Return a candidate, the good one by default, with its first weights."""
    space = load_space("resnet_small")
    torch.manual_seed(0)
    architecture = space.suggest(optuna.trial.FixedTrial(SMALL if options.quick else parameters))
    net: nn.Module = space.build(
        architecture, in_channels=data.in_channels, num_classes=data.num_classes
    )
    return net.to(device)


def numbers(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the measure with the CPU's in float64, and two trainings with each other."""
    data, found = images(options), dict[str, Any]()
    few = tuple(part[:32] for part in data.probe.tensors())
    net = candidate(data, options, "cpu").eval()
    exact = relative_flatness(copy.deepcopy(net).double(), few, "all", dtype=torch.float64)
    moved, probe = copy.deepcopy(net).to(options.device), [p.to(options.device) for p in few]
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        meter = FlatnessMeter(moved, "all")
        first, again = meter(tuple(probe)), meter(tuple(probe))
        error = abs(again.relative_flatness / exact.relative_flatness - 1)
        found[f"relative_error, TF32 {'allowed' if tf32 else 'not allowed'}"] = error
    found |= {"kind": again.kind, "kind_on_cpu": exact.kind, "proofs": meter.proofs}
    found["again_is_the_same"] = first == again
    settings, losses = RunSettings(epochs=1), []
    for _ in range(2):
        trainer = Trainer(
            candidate(data, options, options.device), data.to(options.device), settings, seed=0
        )
        losses.append(trainer.epoch()[0])
    found["same_seed_same_loss"] = losses[0] == losses[1]
    return found


def spaces(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the measure and the training of candidates of every space with the plain ones.

    In training nothing may be rounded to TF32 or summed in another order, so that what is left is
    what a graph does.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    data, rows = images(options), []
    few = tuple(part[:16] for part in data.probe.tensors())
    there = [part.to(options.device) for part in few]
    short = search.shortened(data, 256, 64).to(options.device)
    for name in space_names():
        space = load_space(name)
        architecture = space.suggest(
            optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        )

        def build() -> nn.Module:
            torch.manual_seed(0)
            return build_model(
                space,  # noqa: B023
                architecture,  # noqa: B023
                in_channels=data.in_channels,
                num_classes=data.num_classes,
                image_size=data.image_size,
            )

        net = build()
        exact = relative_flatness(copy.deepcopy(net).double(), few, "all", dtype=torch.float64)
        found = relative_flatness(net.to(options.device), tuple(there), "all")
        row: dict[str, Any] = {"space": name, "layers": len(found.layers)}
        row["relative_error"] = abs(found.relative_flatness / exact.relative_flatness - 1)
        row["same_kind"] = found.kind == exact.kind
        for graphs in (False, True):
            settings = RunSettings(
                epochs=2, batch_size=32, lr=0.01, precision="float32", cuda_graphs=graphs
            )
            trainer = Trainer(build().to(options.device), short, settings, seed=0)
            torch.manual_seed(1)  # of dropout
            row[f"loss, {'graphs' if graphs else 'plain'}"] = [trainer.epoch()[0] for _ in "12"]
            if trainer.graph is not None:
                row |= {"replays": trainer.graph.replays, "failure": trainer.graph.failure}
        rows.append(row)
        print(json.dumps(row), flush=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = False, True
    return {"rows": rows, "worst": max(row["relative_error"] for row in rows)}


def program(options: argparse.Namespace) -> dict[str, Any]:
    """Run the commands on the device as a user would."""
    found: dict[str, Any] = {}
    run = ["run", "--space", "resnet_small", "--device", options.device, "--workers", 2]
    run += ["--trials", 2 if options.quick else 4, "--epochs", 1 if options.quick else 2]
    run += ["--signals", ",".join(PROXIES)]
    train = ["train", "--trial", "best", "--device", options.device, "--epochs", 1]
    with tempfile.TemporaryDirectory() as folder:
        for arguments in (run, ["report"], train, ["export", "--format", "pt2"]):
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "flatsearch", *map(str, arguments)],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            row: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 1)}
            row["exit_code"] = done.returncode
            if done.returncode:
                row["said"] = (done.stdout + done.stderr)[-2000:]
            found[str(arguments[0])] = row
    return found


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Time an epoch of the good candidate, and of a small one, in every way."""
    data, rows = images(options).to(options.device), []
    space = load_space("resnet_small")
    drawn = search.draw(space, 1, 0)[0]
    for name, parameters in (("good", GOOD), ("drawn", drawn)):
        for precision, memory_format, graphs in (
            ("float32", "contiguous", False),
            ("float32", "channels_last", False),
            ("bfloat16", "channels_last", False),
            ("float32", "contiguous", True),
            ("float32", "channels_last", True),
            ("bfloat16", "contiguous", True),
            ("bfloat16", "channels_last", True),
        ):
            settings = RunSettings(
                epochs=100, precision=precision, memory_format=memory_format, cuda_graphs=graphs,
                batch_size=64 if options.quick else 128,
            )  # fmt: skip
            net = candidate(data, options, options.device, parameters)
            trainer = Trainer(net, data, settings, seed=0)
            trainer.epoch()  # warms up, and captures
            took = seconds(trainer.epoch, options.device, repeats=1)
            row: dict[str, Any] = {"candidate": name, "precision": precision}
            row |= {"memory_format": memory_format, "graphs": graphs}
            row["images_per_second"] = len(data.train) / took
            if trainer.graph is not None:
                row |= {"replays": trainer.graph.replays, "failure": trainer.graph.failure}
            rows.append(row)
    return {"rows": rows, "drawn": drawn}


def time_measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time the measure, first and again, beside two peers."""
    rows = []
    size = {"samples": 8 if options.quick else 256, "device": options.device}
    for name in list(measure.NETS)[: 1 if options.quick else None]:
        for layers in ("last", "all"):
            net, x, y = measure.prepare(name, argparse.Namespace(**size))
            meter = FlatnessMeter(net, layers)
            meter((x, y))
            with torch.no_grad():
                forward = seconds(lambda: net(x), options.device)  # noqa: B023
            row: dict[str, Any] = {"net": name, "layers": layers, "forward_seconds": forward}
            first = seconds(lambda: relative_flatness(net, (x, y), layers), options.device)  # noqa: B023
            again = seconds(lambda: meter((x, y)), options.device)  # noqa: B023
            row |= {"first": first / forward, "again": again / forward, "proofs": meter.proofs}
            row["floor"] = measure.floor(net, measure.NETS[name].size, layers)
            batches = list(zip(x.split(PEER_BATCH), y.split(PEER_BATCH), strict=True))
            rows.append(row | {p: time_peer(p, net, layers, batches, options) for p in PEERS})
    return {"rows": rows}


def time_peer(
    peer: str,
    net: nn.Sequential,
    layers: str,
    batches: list[tuple[Tensor, Tensor]],
    options: argparse.Namespace,
) -> dict[str, float] | str:
    """Return the time that a peer takes, and for how many images; or why it does not."""
    try:
        problem = measure.pose(net, layers)
        took = seconds(lambda: METHODS[peer](problem, batches), options.device, 2)
    except Exception as error:  # it may not be installed, or have no memory
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return {"seconds": took, "images": sum(len(x) for x, _ in batches)}


def run_search(options: argparse.Namespace) -> dict[str, Any]:
    """Compare whole searches."""
    given = argparse.Namespace(
        space="resnet_small",
        data=options.data or "digits",
        data_root="data",
        image_size=None if options.data else 16,
        images=128 if options.quick else 20_000 if options.data else None,
        validation=128 if options.quick else 5_000,
        candidates=1 if options.quick else 3,
        epochs=1 if options.quick else 4,
        batch_size=64 if options.quick else 128,
        layers=None,
        device=options.device,
        loaders=1 if options.quick else 8,
        threads=torch.get_num_threads(),
        workers=1,
        beside=["tuned", "flatsearch"],
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for found in search.compare(given, folder):
            print(json.dumps(found["rows"][-1]), flush=True)
    return found | {"given": {k: v for k, v in vars(given).items() if k not in {"data", "device"}}}


def workers(options: argparse.Namespace) -> dict[str, Any]:
    """Time `flatsearch run` with one process and with several."""
    found = {}
    data = ["--data", options.data] if options.data else ["--image-size", 16]
    for count in (1, 2) if options.quick else (1, 8):
        trials = 2 if options.quick else 6 if count == 1 else 2 * count
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "flatsearch", "run", "--space", "resnet_small", *data,
                "--device", options.device, "--workers", count, "--trials", trials,
                "--epochs", 1 if options.quick else 2, "--sampler", "random", "--pruner", "none",
            ]  # fmt: skip
            started = time.perf_counter()
            subprocess.run(list(map(str, command)), cwd=folder, check=True, capture_output=True)
            whole = time.perf_counter() - started
            storage = f"sqlite:///{folder}/flatsearch.db"
            study = optuna.load_study(study_name=None, storage=storage)
        times = [(t.datetime_start, t.datetime_complete) for t in study.trials if t.values]
        searching = (max(b for _, b in times) - min(a for a, _ in times)).total_seconds()  # type: ignore[operator, type-var]
        found[count] = {
            "candidates": len(times),
            "candidates_per_hour": 3600 * len(times) / searching,
            "seconds_besides": whole - searching,
        }
    return {"by_workers": found}


def accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Train the good candidate, and say when it was how good on the test images."""
    data = images(options).to(options.device)
    settings = RunSettings(
        epochs=1 if options.quick else 45,
        batch_size=256,
        lr=0.2,
        weight_decay=5e-4,
    )
    whole = data.merged()
    trainer = Trainer(
        candidate(data, options, options.device), dataclasses.replace(whole, validation=data.test),
        settings, seed=0, label_smoothing=0.1,
    )  # fmt: skip
    wait(options.device)
    started = time.perf_counter()
    epochs = []
    for result in trainer.results():
        took = time.perf_counter() - started
        epochs.append({"seconds": round(took, 2), "test_accuracy": result.accuracy})
    return {"epochs": epochs, "target": "0.90 in 60 s", **trainer.computation.to_dict()}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "numbers": numbers,
    "spaces": spaces,
    "program": program,
    "step": step,
    "measure": time_measure,
    "search": run_search,
    "workers": workers,
    "accuracy": accuracy,
}


def main() -> None:
    """Run the parts; one that fails does not end the others."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", help="CIFAR-10, as `flatsearch run` takes it")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, Any] = {
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": platform.machine()
            if options.device == "cpu"
            else torch.cuda.get_device_name(),
            "quick": options.quick,
        }
    }
    failed = False
    for part in options.parts.split(","):
        started = time.perf_counter()
        try:
            with watched(options.device) as samples:
                found[part] = PARTS[part](options)
            found[part]["utilisation"] = statistics.fmean(samples) if samples else math.nan
        except Exception as error:
            traceback.print_exc()
            found[part], failed = {"error": f"{type(error).__name__}: {error}"}, True
        found[part]["part_seconds"] = round(time.perf_counter() - started, 1)
        print(part, json.dumps(found[part], indent=1), flush=True)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
