"""Your own training loop inside the search: sharpness-aware minimisation with AdamW."""

import optuna
import torch
from torch import nn

import flatsearch


def train(model, data, settings, seed):
    """Train with SAM (Foret et al., arXiv 2010.01412); yield loss and accuracy of every epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    generator, radius = torch.Generator().manual_seed(seed), 0.05
    augment = data.augmentation(settings.augment)
    for _ in range(settings.epochs):
        total, right, seen = 0.0, 0, 0
        for x, y in data.train.batches(settings.batch_size, generator=generator, augment=augment):
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, y, label_smoothing=0.1)
            loss.backward()
            weights = [w for w in model.parameters() if w.grad is not None]
            norm = torch.stack([w.grad.norm() for w in weights]).norm() + 1e-12
            steps = [radius * w.grad / norm for w in weights]
            torch._foreach_add_([w.data for w in weights], steps)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
            torch._foreach_sub_([w.data for w in weights], steps)
            optimizer.step()
            optimizer.zero_grad()
            total += float(loss.detach()) * len(y)
            right += int((logits.argmax(1) == y).sum())
            seen += len(y)
        yield total / seen, right / seen


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = flatsearch.FlatnessObjective("plain_cnn", "digits", epochs=3, train=train)
    study = optuna.create_study(directions=objective.directions, pruner=flatsearch.FlatnessPruner())
    study.set_metric_names(objective.metric_names)
    study.optimize(objective, n_trials=3)
    print(flatsearch.study_frame(study)[["accuracy", "flatness", "parameters", "seconds"]])
