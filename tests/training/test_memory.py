"""Memory that training frees is kept for the next step, and returned in the end."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

# A value a step that is larger than what malloc keeps by itself; page faults of the later steps,
# and what the process holds beside them in the end, in MiB.
STEPS = """
import json, resource
from types import SimpleNamespace
import psutil
from flatsearch.training.memory import freed_memory_kept

def step():
    b"1" * 2**26

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

held = psutil.Process().memory_info
step()
before = held().rss
with freed_memory_kept(SimpleNamespace(type={device!r})):
    step()
    first = faults()
    for _ in range(5):
        step()
    again = faults() - first
print(json.dumps([again, (held().rss - before) / 2**20]))
"""


def steps(device: str = "cpu", **environment: str) -> tuple[int, float]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(device=device)],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    again, more = json.loads(done.stdout)
    return again, more


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_step_and_returned_in_the_end() -> None:
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    again, more = steps()
    assert again < pages / 10
    assert more < 20
    # Elsewhere, and where somebody has chosen, malloc does as it did: each step's pages are new.
    assert steps("cuda")[0] > 4 * pages
    assert steps(MALLOC_TRIM_THRESHOLD_="131072")[0] > 4 * pages
    assert steps(GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] > 4 * pages
