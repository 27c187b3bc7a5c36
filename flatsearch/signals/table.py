"""The one table of signals: everything a trial can be judged by before it has ended.

The settings, the recorder, the pruner, the correlations of a study, the reports and the experiments
read `SIGNALS`; adding a signal is adding a row. Signals with a function are proxies: they cost
something and are recorded where a study asks for them (the setting `signals`, with the names of
`PROXIES`); the others are there anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FLATNESS", "PRIOR", "PROXIES", "SIGNALS", "Signal", "signals_table"]

Group: TypeAlias = Literal["training", "size", "flatness", "proxy"]
UNTRAINED = "untrained_"


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
        function: The function of a proxy, as "module.name" in this package. It takes (model,
            images, classes) if its value is known untrained, a `ProxyInput` otherwise. Empty for
            what is recorded anyway.
    """

    name: str
    words: str
    group: Group
    first: Literal["untrained", "epoch"]
    sign: int
    cost: str
    source: str = ""
    prior: float = 0.0
    function: str = ""

    @property
    def label(self) -> str:
        """The name, with a minus sign if smaller values are better."""
        return f"-{self.name}" if self.sign < 0 else self.name


# With how many images training could go on in that time: medians of small networks of 10 classes,
# rounded, from scripts/results/signals-cpu.json.
_FREE = "nothing: it is there anyway"
_FORWARD = "a forward pass (as 130 images of training)"
_BOTH = "a forward and a backward pass (as 150 images of training)"
_BY_CLASS = "a backward pass of 64 images per class (as 500 images of training)"
_ONE_IMAGE = "two passes of one image (as 30 images of training)"
_COPY = "no pass; a copy of the weights is kept (as 1 image of training)"
_LAST = "a forward pass of the probe (as 100 images of training)"
_ALL = "a backward pass per class, in some epochs (as 900 images of training)"

_ABDELFATTAH = "Abdelfattah et al., Zero-Cost Proxies, ICLR 2021, arXiv 2101.08134"
_AZ_NAS = "Lee and Ham, AZ-NAS, CVPR 2024, arXiv 2403.19232"
_LEE = "Lee et al., SNIP, ICLR 2019, arXiv 1810.02340"
_LI = "Li et al., ZiCo, ICLR 2023, arXiv 2301.11300"
_MELLOR = "Mellor et al., Neural Architecture Search without Training, ICML 2021, arXiv 2006.04647"
_NAGARAJAN = "Nagarajan and Kolter, Distance from Initialization, 2019, arXiv 1901.01672"
_PETZKA = "Petzka et al., Relative Flatness and Generalization, NeurIPS 2021, arXiv 2001.00939"
_RU = "Ru et al., Speedy Performance Estimation, NeurIPS 2021, arXiv 2006.04492"
_TANAKA = "Tanaka et al., SynFlow, NeurIPS 2020, arXiv 2006.05467"
_TYBL = "Týbl and Neumann, VKDNW, CVPR 2025, arXiv 2502.04975"


def _flatness(name: str, words: str) -> list[Signal]:
    """Return the signal of the last convolution, and of all convolutions together."""
    return [
        Signal(name, f"{words}, last", "flatness", "epoch", 0, _LAST, _PETZKA),
        Signal(f"{name}_all", f"{words}, all", "flatness", "epoch", 0, _ALL, _PETZKA),
    ]


def _epoch(function: str, cost: str, source: str) -> Signal:
    """Return a score of the network in training, whose good direction is for the data to say."""
    name = function.partition(".")[2]
    words = name.replace("_", " ")
    return Signal(name, words, "proxy", "epoch", 0, cost, source, function=function)


def _untrained(function: str, words: str, cost: str, source: str) -> Signal:
    """Return a score of the untrained network, of which its paper says: the larger the better."""
    name = UNTRAINED + function.partition(".")[2]
    return Signal(name, words, "proxy", "untrained", 1, cost, source, function=function)


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
    _epoch("training.weight_movement", _COPY, _NAGARAJAN),
    _epoch("training.gradient_norm", _BOTH, ""),
    _untrained("units.nwot", "nwot", _FORWARD, _MELLOR),
    _untrained("synflow.synflow", "synflow", _ONE_IMAGE, _TANAKA),
    _untrained("gradients.snip", "snip", _BOTH, _LEE),
    _untrained("gradients.gradient_norm", "initial gradient norm", _BOTH, _ABDELFATTAH),
    _untrained("gradients.zico", "ZiCo", _BOTH, _LI),
    _untrained("fisher.vkdnw", "VKDNW", _BY_CLASS, _TYBL),
    _untrained("fisher.vkdnw_entropy", "VKDNW entropy", _BY_CLASS, _TYBL),
    _untrained("aznas.expressivity", "expressivity", _FORWARD, _AZ_NAS),
    _untrained("aznas.progressivity", "progressivity", _FORWARD, _AZ_NAS),
    _untrained("aznas.trainability", "trainability", _BOTH, _AZ_NAS),
)

SIGNALS: Mapping[str, Signal] = {row.name: row for row in _ROWS}
FLATNESS = tuple(row.name for row in _ROWS if row.group == "flatness")
PRIOR = {row.name: row.prior for row in _ROWS}


def _asked_for(name: str) -> str:
    """Return a name without "untrained_", where that leaves one."""
    short = name.removeprefix(UNTRAINED)
    return name if short in SIGNALS else short


# By the names that a study asks for them.
PROXIES: Mapping[str, Signal] = {_asked_for(row.name): row for row in _ROWS if row.function}


def signals_table() -> list[dict[str, str]]:
    """Return the table as texts, for documentation: a dictionary of columns per signal.

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
