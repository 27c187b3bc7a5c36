"""The one table of signals: everything a trial can be judged by before it has ended.

The recorder, the pruner, the correlations of a study, the reports and the experiments read
`SIGNALS`; adding a signal is adding a row. Signals with a function, `PROXIES`, cost something and
are recorded where a study asks for them (the setting `signals`); the others are there anyway.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from flatsearch.errors import SettingsError, unknown_name
from flatsearch.signals import aznas, curve, gradients, synflow, units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "FLATNESS",
    "PRIOR",
    "PROXIES",
    "SIGNALS",
    "ProxyInput",
    "Signal",
    "choose",
    "measure",
    "signals_table",
]

Group: TypeAlias = Literal["training", "size", "flatness", "proxy"]
UNTRAINED = "untrained_"
# A proxy looks at the first images of the probe; the papers use batches of 64 or 128.
_MOST_IMAGES = 128


@dataclass(frozen=True)
class ProxyInput:
    """What a proxy looks at.

    Attributes:
        model: The network as it is now; no proxy changes it.
        inputs: Normalised training images (N, C, H, W), on the model's device.
        targets: Their classes (N,).
        initial: The parameters before training, by name; empty for an untrained network.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    initial: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Signal:
    """Something a trial can be judged by before it has ended.

    Attributes:
        name: The name of the recorded metric.
        words: What tables for people call it.
        group: "training" for what training leaves behind, "size", "flatness" for the project's own
            measure, "proxy" for the scores of others that a study can ask for.
        first: "untrained" if it is known before training and stays what it is, "epoch" if it is
            measured after every epoch.
        sign: 1 if larger values are better according to its source, -1 if smaller ones are, and 0
            where that is for the data to say.
        cost: The work of computing it, in words.
        source: The publication it comes from; empty for plain counts and metrics.
        prior: The coefficient that the calibrated rule starts from, between normal scores.
        function: The function from a network to the value; None if it is recorded anyway.
    """

    name: str
    words: str
    group: Group
    first: Literal["untrained", "epoch"]
    sign: int
    cost: str
    source: str = ""
    prior: float = 0.0
    function: Callable[[ProxyInput], float] | None = None

    @property
    def label(self) -> str:
        """The name, with a minus sign if smaller values are better."""
        return f"-{self.name}" if self.sign < 0 else self.name


def _on_copy(
    function: Callable[[nn.Module, Tensor, Tensor], float],
) -> Callable[[ProxyInput], float]:
    """Give a function its own copy of the model, to do with as it likes, and no randomness."""

    def on_copy(given: ProxyInput) -> float:
        model = copy.deepcopy(given.model)
        for parameter in model.parameters():
            parameter.grad = None
        with torch.random.fork_rng(devices=[given.inputs.device] if given.inputs.is_cuda else []):
            torch.manual_seed(0)
            return function(model, given.inputs, given.targets)

    return on_copy


_FREE = "nothing: it is there anyway"
_PASS, _PASSES = "a forward pass", "a forward and a backward pass"
_COPY = "no pass; a copy of the weights is kept"

_ABDELFATTAH = "Abdelfattah et al., Zero-Cost Proxies, ICLR 2021, arXiv 2101.08134"
_AZ_NAS = "Lee and Ham, AZ-NAS, CVPR 2024, arXiv 2403.19232"
_LEE = "Lee et al., SNIP, ICLR 2019, arXiv 1810.02340"
_LI = "Li et al., ZiCo, ICLR 2023, arXiv 2301.11300"
_MELLOR = "Mellor et al., Neural Architecture Search without Training, ICML 2021, arXiv 2006.04647"
_NAGARAJAN = "Nagarajan and Kolter, Distance from Initialization, 2019, arXiv 1901.01672"
_PETZKA = "Petzka et al., Relative Flatness and Generalization, NeurIPS 2021, arXiv 2001.00939"
_RU = "Ru et al., Speedy Performance Estimation, NeurIPS 2021, arXiv 2006.04492"
_TANAKA = "Tanaka et al., SynFlow, NeurIPS 2020, arXiv 2006.05467"


def _flatness(name: str, words: str) -> list[Signal]:
    """Return the signal of the last convolution, and of all convolutions together."""
    last, every = "a forward pass of the probe", "a backward pass per class, in some epochs"
    return [
        Signal(name, f"{words}, last", "flatness", "epoch", 0, last, _PETZKA),
        Signal(f"{name}_all", f"{words}, all", "flatness", "epoch", 0, every, _PETZKA),
    ]


def _untrained(
    name: str,
    words: str,
    cost: str,
    source: str,
    function: Callable[[nn.Module, Tensor, Tensor], float],
) -> Signal:
    """Return a score of the untrained network, of which its paper says: the larger the better."""
    return Signal(
        UNTRAINED + name, words, "proxy", "untrained", 1, cost, source, function=_on_copy(function)
    )


# Priors: what is free counts as its papers say, a little each, and flatness not at all until the
# study's own trials say which way; nor do the proxies.
_ROWS = (
    Signal("accuracy", "validation accuracy", "training", "epoch", 1, _FREE, prior=0.15),
    Signal("loss", "validation loss", "training", "epoch", -1, _FREE, prior=-0.15),
    Signal("train_loss", "training loss", "training", "epoch", -1, _FREE, prior=-0.2),
    Signal("tse", "TSE", "training", "epoch", -1, _FREE, _RU, prior=-0.15),
    Signal("parameters", "parameters", "size", "untrained", 1, _FREE, prior=0.1),
    Signal("flops", "FLOPs", "size", "untrained", 1, _FREE, prior=0.1),
    *_flatness("flatness", "relative flatness"),
    *_flatness("hessian_trace", "Hessian trace"),
    *_flatness("noise_loss", "rise of the loss under weight noise"),
    Signal(
        "weight_movement",
        "weight movement",
        "proxy",
        "epoch",
        0,
        _COPY,
        _NAGARAJAN,
        function=lambda given: curve.weight_movement(given.model, given.initial),
    ),
    Signal(
        "gradient_norm",
        "gradient norm",
        "proxy",
        "epoch",
        0,
        _PASSES,
        function=lambda given: gradients.total_norm(given.model, given.inputs, given.targets),
    ),
    _untrained("nwot", "nwot", _PASS, _MELLOR, units.nwot),
    _untrained("synflow", "synflow", "two passes of one image", _TANAKA, synflow.synflow),
    _untrained("snip", "snip", _PASSES, _LEE, gradients.snip),
    _untrained(
        "gradient_norm", "initial gradient norm", _PASSES, _ABDELFATTAH, gradients.gradient_norm
    ),
    _untrained("zico", "ZiCo", _PASSES, _LI, gradients.zico),
    _untrained("expressivity", "expressivity", _PASS, _AZ_NAS, aznas.expressivity),
    _untrained("progressivity", "progressivity", _PASS, _AZ_NAS, aznas.progressivity),
    _untrained("trainability", "trainability", _PASSES, _AZ_NAS, aznas.trainability),
)

SIGNALS: Mapping[str, Signal] = {row.name: row for row in _ROWS}
FLATNESS = tuple(row.name for row in _ROWS if row.group == "flatness")
PRIOR = {row.name: row.prior for row in _ROWS}
PROXIES: Mapping[str, Signal] = {row.name: row for row in _ROWS if row.function is not None}


def choose(names: Iterable[str]) -> tuple[Signal, ...]:
    """Return the proxies of these names, each once, in the order of the table.

    Args:
        names: Names of `PROXIES`; "untrained_" may be left out where that leaves one.

    Raises:
        SettingsError: If there is no proxy of a name.

    Example:
        >>> [signal.name for signal in choose(["synflow", "gradient_norm", "untrained_nwot"])]
        ['gradient_norm', 'untrained_nwot', 'untrained_synflow']
    """
    chosen = set()
    for name in names:
        full = name if name in PROXIES else UNTRAINED + name
        if full not in PROXIES:
            raise SettingsError(unknown_name("signal to record", name, map(_short, PROXIES)))
        chosen.add(full)
    return tuple(row for row in _ROWS if row.name in chosen)


def _short(name: str) -> str:
    short = name.removeprefix(UNTRAINED)
    return name if short in PROXIES else short


def measure(signals: Iterable[Signal], given: ProxyInput) -> dict[str, float]:
    """Return the values of proxies by their names; infinite where nothing gets through.

    Args:
        signals: From `choose`.
        given: What they look at, of which the first images are taken.

    Returns:
        The values; NaN where a proxy cannot be computed for a network.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(2, 2))
        >>> given = ProxyInput(model, torch.ones(4, 1, 3, 3), torch.tensor([0, 1, 0, 1]))
        >>> measure(choose(["nwot"]), given)
        {'untrained_nwot': -inf}
    """
    few = dataclasses.replace(
        given, inputs=given.inputs[:_MOST_IMAGES], targets=given.targets[:_MOST_IMAGES]
    )
    functions = {row.name: row.function for row in signals if row.function is not None}
    return {name: _value(name, function, few) for name, function in functions.items()}


def _value(name: str, function: Callable[[ProxyInput], float], given: ProxyInput) -> float:
    try:
        return function(given)
    except RuntimeError as error:
        # An operation without a derivative, or no memory, is no reason to lose a candidate.
        warnings.warn(f"{name} could not be computed: {error}", stacklevel=3)
        return math.nan


def signals_table() -> list[dict[str, str]]:
    """Return the table as texts, for documentation.

    Returns:
        Per signal: "signal", "what", "known", "better", "prior", "cost" and "source".

    Example:
        >>> signals_table()[1]["better"], signals_table()[1]["known"]
        ('smaller', 'after every epoch')
    """
    known = {"untrained": "before training", "epoch": "after every epoch"}
    better = {1: "larger", -1: "smaller", 0: "the study decides"}
    return [
        {
            "signal": row.name,
            "what": row.words,
            "known": known[row.first],
            "better": better[row.sign],
            "prior": f"{row.prior:+g}" if row.prior else "0",
            "cost": row.cost,
            "source": row.source,
        }
        for row in _ROWS
    ]
