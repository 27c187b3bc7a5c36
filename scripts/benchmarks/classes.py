"""A thousand classes: all passes, passes in blocks, and the estimate of 64 drawn columns.

    python scripts/benchmarks/classes.py [--images 4] [--out scripts/results/classes-cpu.json]

An untrained ResNet-18 with a thousand classes on random images of 64x64, whose probabilities are
nearly even: the hardest case for drawn columns. Processor time of one thread of

- `layers="all"`, exact: a backward pass for each class but one;
- the same with `classes=64`, and by how much it misses, beside the standard error it states;
- the backward passes alone to the outputs of all convolutions, one at a time and in blocks: by
  autograd's `is_grads_batched`, and with the images repeated in the batch. Ratios to one at a time
  for the same number of passes, with the largest memory that the process had until then.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import flatsearch

CLASSES, DRAWN, PASSES = 1000, 64, 40
BLOCKS = (4, 8, 20, 40)


def measured(model: nn.Module, x: Tensor, y: Tensor, classes: int | None) -> dict[str, Any]:
    """Return the time and the numbers of one measurement of all convolutions."""
    start = time.process_time()
    r = flatsearch.relative_flatness(model, (x, y), layers="all", classes=classes)
    return {
        "seconds": time.process_time() - start,
        "kappa": r.relative_flatness,
        "standard_error": r.standard_error,
        "trace": r.hessian_trace,
        "noise_loss": r.noise_loss(0.1),
    }


def outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits and the outputs of the convolutions."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _args, output: found.append(output))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    return logits, found


def passes(logits: Tensor, to: list[Tensor], rows: Tensor, block: int) -> float:
    """Return the seconds of backward passes of `rows` (passes, N, K), `block` of them at once."""
    start = time.process_time()
    for part in rows.split(block):
        batched = len(part) > 1
        torch.autograd.grad(
            logits, to, part if batched else part[0], retain_graph=True, is_grads_batched=batched
        )
    return time.process_time() - start


def repeated(model: nn.Module, x: Tensor, rows: Tensor, block: int) -> float:
    """Return the seconds of the same with `block` copies of the images in one batch."""
    logits, to = outputs(model, x.repeat(block, 1, 1, 1))
    start = time.process_time()
    for part in rows.split(block):
        torch.autograd.grad(logits, to, part.flatten(0, 1), retain_graph=True)
    return time.process_time() - start


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    x = torch.randn(options.images, 3, 64, 64)
    y = torch.randint(0, CLASSES, (options.images,))
    logits, to = outputs(model, x.requires_grad_())
    rows = torch.randn(PASSES, *logits.shape)
    single = min(passes(logits, to, rows, 1) for _ in range(2))
    ratios = {}
    for block in BLOCKS:
        ratios[block] = {
            "is_grads_batched": passes(logits, to, rows, block) / single,
            "repeated": repeated(model, x, rows, block) / single,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        print(block, ratios[block], flush=True)
    del logits, to
    estimate = measured(model, x.detach(), y, DRAWN)
    print(estimate, flush=True)
    exact = measured(model, x.detach(), y, None)
    result = {
        "images": options.images,
        "seconds_per_pass": single / PASSES,
        "blocks": ratios,
        "exact": exact,
        f"classes={DRAWN}": estimate,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
