"""Run the tests with the lowest versions that pyproject.toml says are enough.

Arguments are handed to pytest: ``python3 scripts/lowest.py -k pruner``. Installs into
`.venv-lowest`, PyTorch included; use an old Python, for which the old versions have files.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import environment

# A requirement with a least version: `"name[extra]>=1.2"`.
LEAST = re.compile(r'"([\w-]+)(?:\[[\w,]+\])?>=([\w.]+)')


def lowest() -> str:
    """Return the least versions of all requirements, as pip's constraints."""
    text = (environment.ROOT / "pyproject.toml").read_text()
    requirements = text[text.index("\ndependencies = [") : text.index("\n[project.scripts]")]
    return "".join(f"{name}=={version}\n" for name, version in LEAST.findall(requirements))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(lowest())
        home = environment.ROOT / ".venv-lowest"
        programs = environment.ensure("test", home, constraints)
    sys.exit(environment.run(programs, "pytest", *sys.argv[1:], cwd=environment.ROOT))
