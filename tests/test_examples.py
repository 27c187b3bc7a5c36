"""The example package, installed as a third party would install it, and the example programs."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from flatsearch.cli import main

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


def test_it_is_found_and_searched_by_its_name(
    installed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(installed)
    monkeypatch.chdir(tmp_path)
    assert main(["spaces"]) == 0
    assert "depthwise" in capsys.readouterr().out
    assert main(["spaces", "depthwise"]) == 0
    assert "kernel           3, 5" in capsys.readouterr().out
    assert main(["run", "--space", "depthwise", "--trials", "1", "--epochs", "1"]) == 0
    assert "depthwise-digits: 1 complete" in capsys.readouterr().out


def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_depthwise_space.py").write_text(
        (PACKAGE / "test_depthwise_space.py").read_text()
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": f"{installed}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "8 passed" in done.stdout


SCRIPTS = sorted((PACKAGE.parent).glob("*.py"))
# What each has to print.
SAYS = {
    "measure_torchvision": "layer4.1.conv2",
    "own_objective": " pruned\n",
    "own_space": '"space":"wide"',
    "ten_lines": '"space":"plain_cnn"',
    "use_exported": "%), true ",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert SAYS[script.stem] in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
