"""Set up, then run every check: lint, format, types, tests and doctests.

Arguments are handed to pytest: ``python3 scripts/check.py -k pruner``.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import environment

MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps files in memory

if __name__ == "__main__":
    programs = environment.ensure("test")
    failed = []

    def check(name: str, program: str, *arguments: str) -> None:
        """Run a check, and remember its name if it fails."""
        print(f"== {name}", flush=True)
        if environment.run(programs, program, *arguments, cwd=environment.ROOT):
            failed.append(name)

    check("lint", "ruff", "check", ".")
    check("format", "ruff", "format", "--check", ".")
    # Beside the tests, which leave a core idle now and then; what it says is shown after them.
    mypy = environment.path_of(programs, "mypy")
    types = Popen([mypy], cwd=environment.ROOT, stdout=PIPE, stderr=STDOUT, text=True)
    # A test process for each core, which computes on one thread, and one more for the time in
    # which others wait for what they have started.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # What tests write need not reach a disk: databases take a quarter less time in memory.
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * 2**30:
        os.environ.setdefault("TMPDIR", str(MEMORY))
    count = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2) + 1
    processes = (f"--numprocesses={count}", "--dist=worksteal")
    check("tests and doctests", "pytest", *processes, *sys.argv[1:])
    print("== types", flush=True)
    print(types.communicate()[0], end="", flush=True)
    if types.returncode:
        failed.append("types")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
