"""What is the same for all commands: help, wrong use, errors, completion."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flatsearch
from flatsearch.cli import COMMANDS, main
from tests.fakes import call

RUN = ("run", "--space", "resnet_small")
WRONG: dict[str, tuple[list[str], str]] = {
    "unknown space": (["run", "--space", "resnet_smal"], "did you mean 'resnet_small'?); known:"),
    "no such file": (["run", "--space", "./none.py:X"], "'./none.py' does not exist"),
    "no such class": (["run", "--space", "./my_space.py:Nope"], "has no attribute 'Nope'"),
    "no class": (["run", "--space", "./my_space.py"], "class too: ./my_space.py:ClassName"),
    "unknown data": ([*RUN, "--data", "cifar"], "'cifar10'?); known"),
    "folder without images": ([*RUN, "--data", "."], "per class"),
    "zero trials": ([*RUN, "--trials", "0"], "--trials must be at least 1 but got 0"),
    "zero epochs": ([*RUN, "--epochs", "0"], "--epochs must be at least 1 but got 0"),
    "word for a number": ([*RUN, "--trials", "ten"], "--trials must be a whole number but got 'te"),
    "no timeout": ([*RUN, "--timeout", "0"], "--timeout must be above 0 but got 0"),
    "no failures": ([*RUN, "--max-failures", "0"], "--max-failures must be at least 1 but got 0"),
    "unknown sampler": ([*RUN, "--sampler", "x"], "known: gp, nsga2"),
    "unknown pruner": ([*RUN, "--pruner", "x"], "known: asha"),
    "unknown objective": ([*RUN, "--objectives", "x"], "known: acc"),
    "no objective": ([*RUN, "--objectives", ","], "--objectives must name at least 1 of: accuracy"),
    "unknown device": ([*RUN, "--device", "tpu9"], "not available"),
    "no space": (["run"], "flatsearch run: error: --space must be given (see flatsearch run --he"),
    "unknown command": (["reprot"], "unknown command 'reprot' (did you mean 'report'?); known: "),
    "unknown option": (
        [*RUN, "--epoch", "3"],
        "unknown option --epoch; did you mean --epochs? (see flatsearch run --help)",
    ),
    "nothing like an option": (
        [*RUN, "--nonsense"],
        "unknown option --nonsense (see flatsearch run --h",
    ),
    "too many arguments": (["report", "a", "b"], "flatsearch report: error: one argument too many"),
    "storage out of reach": ([*RUN, "--storage", "sqlite:////no/s.db"], "no folder '/no'"),
    "no storage": (["report"], "'sqlite:///flatsearch.db' does not exist"),
    "unknown model": (["measure", "torchvision:resnet19", "--data", "digits"], "'resnet18'"),
    "no model file": (["measure", "nothing.pt", "--data", "digits"], "does not exist"),
    "no workers": ([*RUN, "--workers", "0"], "--workers must be at least 1 but got 0"),
    "unknown prune mode": ([*RUN, "--prune-mode", "x"], "known: auto"),
    "unknown prune metric": ([*RUN, "--pruner", "median", "--prune-on", "x"], "known: acc"),
    "no prune metric": ([*RUN, "--prune-on", "loss"], "--prune-on is for median, asha and"),
    "no count": ([*RUN, "--max-params", "many"], "--max-params must be a number such as 200k or"),
    "no time": ([*RUN, "--max-latency", "2 days"], "must be a time such as 2ms or 500us but got"),
    "no limit": ([*RUN, "--max-params", "0"], "--max-params must be above 0 but got 0"),
    "measure no batch": (
        ["measure", "torchvision:resnet18", "--data", "digits", "--batch-size", "0"],
        "--batch-size must be at least 1",
    ),
    "measure without data": (["measure", "torchvision:resnet18"], "--data must be given"),
    "no shell": (["completion", "csh"], "unknown shell 'csh'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_use_is_one_line_and_2(what: str) -> None:
    arguments, message = WRONG[what]
    out, err = call(*arguments, code=2)
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("flatsearch-artifacts").exists()


def test_help_and_version() -> None:
    assert call("--version").out == f"flatsearch {flatsearch.__version__}\n"
    out = call("--help").out
    assert all(name in out for name in COMMANDS)
    assert "flatsearch completion" in " ".join(out.split())
    assert "usage: flatsearch" in call(code=2).out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_names_all_that_it_is_told(name: str) -> None:
    out = call(name, "--help").out
    for setting, known in COMMANDS[name].settings.items():
        assert (known.option(setting) in out) == (not known.hidden)


def test_help_explains_the_default_pruner() -> None:
    text = " ".join(call("run", "--help").out.split())
    assert "(default: what the study was last run with, else promote, without artifacts" in text
    assert "promote parks every trial after one epoch" in text


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("flatsearch.spaces.registry.space_names", fail)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["spaces"]) == 1
    assert out.getvalue() == ""


def test_names_in_backquotes_become_options() -> None:
    run = COMMANDS["run"]
    assert (
        run.in_options("`max_parameters` or another `folder`") == "--max-params or another `folder`"
    )
    assert COMMANDS["train"].in_options("another `study`") == "another STUDY"


def test_no_message_of_the_package_has_an_option() -> None:
    """Outside of the command line messages name arguments."""
    for file in Path(flatsearch.__file__).parent.rglob("*.py"):
        if file.parent.name not in {"cli", "settings"}:
            options = re.findall(r"\n.*[\"' (]--[a-z].*", file.read_text())
            # A command to be typed is one; the page's variables are none.
            others = [o for o in options if not re.search(r"flatsearch train|var\(--|--[a-z]+:", o)]
            assert others == [], file


def test_bash_completes(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(call("completion", "bash").out)

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        program = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1};"
            " _shtab_flatsearch; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("flatsearch", "re") == ["report"]
    assert completed("flatsearch", "run", "--max-f") == ["--max-failures", "--max-flops"]
    assert completed("flatsearch", "run", "--sampler", "") == ["tpe", "nsga2", "gp", "random"]
    assert completed("flatsearch", "export", "--tr") == ["--trial"]
    assert completed("flatsearch", "completion", "f") == ["fish"]


@pytest.mark.parametrize(("shell", "has"), [("zsh", "#compdef flatsearch"), ("fish", "complete")])
def test_other_shells_complete(shell: str, has: str, tmp_path: Path) -> None:
    script = call("completion", shell).out
    assert has in script
    assert "max-flops" in script
    if shutil.which(shell):
        file = tmp_path / "script"
        file.write_text(script)
        subprocess.run([shell, "-n", str(file)], check=True)


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flatsearch", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (
        main(["--version"]),
        f"flatsearch {flatsearch.__version__}\n",
    )


@pytest.mark.parametrize(("own", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep(
    monkeypatch: pytest.MonkeyPatch, own: str | None, expected: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", own or "")
    if own is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == expected
