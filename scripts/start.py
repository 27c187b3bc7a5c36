"""Set up, then run flatsearch: ``python3 scripts/start.py run --space resnet_small``."""

from __future__ import annotations

import os
import sys

import environment

if __name__ == "__main__":
    programs = environment.ensure("dashboard")
    if os.name == "nt":
        sys.exit(environment.run(programs, "flatsearch", *sys.argv[1:]))
    # Becoming the program keeps signals and exit codes exactly its own.
    os.execv(programs / "flatsearch", ["flatsearch", *sys.argv[1:]])
