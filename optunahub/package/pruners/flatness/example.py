"""Prune a study with two objectives by the Pareto rank of what its trials report."""

import optuna

import optunahub

module = optunahub.load_module("pruners/flatness")


def objective(trial: optuna.Trial) -> tuple[float, float]:
    """Two parabolas with their minima at 0 and 2, approached step by step."""
    x = trial.suggest_float("x", -5, 5)
    loss, cost = 0.0, (x - 2) ** 2
    for step in range(10):
        loss = x**2 + 1 / (step + 1)
        module.report(trial, step, loss=loss, cost=cost)
        if module.should_prune(trial):
            raise optuna.TrialPruned
    return loss, cost


if __name__ == "__main__":
    pruner = module.ParetoPruner(optuna.pruners.MedianPruner())
    study = optuna.create_study(directions=["minimize", "minimize"], pruner=pruner)
    study.set_metric_names(["loss", "cost"])
    study.optimize(objective, n_trials=50)
    states = [trial.state.name for trial in study.trials]
    print({state: states.count(state) for state in sorted(set(states))})
