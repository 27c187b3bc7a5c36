"""How much memory a measurement takes, of the process as a whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The maps and the factors of all images together would take five times the bound. (ResNet-18 on
# images of 224x224, for which it is 1 GiB, would take minutes.)
SCRIPT = """
import resource
import torch
from torch import nn
import flatsearch
from flatsearch.flatness import batches

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

batches._CPU_BYTES = 96 * 2**20
layers = [nn.Conv2d(3, 32, 3), nn.ReLU()]
for _ in range(3):
    layers += [nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU()]
net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
x, y = torch.randn(24, 3, 66, 66), torch.arange(24) % 10
flatsearch.relative_flatness(net, (x[:2, :, :9, :9].clone(), y[:2]), layers="all")
before = peak()
flatsearch.relative_flatness(net, (x, y), layers="all")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no peak to be asked for")
def test_the_peak_is_within_the_bound() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True
    )
    assert int(done.stdout) <= 96
