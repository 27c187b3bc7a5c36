"""Whether the measure of the last convolution can be compared between networks of one space.

    python scripts/experiments/siblings.py

Of the recorded residual networks, some end in a 3x3 or 5x5 convolution (basic blocks) and some in
a 1x1 one (bottleneck blocks), with and without squeeze-and-excitation in front of it. For each kind
the median after the last epoch is printed, of kappa, kappa over the fan-in d, kappa over the loss
on the probe, and kappa on normalised inputs; and over all networks Kendall's tau of each with the
test accuracy, and how kappa grows with d (the slope of log kappa in log d, loss and gates held).
"""

from __future__ import annotations

import numpy as np
import optuna
import tables
import torch
from scipy.stats import kendalltau

from flatsearch import load_space, relative_flatness

SPACE = "resnet_small"


def fan_in(row: dict[str, str]) -> tuple[int, int]:
    """Return the last convolution's fan-in and kernel size."""
    values = {name[2:]: value for name, value in row.items() if name.startswith("p.") and value}
    params = {name: _parsed(value) for name, value in values.items()}
    space = load_space(SPACE)
    model = space.build(space.suggest(optuna.trial.FixedTrial(params)))
    images = torch.zeros(2, 3, 32, 32), torch.arange(2)
    ((name, layer),) = relative_flatness(model, images).layers.items()
    return layer.fan_in, model.get_parameter(f"{name}.weight").shape[-1]


def _parsed(value: str) -> object:
    if value in {"True", "False"}:
        return value == "True"
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number == int(number) else number


def main() -> None:
    """Print a table for each recorded table of the space."""
    for name in ("cifar10-resnet", "fashion-resnet"):
        curves = tables.load(name)
        d, kernels = np.array([fan_in(rows[-1]) for rows in curves.rows]).T
        gated = np.array([rows[-1]["p.squeeze_excitation"] == "True" for rows in curves.rows])
        kappa, loss = curves.column("kappa_last"), curves.column("probe_loss")
        measures = {
            "kappa": kappa,
            "kappa / d": kappa / d,
            "kappa / loss": kappa / loss,
            "kappa, inputs": curves.column("kappa_last_input"),
        }
        print(f"\n{name}, {len(curves)} networks")
        for what, values in measures.items():
            medians = [
                f"{size}x{size}{' SE' if gate else ''} {np.median(values[chosen]):.3g}"
                for size in np.unique(kernels)
                for gate in (False, True)
                if (chosen := (kernels == size) & (gated == gate)).sum() > 1
            ]
            tau = kendalltau(values, curves.target()).statistic
            print(f"  {what:14s} {', '.join(medians)}; tau with test accuracy {tau:+.2f}")
        X = np.stack([np.ones(len(d)), np.log(d), np.log(loss), gated], 1)
        slope = np.linalg.lstsq(X, np.log(kappa), rcond=None)[0][1]
        print(f"  log kappa grows by {slope:.2f} log d")


if __name__ == "__main__":
    main()
