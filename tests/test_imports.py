"""The one-way flow of the design, and that importing stays cheap."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import flatsearch

ROOT = Path(flatsearch.__file__).parent
SPACES = ROOT.parent / "search_spaces"

# Lowest first: a line imports only the lines above it, and a package itself.
LINES = """
errors, notebooks, pareto, networks
signals, device, flatness, spaces, data
settings
training, record, export
pruners
search, analysis
retrain
reports
cli
"""
ROOMS = [{room.strip() for room in line.split(",")} for line in LINES.strip().splitlines()]
# For third parties' tests: looks at everything, is looked at by nothing.
OUTSIDE = {"__init__", "__main__", "testing"}
# What reads a study only: torch alone would take most of the time.
READING = "import flatsearch.analysis.summary, flatsearch.reports.dashboard"


@functools.cache
def imports(file: Path, *, typing: bool = False) -> set[str]:
    """Return the modules a file imports anywhere, without those for type checking only."""
    found, to_do = set(), list[ast.AST](ast.parse(file.read_text()).body)
    while to_do:
        node = to_do.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and not typing and "TYPE_CHECKING" in ast.unparse(node.test):
            to_do += node.orelse
        elif not isinstance(node, ast.expr):
            to_do += ast.iter_child_nodes(node)
    return found


def parts() -> dict[str, list[Path]]:
    """Return the files of each part of the package."""
    found: dict[str, list[Path]] = {}
    for file in ROOT.rglob("*.py"):
        relative = file.relative_to(ROOT).with_suffix("")
        found.setdefault(relative.parts[0], []).append(file)
    return found


def test_every_part_has_its_place() -> None:
    assert sorted(set(parts()) - OUTSIDE) == sorted(set().union(*ROOMS))


@pytest.mark.parametrize("part", sorted(set().union(*ROOMS)))
def test_a_part_imports_only_what_is_below_it(part: str) -> None:
    line = next(i for i, rooms in enumerate(ROOMS) if part in rooms)
    allowed = set().union(*ROOMS[:line], {part})
    for file in parts()[part]:
        used = {m.split(".")[1] for m in imports(file) if m.startswith("flatsearch.")}
        above = (used & (set().union(*ROOMS) | OUTSIDE)) - allowed
        assert not above, f"{file.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize("part", ["training", "flatness", "data", "networks"])
def test_knows_nothing_of_optuna(part: str) -> None:
    for file in parts()[part]:
        assert not any(m.split(".")[0] == "optuna" for m in imports(file, typing=True))


def test_the_package_does_not_import_the_spaces() -> None:
    for file in ROOT.rglob("*.py"):
        assert not any(m.startswith("search_spaces") for m in imports(file, typing=True))


def test_spaces_use_what_third_parties_may() -> None:
    for file in SPACES.glob("*.py"):
        used = {m for m in imports(file, typing=True) if m.startswith("flatsearch")}
        assert all(m.startswith(("flatsearch.spaces", "flatsearch.networks")) for m in used), file


def test_importing_is_cheap() -> None:
    # All but the estimator, which is one of scikit-learn's classes.
    names = ", ".join(name for name in flatsearch.__all__ if name != "FlatSearchClassifier")
    steps = "import flatsearch.cli", READING, f"from flatsearch import {names}"
    program = "import sys\n" + "".join(f"{step}\nprint(*sys.modules)\n" for step in steps)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    command, reading, loaded = (set(line.split()) for line in done.stdout.splitlines())
    assert not command & {"torch", "optuna", "torchvision", "rich"}
    assert "torch" not in reading
    assert "torch" in loaded  # the guard can see what is loaded
    assert not loaded & {"torchvision", "plotly", "optuna_dashboard", "sklearn", "matplotlib"}


def test_public_names() -> None:
    for name in flatsearch.__all__:
        assert getattr(flatsearch, name) is not None
    assert set(flatsearch.__all__) <= set(dir(flatsearch))
    assert callable(flatsearch.report)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = flatsearch.nonsense
