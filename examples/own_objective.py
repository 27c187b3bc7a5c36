"""Your own training loop, with two objectives, pruned: what Optuna alone refuses."""

import optuna
import torch
from torch import nn

import flatsearch

data = flatsearch.load_data("digits")
EPOCHS = 4


def objective(trial: optuna.Trial) -> tuple[float, int]:
    """Train a network of one convolution; return its accuracy and its size."""
    width = trial.suggest_int("width", 4, 32, log=True)
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    torch.manual_seed(trial.number)
    convolution = nn.Conv2d(data.in_channels, width, 3, padding=1)
    net = flatsearch.GapCnn(nn.Sequential(convolution, nn.ReLU()), width, data.num_classes)
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9)
    for epoch in range(EPOCHS):
        total = 0.0
        for x, y in data.train.batches(64, generator=torch.Generator().manual_seed(epoch)):
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(y) / len(data.train)
        x, y = data.validation.tensors()
        accuracy = float((net(x).argmax(1) == y).double().mean())
        flatness = flatsearch.relative_flatness(net, data.probe.tensors()).relative_flatness
        # Whatever is reported can be learnt from; the names are those that the rule knows.
        flatsearch.report(trial, epoch, accuracy=accuracy, train_loss=total, flatness=flatness)
        if epoch + 1 < EPOCHS and flatsearch.should_prune(trial):
            raise optuna.TrialPruned
    return accuracy, width


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["maximize", "minimize"],
        pruner=flatsearch.FlatnessPruner(n_startup_trials=6),
    )
    study.set_metric_names(["accuracy", "width"])
    study.optimize(objective, n_trials=30)
    states = [trial.state.name for trial in study.trials]
    print(f"{states.count('COMPLETE')} complete, {states.count('PRUNED')} pruned")
    for trial in study.best_trials:
        print(trial.number, trial.params, trial.values)
