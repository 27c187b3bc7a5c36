"""What the measure costs, beside other ways to the same numbers.

Times are ratios to one forward pass over the same images, measured in pairs with it: in batches of
--batch-size, which is what the methods are given, and in batches of whatever size is fastest
(flatsearch cuts batches itself). Memory is the peak above that of the forward pass, each method in
a process of its own; errors are relative to a float64 computation by torch.func on a few of the
images. The floor is the multiply-adds of the forward pass, the backward passes and the cheaper
contraction, over those of the forward pass.

    python scripts/benchmarks/measure.py --out scripts/results/measure-cpu.json

The peers need the extra `bench`; a peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peers import METHODS, Problem, UnsuitableError, torch_func
from torch import Tensor, nn
from torchvision.models import resnet18

from flatsearch.flatness.contraction import cheaper, multiply_adds
from flatsearch.flatness.geometry import ConvGeometry
from flatsearch.networks.cost import count_flops

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 10
EXACT_SAMPLES = 4
FORWARD_BATCHES = (16, 32, 256)


def plain(widths: tuple[int, ...], strides: tuple[int, ...], last_map: int) -> nn.Sequential:
    """Return conv-norm-relu layers, global average pooling and a linear classifier."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, stride in zip(widths, strides, strict=True):
        layers += [nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
        layers += [nn.ReLU()]
        inputs = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES)]
    net = nn.Sequential(*layers)
    net.last_map = last_map  # type: ignore[assignment]
    return net


def resnet(*, small_images: bool) -> nn.Sequential:
    """Return torchvision's ResNet-18 as a sequence; for small images with a 3x3 stem."""
    net = resnet18(num_classes=CLASSES)
    stem = [net.conv1, net.bn1, net.relu, net.maxpool]
    if small_images:
        stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), net.bn1, net.relu]
    blocks = [*net.layer1, *net.layer2, *net.layer3, *net.layer4]
    return nn.Sequential(*stem, *blocks, net.avgpool, nn.Flatten(), net.fc)


@dataclass(frozen=True)
class Net:
    """A network of the benchmark.

    Attributes:
        build: Makes it.
        size: Height and width of its images.
        peers: Whether the other methods are run too.
    """

    build: Callable[[], nn.Sequential]
    size: int
    peers: bool = True


NETS = {
    "32-64-64-128-128, last map 8x8": Net(
        lambda: plain((32, 64, 64, 128, 128), (1, 2, 1, 2, 1), 8), 32
    ),
    "16-32-64, last map 32x32": Net(lambda: plain((16, 32, 64), (1, 1, 1), 32), 32),
    "ResNet-18, 64x64": Net(lambda: resnet(small_images=False), 64),
    "ResNet-18 with a 3x3 stem, 32x32": Net(lambda: resnet(small_images=True), 32, peers=False),
}


def prepare(name: str, options: argparse.Namespace) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a network with batch statistics that are not the initial ones, and its images."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    net, size = NETS[name].build().to(device), NETS[name].size
    x = torch.randn(options.samples, 3, size, size, device=device)
    y = torch.randint(0, CLASSES, (options.samples,), device=device)
    with torch.no_grad():
        net.train()(x[:64])
    return net.eval(), x, y


def pose(net: nn.Sequential, layers: str) -> Problem:
    """Split a network in front of the first measured convolution, or of the block it is in."""
    kernels = [f"{name}.weight" for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    if layers == "all":
        return Problem(net, nn.Identity(), net, kernels, layers)
    block, _, rest = kernels[-1].partition(".")
    prefix, tail = nn.Sequential(*net[: int(block)]), nn.Sequential(*net[int(block) :])
    return Problem(net, prefix, tail, [f"0.{rest}"], layers)


def floor(net: nn.Sequential, size: int, layers: str) -> float:
    """Return the multiply-adds of an exact method over those of the forward pass."""
    net = copy.deepcopy(net).cpu()
    forward = count_flops(net, 3, size) / 2
    convs: list[tuple[nn.Conv2d, Tensor]] = []
    keep = [
        m.register_forward_hook(lambda m, a, _: convs.append((m, a[0])))
        for m in net.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        net(torch.zeros(1, 3, size, size))
    for handle in keep:
        handle.remove()

    def read_geometry(conv: nn.Conv2d) -> ConvGeometry:
        rows, columns = conv.padding
        padding = (columns, columns, rows, rows)
        return ConvGeometry(
            conv.kernel_size, conv.stride, conv.dilation, padding, groups=conv.groups
        )

    def contraction(conv: nn.Conv2d, x: Tensor, factors: int | None) -> int:
        rows, columns = x.shape[2:]
        shape = (conv.in_channels, conv.out_channels, (rows, columns), factors)
        geometry = read_geometry(conv)
        return multiply_adds(geometry, *shape)[cheaper(geometry, *shape)]

    last = contraction(*convs[-1], None)
    if layers == "last":
        return 1 + last / forward
    # A backward pass to the first convolution's output does not need that one's own.
    first, image = convs[0]
    rows, columns = read_geometry(first).output_size(*image.shape[2:])
    back = forward - first.weight.numel() * rows * columns
    others = sum(contraction(*conv, CLASSES - 1) for conv in convs[:-1])
    return 1 + ((CLASSES - 1) * back + others + last) / forward


def seconds(call: Callable[[], object], device: str) -> float:
    """Return the time of a call: the processor's on a CPU, which others may use as well.

    On a device that of the wall, with its queue empty before and after.
    """
    if device == "cpu":
        started = time.process_time()
        call()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def run_forward(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Run the forward passes that everything is compared with."""
    with torch.no_grad():
        for x, _ in batches:
            net(x)


def peak(device: str) -> int:
    """Return the most memory used until now, in MiB."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def row(options: argparse.Namespace) -> dict[str, object]:
    """Time one method on one network, and compare its value with float64."""
    torch.set_num_threads(options.threads)
    net, x, y = prepare(options.net, options)
    batches = list(zip(x.split(options.batch_size), y.split(options.batch_size), strict=True))
    problem = pose(net, options.layers)
    double = copy.deepcopy(net).double()
    few = (x[:EXACT_SAMPLES], y[:EXACT_SAMPLES])
    exact = torch_func(pose(double, options.layers), [(few[0].double(), few[1])])
    result: dict[str, object] = {
        "net": options.net,
        "layers": options.layers,
        "method": options.method,
    }
    method = METHODS[options.method]
    cuts = [list(zip(x.split(size), y.split(size), strict=True)) for size in FORWARD_BATCHES]
    for cut in [batches, *cuts]:
        run_forward(net, cut)
    before = peak(options.device)
    ratios, fastest, times = [], [], []
    try:
        problem.exact = exact[0]
        method(problem, [few])  # warm up
        if options.method == "flatsearch, again":
            method(problem, batches)  # the first time
        if "%" in options.method:  # what the estimators stop at
            problem.exact = METHODS["flatsearch"](problem, batches)[0]
        for _ in range(options.repeats):
            elapsed = seconds(lambda: method(problem, batches), options.device)
            forward = seconds(lambda: run_forward(net, batches), options.device)
            others = [seconds(lambda c=cut: run_forward(net, c), options.device) for cut in cuts]  # type: ignore[misc]
            ratios.append(elapsed / forward)
            fastest.append(elapsed / min(forward, *others))
            times.append(elapsed)
    except (UnsuitableError, ImportError, NotImplementedError) as error:
        return result | {"note": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    memory = peak(options.device) - before
    if options.method == "flatsearch":
        result["floor_over_forward"] = floor(net, NETS[options.net].size, options.layers)
    if "%" in options.method:
        problem.exact = exact[0]
    trace, kappa = method(problem, [few])
    return result | {
        "over_forward": statistics.median(ratios),
        "over_fastest_forward": statistics.median(fastest),
        "seconds": statistics.median(times),
        "peak_mib": memory,
        "trace_relative_error": None if trace != trace else abs(trace / exact[0] - 1),
        "kappa_relative_error": None if kappa is None else abs(kappa / exact[1] - 1),  # type: ignore[operator]
    }


def show(entry: dict[str, object]) -> None:
    """Print one row."""
    if "note" in entry:
        print(f"  {entry['method']:28s} {entry['note']}", flush=True)
        return
    errors = [entry["trace_relative_error"], entry["kappa_relative_error"]]
    shown = ["-" if e is None else f"{e:.0e}" for e in errors]
    floor = f"floor {entry['floor_over_forward']:.2f}" if "floor_over_forward" in entry else ""
    print(
        f"  {entry['method']:28s} {entry['over_forward']:9.2f} {entry['over_fastest_forward']:9.2f}"
        f" {entry['peak_mib']:7d} MiB"
        f" {shown[0]:>8s} {shown[1]:>8s}  {floor}",
        flush=True,
    )


def finish(command: list[str], limit: int) -> dict[str, object]:
    """Run one row in a process of its own, and return what it found or why it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"note": f"more than {limit} s"}
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        return {"note": reason[-1][:200]}
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def installed(package: str) -> str | None:
    """Return a package's version, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(options: argparse.Namespace) -> dict[str, object]:
    """Return versions and settings, without the machine's name."""
    packages = [
        "torch",
        "torchvision",
        "backpack-for-pytorch",
        "curvlinops-for-pytorch",
        "pyhessian",
    ]
    versions = {package: installed(package) for package in packages}
    return {
        **versions,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else platform.machine(),
        "threads": options.threads,
        "samples": options.samples,
        "peer_samples": options.peer_samples,
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "dtype": "float32",
    }


def main() -> None:
    """Run the benchmark: every row in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--peer-samples", type=int, default=64, help="for everyone else")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one row")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--net", choices=NETS, help="only this network")
    parser.add_argument("--layers", choices=["last", "all"], help="only these")
    parser.add_argument("--method", choices=METHODS, help="only this one")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write the rows and the environment as JSON")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.one:
        print(json.dumps(row(options)))
        return
    rows = []
    settings = environment(options)
    print(", ".join(f"{key} {value}" for key, value in settings.items()))
    for net in [options.net] if options.net else NETS:
        for layers in [options.layers] if options.layers else ["last", "all"]:
            print(
                f"\n{net}, {layers}: over forward, over the fastest, memory, trace and kappa errors"
            )
            chosen = [options.method] if options.method else METHODS
            for method in (
                chosen
                if NETS[net].peers
                else ["flatsearch", "flatsearch, again", "forward and backward"]
            ):
                own = method.startswith("flatsearch")
                repeats = options.repeats if own or method == "forward and backward" else 1
                samples = options.samples if own and layers == "last" else options.peer_samples
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    "--net",
                    net,
                    "--layers",
                    layers,
                    "--method",
                    method,
                    "--samples",
                    str(samples),
                    "--batch-size",
                    str(options.batch_size),
                    "--repeats",
                    str(repeats),
                    "--threads",
                    str(options.threads),
                    "--device",
                    options.device,
                ]
                entry: dict[str, object] = {"net": net, "layers": layers, "method": method}
                entry |= finish(command, options.limit)
                rows.append(entry)
                show(entry)
                if options.out is not None:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    content = {"environment": settings, "rows": rows}
                    options.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
