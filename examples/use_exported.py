"""Search, export and use a model; what is loaded needs neither the study nor the space."""

from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
from optuna.artifacts import FileSystemArtifactStore

import flatsearch

with TemporaryDirectory() as folder:
    # A search that keeps its models.
    objective = flatsearch.FlatnessObjective(
        "plain_cnn",
        "digits",
        ["accuracy"],
        epochs=3,
        artifact_store=FileSystemArtifactStore(folder),
    )
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=2)
    saved = Path(folder) / study.best_trial.user_attrs["flatsearch:model"]

    # Export the best one as a program of torch.export, normalisation and class names inside.
    model, card = flatsearch.load_model(saved)
    flatsearch.export_model(model, card, "pt2", Path(folder) / "digits.pt2")

    # Use it, anywhere: on image files, or on pixel values as they are stored.
    classifier = flatsearch.load(Path(folder) / "digits.pt2")
    images = objective.data.test.images[:5]
    for prediction, target in zip(
        classifier.predict(images), objective.data.test.targets[:5], strict=True
    ):
        print(f"{prediction.class_name} ({prediction.probability:.0%}), true {target}")
