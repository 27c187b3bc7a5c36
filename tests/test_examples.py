"""The example package, installed as a third party would install it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "examples" / "depthwise_space"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place)]
    source = place.parent / "source"
    source.mkdir(exist_ok=True)
    for file in PACKAGE.glob("*.*"):  # pip leaves build folders behind where it builds
        (source / file.name).write_text(file.read_text())
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    return place


def run(installed: Path, folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_it_is_found_by_its_name(installed: Path, tmp_path: Path) -> None:
    assert "depthwise" in run(installed, tmp_path, "flatsearch", "spaces")
    assert "kernel           3, 5" in run(installed, tmp_path, "flatsearch", "spaces", "depthwise")


def test_it_is_searched(installed: Path, tmp_path: Path) -> None:
    options = ["--space", "depthwise", "--trials", "1", "--epochs", "1", "--device", "cpu"]
    assert "depthwise-digits: 1 complete" in run(installed, tmp_path, "flatsearch", "run", *options)


def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_depthwise_space.py").write_text(
        (PACKAGE / "test_depthwise_space.py").read_text()
    )
    assert "8 passed" in run(installed, tmp_path, "pytest", "-q", "-p", "no:cacheprovider")


SCRIPTS = sorted((PACKAGE.parent).glob("*.py"))
# What each has to print.
SAYS = {
    "measure_torchvision": "layer4.1.conv2",
    "own_objective": " pruned\n",
    "own_space": '"space":"wide"',
    "ten_lines": '"space":"plain_cnn"',
    "use_exported": "%), true ",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SAYS[script.stem] in done.stdout
    assert list(tmp_path.iterdir()) == []
