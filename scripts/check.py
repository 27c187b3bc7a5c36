"""Set up, then run every check: lint, format, types, tests and doctests.

Arguments are handed to pytest: ``python3 scripts/check.py -k pruner``.
"""

from __future__ import annotations

import sys

import environment

CHECKS = (
    ("lint", "ruff", ("check", ".")),
    ("format", "ruff", ("format", "--check", ".")),
    ("types", "mypy", ()),
    ("tests and doctests", "pytest", tuple(sys.argv[1:])),
)

if __name__ == "__main__":
    programs = environment.ensure("test")
    failed = []
    for name, program, arguments in CHECKS:
        print(f"== {name}", flush=True)
        if environment.run(programs, program, *arguments, cwd=environment.ROOT):
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
