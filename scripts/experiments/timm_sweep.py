"""Every convolution of timm's networks against an independent computation in float64.

Protocol. Of every module of timm's models in turn the next network, those that are called small
first, up to --per-module of each. Left out are those with fewer than three 2d convolutions or more
than --most-parameters parameters. Random weights, no parameter a constant (many start with whole
branches multiplied by 0), three classes, batch statistics of random images, logits with a spread of
1, two random images of 64x64, or as small as the network takes; twice as large ones where a layer
has no curvature, for attention among the positions of a 1x1 map does not depend on the queries.
`relative_flatness` with layers="all", skip_unsupported=True, in float64, where a network's own
casts to float32 are casts to float64; every measured layer is compared with
tests/flatness/oracle.py (autograd's kernel gradients of each logit of each image, and the K x K
Hessian of the cross-entropy; each image beside a copy of itself). The networks' own results are
compared before and after, to the bit. The networks are examined in a process of their own, which is
killed after --seconds of the processor's time on one.

Writes one row per network to --out as soon as it is done; networks that have a row are left out,
so the script can be stopped at any time and goes on where it was. timm is no dependency:

    pip install --no-deps timm huggingface_hub safetensors pyyaml
    python scripts/experiments/timm_sweep.py --out scripts/results/timm-sweep.csv

Columns: `model`; `module` of timm; `parameters`; `size` of the images; `layers` measured; `zero`,
those of them without any curvature; `skipped` layers; `kind`; `error`, the largest relative
deviation of a layer's trace or kappa (of kappa relative to the trace times the kernel's square
where its terms cancel to less than 1e-6 of that; of traces below 1e-17 of the network's largest
relative to that, because derivatives behind a saturated softmax have no digits left); `same`,
whether the network gives the same bits afterwards; `reason` of a refusal, or of what was skipped,
or the exception; `seconds`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import re
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from flatsearch import UnsupportedModelError, relative_flatness  # noqa: E402
from tests.flatness import oracle  # noqa: E402

COLUMNS = (
    "model", "module", "parameters", "size", "layers", "zero", "skipped", "kind", "error", "same",
    "reason", "seconds",
)  # fmt: skip
CLASSES = 3
# Words of names, and modules without convolutional networks.
SMALL = "zepto atto femto pico nano micro mini tiny small lite xxs xs t s"
TRANSFORMERS = """
    beit cait crossvit deepseek_vit deit eva gemma4_vit hiera hieradet_sam2 mlp_mixer naflexvit
    qwen3_vit sequencer swin_transformer swin_transformer_v2 swin_transformer_v2_cr tnt
    vision_transformer vision_transformer_relpos vision_transformer_sam volo xcit
"""
LARGE = "m b l h xl medium base large xlarge xxlarge huge giant"
SIZES = (64, 96, 128, 160, 224, 256)


def names_in_turn(pattern: str, per_module: int) -> list[tuple[str, str]]:
    """Return modules of timm and names of their networks, the next one of every module in turn."""
    import timm

    found = defaultdict(list)
    for name in timm.list_models(pattern):
        module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        found[module].append(name)
    lists = [
        [(module, name) for name in sorted(names, key=presumed_size)[:per_module]]
        for module, names in found.items()
        if module not in TRANSFORMERS.split()
    ]
    return [one for turn in itertools.zip_longest(*lists) for one in turn if one is not None]


def presumed_size(name: str) -> int:
    """Return 0, 1 or 2 for names of small, middle and large networks."""
    words, small, large = set(name.split("_")[1:]), set(SMALL.split()), set(LARGE.split())
    depths = {int(number) for number in re.findall(r"(?<!\d)\d{2,3}(?!\d)", name)} - {160, 192}
    if words & large or any(70 <= depth < 220 for depth in depths):
        return 2
    return 0 if name.startswith("test_") or words & small else 1


class LeftOutError(Exception):
    """A network has too many parameters, or too few convolutions."""


def check_size(name: str, most: float) -> None:
    """Raise LeftOutError for a network that is not to be examined."""
    import timm

    parameters = 0

    def count(_module: nn.Module, _name: str, parameter: Tensor | None) -> None:
        nonlocal parameters
        parameters += 0 if parameter is None else parameter.numel()
        if parameters > most:  # before the rest of it is made
            raise LeftOutError

    counting = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    finally:
        counting.remove()
    if sum(isinstance(module, nn.Conv2d) for module in model.modules()) < 3:
        raise LeftOutError


def build(name: str, least: int) -> tuple[nn.Module, Tensor]:
    """Return a network in float64 with batch statistics that are not special, and two images.

    Args:
        name: What timm calls the network.
        least: The smallest images that are tried.
    """
    import timm

    usual = timm.get_pretrained_cfg(name)
    channels, _, own = getattr(usual, "input_size", (3, 224, 224))
    fixed = getattr(usual, "fixed_input_size", False)
    for size in [*(size for size in SIZES if size >= least), own]:
        torch.manual_seed(0)
        try:
            options = {"img_size": size} if fixed and size != own else {}
            model = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
            fill(model)
            images = torch.randn(4, channels, size, size, dtype=torch.float64)
            with torch.no_grad():
                model.double().eval()(images[:2])
        except (RuntimeError, AssertionError, TypeError, ValueError):  # too small, or not fixed
            continue
        break
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    if norms:
        try:
            with torch.no_grad():
                model.train()(images)
        except (RuntimeError, ValueError):  # some need larger maps to train
            for norm in norms:
                nn.init.normal_(norm.running_mean, 0, 0.3)
                nn.init.uniform_(norm.running_var, 0.5, 2)
    calm(model.eval(), images[:2])
    return model, images[:2]


def fill(model: nn.Module) -> None:
    """Give parameters that start as a constant random values: many start with branches of 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.uniform_(0.2, 1)


def calm(model: nn.Module, x: Tensor) -> None:
    """Make the logits' spread 1, so that no probability is 0 or 1 to rounding."""
    with torch.no_grad():
        spread = model(x).std().clamp(min=1e-30)
        heads = model.get_classifier()  # type: ignore[operator]
        for head in heads if isinstance(heads, tuple) else (heads,):  # two where one is distilled
            for parameter in head.parameters():
                parameter /= spread


def deviation(model: nn.Module, x: Tensor, layers: Any) -> float:
    """Return the largest relative deviation of the measured layers from the oracle."""
    names, worst = list(layers), 0.0
    expected = {}
    # a few layers at a time, so that their gradients for all classes fit into memory
    group: list[str] = []
    size = 0
    for name in names:
        group.append(name)
        size += model.get_parameter(oracle.kernel_of(model, name)).numel()
        if size > 16_000_000 or name == names[-1]:
            expected |= oracle.by_kernel_gradients(model, x, group, copied=False)
            group, size = [], 0
    least = 1e-17 * max(trace for trace, _ in expected.values())
    for name in names:
        trace, kappa = expected[name]
        square = float(model.get_parameter(oracle.kernel_of(model, name)).detach().square().sum())
        for value, right, scale in (
            (layers[name].hessian_trace, trace, least),
            (layers[name].relative_flatness, kappa, max(1e-6 * trace, least) * square),
        ):
            if value != right:
                worst = max(worst, abs(value - right) / max(abs(right), scale))
    return worst


def examine(name: str, most: float) -> dict[str, Any] | None:
    """Return the row of one network, None where it is left out."""
    try:
        check_size(name, most)
    except LeftOutError:
        return None
    row = compare(name, SIZES[0])
    return compare(name, 2 * row["size"]) if row.get("zero") else row


def compare(name: str, least: int) -> dict[str, Any]:
    """Return the row of one network on images of at least some size."""
    model, x = build(name, least)
    row: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size": x.shape[-1],
    }
    with torch.no_grad():
        before = model(x)
    try:
        result = relative_flatness(
            model, (x, torch.tensor([0, 1])), layers="all", skip_unsupported=True
        )
    except UnsupportedModelError as error:
        row["reason"] = str(error)
    else:
        row |= {"layers": len(result.layers), "skipped": len(result.skipped), "kind": result.kind}
        reasons = dict.fromkeys(result.skipped.values())
        row["reason"] = "; ".join(reasons)
    with torch.no_grad():
        row["same"] = bool(torch.equal(before, model(x)))
    if "layers" in row:
        row["zero"] = sum(layer.hessian_trace == 0 for layer in result.layers.values())
        row["error"] = f"{deviation(model, x, result.layers):.1e}"
    return row


def work(most: float) -> None:
    """Answer each name on standard input with a row as one line of JSON."""
    torch.set_num_threads(1)
    Tensor.float = Tensor.double  # type: ignore[method-assign]
    for line in sys.stdin:
        try:
            row = examine(line.strip(), most)
        except Exception as error:  # it is what the row is for
            traceback.print_exc()
            row = {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print("ROW " + json.dumps(row), flush=True)


def kill_after(pid: int, seconds: float, done: threading.Event) -> None:
    """Kill a process that takes too long, by the processor's time: other work may slow it down."""
    process = psutil.Process(pid)
    start, first = sum(process.cpu_times()), time.monotonic()
    while not done.wait(1):
        try:
            spent = sum(process.cpu_times()) - start
        except psutil.NoSuchProcess:
            return
        if spent > seconds or time.monotonic() - first > 20 * seconds:
            process.kill()
            return


class Worker:
    """A process that examines networks, and can be killed."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._process: subprocess.Popen[str] | None = None

    def ask(self, name: str, seconds: float) -> dict[str, Any] | None:
        """Return the row of a network, None where it is left out."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--work", "--most-parameters", str(self._most)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        process, done = self._process, threading.Event()
        threading.Thread(target=kill_after, args=(process.pid, seconds, done), daemon=True).start()
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(name + "\n")
        process.stdin.flush()
        line = next((one for one in process.stdout if one.startswith("ROW ")), "")
        done.set()
        if line:
            return json.loads(line.removeprefix("ROW "))  # type: ignore[no-any-return]
        return {"reason": f"no answer within {seconds:g} s of the processor's time, or it died"}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()


def main() -> None:
    """Examine all networks that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/results/timm-sweep.csv")
    parser.add_argument("--models", default="*", help="a pattern of names")
    parser.add_argument("--per-module", type=int, default=12)
    parser.add_argument("--most-parameters", type=float, default=28e6)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.most_parameters)
        return
    done = set()
    if options.out.exists():
        with options.out.open() as file:
            done = {row["model"] for row in csv.DictReader(file)}
    else:
        options.out.write_text(",".join(COLUMNS) + "\n")
    worker = Worker(options.most_parameters)
    for module, name in names_in_turn(options.models, options.per_module):
        if name in done:
            continue
        start = time.perf_counter()
        row = worker.ask(name, options.seconds)
        if row is None:
            continue
        row |= {"model": name, "module": module, "seconds": round(time.perf_counter() - start, 1)}
        with options.out.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        print(row, flush=True)
    worker.close()


if __name__ == "__main__":
    main()
