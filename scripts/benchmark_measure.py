"""Time of the measure over one forward pass, beside torch.func and BackPACK on the same work.

Every method gets the same network, images and thread count in the same run, and its value is
compared with float64. The peers get their best case: the layers before the measured convolution
are run without gradients, and only its kernel is differentiated.

    python scripts/benchmark_measure.py --out scripts/results/measure-cpu.json

The peers need the extra `bench`.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import flatsearch
from flatsearch.flatness.contraction import ConvGeometry, cheaper, multiply_adds
from flatsearch.models import count_flops

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 10
SIZE = 32
# Widths and strides: a five-layer network whose last map is 8x8, a three-layer one at 32x32.
NETS = {
    "32-64-64-128-128, last map 8x8": ((32, 64, 64, 128, 128), (1, 2, 1, 2, 1)),
    "16-32-64, last map 32x32": ((16, 32, 64), (1, 1, 1)),
}
Result = tuple[float, float | None]  # trace, kappa


def network(widths: tuple[int, ...], strides: tuple[int, ...]) -> nn.Sequential:
    """Return conv-norm-relu layers, global average pooling and a linear classifier."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, stride in zip(widths, strides, strict=True):
        layers += [nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
        layers += [nn.ReLU()]
        inputs = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES)]
    return nn.Sequential(*layers)


def split(net: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the layers before the last convolution, and the rest."""
    last = max(i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d))
    return nn.Sequential(*list(net)[:last]), nn.Sequential(*list(net)[last:])


def softmax_root(logits: Tensor) -> Tensor:
    """Return L with L L^T = diag(p) - p p^T, (N, K, K)."""
    p = logits.softmax(1)
    return torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]


def contract(roots: Tensor, W: Tensor) -> Result:
    """Return (trace, kappa) from factors (N, K, C, d) of the per-sample matrices."""
    W = W.flatten(1)
    kappa = (torch.einsum("nkcd,ce->nked", roots, W @ W.T) * roots).sum() / len(roots)
    return float(roots.square().sum() / len(roots)), float(kappa)


def run_forward(net: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Run the forward passes that everything is compared with."""
    with torch.no_grad():
        for x, _ in batches:
            net(x)


def ours(net: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> Result:
    """Measure with flatsearch."""
    result = flatsearch.relative_flatness(net, batches)
    return result.hessian_trace, result.relative_flatness


def forward_backward(net: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> Result:
    """Run what a training step costs, for scale; it measures nothing."""
    for x, y in batches:
        nn.functional.cross_entropy(net(x), y).backward()
    net.zero_grad()
    return float("nan"), None


def torch_func(net: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> Result:
    """Per-sample Jacobians of the logits in the kernel by vmap(jacrev)."""
    prefix, tail = split(net)
    W = tail[0].weight.detach()

    def logits(weight: Tensor, h: Tensor) -> Tensor:
        return functional_call(tail, {"0.weight": weight}, (h[None],))[0]

    jacobian = vmap(jacrev(logits), in_dims=(None, 0))
    total, n = [0.0, 0.0], 0
    for x, _ in batches:
        with torch.no_grad():
            h = prefix(x)
            J = jacobian(W, h).flatten(3)  # (N, K, C, d)
            L = softmax_root(tail(h))
            part = contract(torch.einsum("nkl,nkcd->nlcd", L, J), W)
        total = [t + p * len(x) for t, p in zip(total, part, strict=True)]  # type: ignore[operator]
        n += len(x)
    return total[0] / n, total[1] / n


def backpack_method(name: str) -> Callable[[nn.Sequential, list[tuple[Tensor, Tensor]]], Result]:
    """Return a method that uses one of BackPACK's extensions."""
    from backpack import backpack, extend, extensions

    def method(net: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> Result:
        prefix, tail = split(net)
        with torch.no_grad():
            side = tail[0](prefix(batches[0][0][:1])).shape[-1]
        # SqrtGGNExact knows no adaptive pooling; on a square map this is the same function.
        pool = {nn.AdaptiveAvgPool2d: nn.AvgPool2d(side)}
        tail = extend(nn.Sequential(*(pool.get(type(m), copy.deepcopy(m)) for m in tail)))
        loss = extend(nn.CrossEntropyLoss())
        for parameter in tail.parameters():
            parameter.requires_grad_(parameter is tail[0].weight)
        total, n = [0.0, 0.0], 0
        for x, y in batches:
            with torch.no_grad():
                h = prefix(x)
            with backpack(getattr(extensions, name)()):
                loss(tail(h), y).backward()
            weight = tail[0].weight
            if name == "DiagGGNExact":
                total[0] += float(weight.diag_ggn_exact.sum()) * len(x)
            else:
                # (K, N, C, C_in, kh, kw), already divided by sqrt(N)
                roots = weight.sqrt_ggn_exact.transpose(0, 1).flatten(3)
                trace, kappa = contract(roots, weight.detach())
                total[0] += trace * len(x) ** 2
                total[1] += (kappa or 0.0) * len(x) ** 2
            n += len(x)
        return total[0] / n, None if name == "DiagGGNExact" else total[1] / n

    return method


def floor(net: nn.Sequential) -> float:
    """Return (forward + cheaper contraction) / forward, in multiply-adds."""
    forward = count_flops(net, 3, SIZE) / 2
    prefix, tail = split(net)
    with torch.no_grad():
        _, channels, height, width = prefix(torch.zeros(1, 3, SIZE, SIZE)).shape
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    shape = (geometry, channels, tail[0].out_channels, height, width)
    return 1 + multiply_adds(*shape)[cheaper(*shape)] / forward


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of a call, with the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def benchmark(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Time every method on one network, in turn, and compare its value with float64."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    net = network(*NETS[name]).to(device)
    x = torch.randn(options.samples, 3, SIZE, SIZE, device=device)
    y = torch.randint(0, CLASSES, (options.samples,), device=device)
    net.train()
    net(x)  # batch statistics that are not the initial ones
    net.eval()
    batches = list(zip(x.split(options.batch_size), y.split(options.batch_size), strict=True))
    methods = {"flatsearch": ours, "forward and backward": forward_backward}
    methods["torch.func vmap(jacrev)"] = torch_func
    try:
        methods |= {f"BackPACK {n}": backpack_method(n) for n in ("DiagGGNExact", "SqrtGGNExact")}
    except ImportError:
        print("BackPACK is not installed; pip install -e '.[bench]' adds it")
    double = copy.deepcopy(net).double()
    exact = torch_func(double, [(x[:8].double(), y[:8])])
    small = [(x[:8], y[:8])]
    # In pairs with the forward pass, method after method: the peers' large arrays would otherwise
    # leave the allocator in another state for whoever comes next.
    times: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    forwards = []
    for method, call in methods.items():
        times[method], ratios[method] = [], []
        for repeat in range(options.repeats + 1):
            forward = seconds(lambda: run_forward(net, batches), device)
            elapsed = seconds(lambda call=call: call(net, batches), device)  # type: ignore[misc]
            if repeat:  # the first is the warm-up
                forwards.append(forward)
                times[method].append(elapsed)
                ratios[method].append(elapsed / forward)
    base = statistics.median(forwards)
    rows = []
    for method, call in methods.items():
        trace, kappa = call(net, small)
        error = None if trace != trace else abs(trace / exact[0] - 1)
        rows.append({
            "net": name,
            "method": method,
            "over_forward": statistics.median(ratios[method]),
                "seconds": statistics.median(times[method]),
            "trace_relative_error": error,
            "kappa_relative_error": None if kappa is None else abs(kappa / exact[1] - 1),  # type: ignore[operator]
            "floor_over_forward": floor(net.cpu()) if method == "flatsearch" else None,
        })  # fmt: skip
        net.to(device)
    print(
        f"\n{name}: forward {base:.4f} s, FLOP floor {rows[0]['floor_over_forward']:.2f} forwards"
    )
    print(f"  {'method':28s} {'x forward':>10s} {'trace error':>12s} {'kappa error':>12s}")
    for row in rows:
        errors = [row["trace_relative_error"], row["kappa_relative_error"]]
        shown = ["-" if e is None else f"{e:.0e}" for e in errors]
        print(f"  {row['method']:28s} {row['over_forward']:10.2f} {shown[0]:>12s} {shown[1]:>12s}")
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the rows and the environment as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else platform.machine(),
        "threads": options.threads,
        "samples": options.samples,
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "dtype": "float32",
    }
    print(", ".join(f"{key} {value}" for key, value in environment.items()))
    rows = [row for name in NETS for row in benchmark(name, options)]
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
