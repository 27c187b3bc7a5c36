"""Your own training loop, whose trials are parked and go on later: save and load its state."""

import tempfile
from typing import Any

import optuna
import torch
from optuna.artifacts import FileSystemArtifactStore
from torch import nn

import flatsearch

data = flatsearch.load_data("digits")
EPOCHS = 6


class Training:
    """A trial's training: one epoch at a time, with a state that can be saved and loaded."""

    def __init__(self, trial: optuna.Trial) -> None:
        width = trial.suggest_int("width", 4, 32, log=True)
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        torch.manual_seed(0)
        convolution = nn.Conv2d(data.in_channels, width, 3, padding=1)
        self.net = flatsearch.GapCnn(nn.Sequential(convolution, nn.ReLU()), width, data.num_classes)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr, momentum=0.9)
        self.done = 0

    def epoch(self) -> dict[str, float]:
        """Train for an epoch, and say what is known after it."""
        order, total = torch.Generator().manual_seed(self.done), 0.0
        for x, y in data.train.batches(64, generator=order):
            loss = nn.functional.cross_entropy(self.net(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach()) * len(y) / len(data.train)
        self.done += 1
        x, y = data.validation.tensors()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(self.net(x), y)
        return {"loss": float(loss), "train_loss": total}

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on, in another process, too: nothing is unpickled."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=flatsearch.PromotionSampler(optuna.samplers.TPESampler()),
        pruner=flatsearch.HalvingPromoter(epochs=EPOCHS),
    )
    study.set_metric_names(["loss"])
    with tempfile.TemporaryDirectory() as folder:  # one that all workers share, to be kept
        store = FileSystemArtifactStore(folder)
        objective = flatsearch.ResumableObjective(Training, EPOCHS, ["loss"], artifact_store=store)
        study.optimize(objective, n_trials=16)
        flatsearch.finish(study, objective)
    states = [trial.state.name for trial in study.trials]
    print(f"{states.count('COMPLETE')} trained to the end; best loss {study.best_value:.3f}")
