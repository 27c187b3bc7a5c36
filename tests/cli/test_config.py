"""The configuration file: what is read, what is refused, and what wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flatsearch.cli import COMMANDS
from flatsearch.cli.config import read_config, resolve
from flatsearch.settings import RunOptions, RunSettings
from tests.fakes import call


def write(text: str, file: str = "pyproject.toml", head: str = "[tool.flatsearch]") -> None:
    Path(file).write_text(f"{head}\n{text}\n")


def held(command: str = "run", config: str | None = None, **given: Any) -> dict[str, Any]:
    resolved = resolve(COMMANDS[command], given, read_config(config))
    return {name: (entry.value, entry.source) for name, entry in resolved.items()}


def test_without_a_file_defaults_hold() -> None:
    found = held()
    assert found["epochs"] == (8, "default")
    assert found["study"] == (None, "default")


def test_the_command_line_wins_over_the_file_and_that_over_defaults() -> None:
    write("epochs = 3\nlr = 1\nmax-flops = '30M'\nobjectives = ['accuracy', 'flops']\nseed = 4")
    found = held(epochs="5")
    assert found["epochs"] == (5, "command line")
    assert found["lr"] == (1, "pyproject.toml")
    assert found["max_flops"] == (30_000_000, "pyproject.toml")
    assert found["objectives"] == (("accuracy", "flops"), "pyproject.toml")
    assert found["momentum"] == (0.9, "default")


def test_dashes_and_underscores() -> None:
    write("batch-size = 32\nweight_decay = 0\nobjectives = 'accuracy, latency'\ntune-recipe = true")
    found = held()
    assert [found[n][0] for n in ("batch_size", "weight_decay")] == [32, 0]
    assert found["objectives"][0] == ("accuracy", "latency")
    assert found["tune_recipe"] == (True, "pyproject.toml")


def test_a_switch_of_the_file_can_be_taken_back() -> None:
    write("tune-recipe = true")
    out = call("run", "--space", "x", "--no-tune-recipe", "--show-config").out
    assert "tune_recipe = false" in out
    assert "tune_recipe = true" in call("run", "--space", "x", "--show-config").out


def test_a_file_of_its_own() -> None:
    write("epochs = 3")
    write("epochs = 4", "mine.toml", head="")
    write("epochs = 5", "other.toml")
    assert held(config="mine.toml")["epochs"] == (4, "mine.toml")
    assert held(config="other.toml")["epochs"] == (5, "other.toml")
    write("line-length = 100", head="[tool.ruff]")
    assert held()["epochs"] == (8, "default")


def test_other_commands_take_the_very_same_options() -> None:
    write("storage = 'sqlite:///here.db'\ndevice = 'cpu'\ndata = 'photos'\nepochs = 3\nseed = 9")
    for command in ("run", "worker", "report", "dashboard", "train", "export"):
        assert held(command)["storage"] == ("sqlite:///here.db", "pyproject.toml"), command
    for command in ("run", "worker", "train", "measure"):
        assert held(command)["device"] == ("cpu", "pyproject.toml"), command
    # A study knows its data; the epochs of a final training are others.
    assert held("train")["data"] == (None, "default")
    assert held("train")["epochs"] == (None, "default")
    assert held("measure")["seed"] == (0, "default")
    assert "'sqlite:///here.db' does not exist" in call("report", code=2).err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown key 'epoch' (did you mean 'epochs'?)"),
        ("max_flops = 1\nmax-flops = 2", "'max_flops' and 'max-flops' are the same key"),
        ("epochs = 0", "'epochs' must be at least 1 but got 0"),
        ("epochs = '8'", "'epochs' must be a whole number but got '8'"),
        ("epochs = 8.0", "'epochs' must be a whole number but got 8.0"),
        ("batch-size = 1", "'batch-size' must be at least 2 but got 1"),
        ("lr = true", "'lr' must be a finite Python number but got True"),
        ("lr = [0.1]", "'lr' must be a finite Python number but got (0.1,)"),
        ("max-flops = 'many'", "'max-flops' must be a number such as 200k or 1.5M but got 'many'"),
        ("objectives = [1]", "'objectives' must be several names but got (1,)"),
        ("sampler = 'tp'", "'sampler': unknown sampler 'tp' (did you mean 'tpe'?)"),
        ("data = 3", "'data' must be a text but got 3"),
        ("tune_recipe = 1", "'tune_recipe' must be True or False but got 1"),
        ("epochs = ", "is not a TOML file: "),
    ],
)
def test_refused(text: str, message: str) -> None:
    write(text)
    err = call("run", "--space", "resnet_small", code=2).err
    assert err.startswith("flatsearch run: error: pyproject.toml")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_table_that_is_none() -> None:
    Path("pyproject.toml").write_text("[tool]\nflatsearch = 3\n")
    err = call("run", "--space", "s", code=2).err
    assert err == "flatsearch run: error: pyproject.toml: 'flatsearch' must be a table but is 3\n"
    call("spaces")  # a command without such options does not read it


def test_a_file_that_is_not_there() -> None:
    err = call("run", "--space", "s", "--config", "no.toml", code=2).err
    assert err == "flatsearch run: error: no.toml cannot be read: No such file or directory\n"


def test_what_holds_is_shown_as_a_file_that_says_the_same() -> None:
    write(
        'epochs = 3\nmax_params = 5\nspace = "a \\"b\\" \u00fc"'.replace("max_params", "max_memory")
    )
    out = call("run", "--lr", "0.05", "--show-config").out
    lines = {line.split(" ")[0]: " ".join(line.split()) for line in out.splitlines()}
    assert lines["epochs"] == "epochs = 3 # pyproject.toml"
    assert lines["lr"] == "lr = 0.05 # command line"
    assert lines["momentum"] == "momentum = 0.9 # default"
    assert "# study: SPACE-DATA" in out
    assert "# max_flops: none" in out
    names = {*RunSettings.settings(), *RunOptions.settings()}
    assert {
        line.lstrip("# ").replace(":", " ").split()[0] for line in out.splitlines()[1:]
    } == names
    Path("again.toml").write_text(out)
    again = held(config="again.toml")
    assert {n: v for n, (v, _) in again.items()} == {n: v for n, (v, _) in held(lr="0.05").items()}
    assert again["epochs"][1] == "again.toml"
    assert not Path("flatsearch.db").exists()


def test_a_missing_setting_is_shown_too() -> None:
    assert "# space: must be given" in call("run", "--show-config").out


def test_a_run_by_a_file_alone(empty_folder: Path) -> None:
    write(
        "space = './my_space.py:MySpace'\nepochs = 1\ntrials = 1\nstudy = 'mine'\nmin-accuracy = 0"
    )
    assert "new study 'mine': trials to go: 1" in call("run").err
    assert "1 complete" in call("report", "mine").out


def test_passwords_are_not_shown() -> None:
    secret = "https://me:s3cret@host/images"
    urls = ("--storage", "postgresql://me:s3 cret@host/db", "--data", secret, "--artifacts", secret)
    out = call("run", "--space", "resnet_small", *urls, "--show-config").out
    assert 'storage = "postgresql://me:***@host/db"' in out
    assert out.count('"https://me:***@host/images"') == 2
    assert "cret" not in out
