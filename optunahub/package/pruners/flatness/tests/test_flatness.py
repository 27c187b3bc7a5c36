"""The package as OptunaHub loads it."""

from pathlib import Path

import optuna
import pytest

import optunahub

REGISTRY = Path(__file__).parents[3]
PACKAGE = Path(__file__).parents[1]


@pytest.fixture(name="module")
def fixture_module():
    return optunahub.load_local_module("pruners/flatness", registry_root=str(REGISTRY))


def test_the_pruner_prunes_with_two_objectives(module):
    pruner = module.ParetoPruner(optuna.pruners.MedianPruner(3))
    study = optuna.create_study(directions=["minimize"] * 2, pruner=pruner)
    study.set_metric_names(["loss", "cost"])
    for value in (1.0, 2.0, 3.0):
        trial = study.ask()
        module.report(trial, 0, loss=value, cost=value)
        assert not module.should_prune(trial)
        study.tell(trial, (value, value))
    trial = study.ask()
    module.report(trial, 0, loss=9.0, cost=9.0)
    assert module.should_prune(trial)


def test_the_example_runs(monkeypatch, capsys):
    def load(package):
        return optunahub.load_local_module(package, registry_root=str(REGISTRY))

    monkeypatch.setattr(optunahub, "load_module", load)
    code = compile((PACKAGE / "example.py").read_text(), "example.py", "exec")
    exec(code, {"__name__": "__main__"})
    assert "PRUNED" in capsys.readouterr().out


def test_front_matter():
    lines = (PACKAGE / "README.md").read_text().split("---")[1].strip().splitlines()
    keys = {line.split(":")[0] for line in lines}
    assert keys == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert (PACKAGE / "LICENSE").read_text().startswith("MIT License")
