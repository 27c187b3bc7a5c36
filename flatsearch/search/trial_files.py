"""Files of a trial in the artifact store: its trained weights, its pictures."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.trial import TrialState

from flatsearch.export.card import ModelCard
from flatsearch.export.checkpoint import save_model
from flatsearch.pareto import accuracy_error, is_best, signs
from flatsearch.record import TrialRecord, write_trial
from flatsearch.search import pictures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.artifacts import FileSystemArtifactStore
    from torch import nn

    from flatsearch.data.splits import ImageData
    from flatsearch.spaces.space import Architecture

__all__ = ["TrialFiles"]


class TrialFiles:
    """Saves what a completed trial leaves; has to be called before the trial is told.

    Args:
        store: Where files go.
        data: The images that the networks are for.
        space: The reference of the search space.
    """

    def __init__(self, store: FileSystemArtifactStore, data: ImageData, space: str) -> None:
        self._store, self._data, self._space = store, data, space

    def save(
        self,
        trial: optuna.Trial,
        model: nn.Module,
        architecture: Architecture,
        values: Sequence[float],
    ) -> None:
        """Save the weights, and pictures of a trial that is on the front, or near the best.

        Args:
            trial: The running trial, its metrics recorded.
            model: The trained network.
            architecture: The network's architecture.
            values: The trial's objective values.
        """
        card = ModelCard.of(self._data, self._space, architecture)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"trial-{trial.number}.pt"
            save_model(model, card, path)
            write_trial(trial, artifact=self._upload(trial, path, "application/octet-stream"))
            if self._is_notable(trial, values):
                for path, mimetype in self._pictures(trial, model, architecture, Path(folder)):
                    self._upload(trial, path, mimetype)

    def _upload(self, trial: optuna.Trial, path: Path, mimetype: str) -> str:
        return optuna.artifacts.upload_artifact(
            artifact_store=self._store,
            file_path=str(path),
            study_or_trial=trial,
            mimetype=mimetype,
        )

    def _pictures(
        self, trial: optuna.Trial, model: nn.Module, architecture: Architecture, folder: Path
    ) -> list[tuple[Path, str]]:
        """Return the files that show a trial, with their types."""
        name = f"trial {trial.number}: {self._space} on {self._data.name}"
        text = folder / "architecture.json"
        text.write_text(architecture.to_json() + "\n")
        files = [(text, "application/json")]
        if pictures.is_available():
            network, curves = folder / "network.png", folder / "curves.png"
            size = self._data.in_channels, self._data.image_size
            try:
                pictures.draw_network(model, *size, network, name)
                pictures.draw_curves(TrialRecord(trial).steps, curves, name)
                files += [(network, "image/png"), (curves, "image/png")]
            except Exception as error:
                # A layer of a kind that cannot be drawn is no reason to lose a trained network.
                warnings.warn(f"{name} could not be drawn: {error!r}", stacklevel=2)
        return files

    def _is_notable(self, trial: optuna.Trial, values: Sequence[float]) -> bool:
        """Return whether a trial is on the front, or may be chosen as the best, as it ends."""
        if not TrialRecord(trial).feasible:
            return False
        complete = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [other.values for other in complete if TrialRecord(other).feasible]
        turned = signs(trial.study.directions)
        points = np.array(others).reshape(-1, len(turned)) * turned
        mine = np.array(values) * turned
        if trial.study.metric_names == ["accuracy"]:
            mine += accuracy_error(values[0], len(self._data.validation))
        return is_best(points, np.ones(len(points)), mine, None)
