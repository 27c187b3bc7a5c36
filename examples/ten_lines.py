"""A search in ten lines: accuracy against flatness on handwritten digits."""

import optuna

import flatsearch

objective = flatsearch.FlatnessObjective("plain_cnn", "digits", epochs=2)
study = optuna.create_study(directions=objective.directions, pruner=flatsearch.FlatnessPruner())
study.set_metric_names(objective.metric_names)
study.optimize(objective, n_trials=3)
for trial in study.best_trials:
    print(trial.number, trial.values, trial.user_attrs["architecture"])
