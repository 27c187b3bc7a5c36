"""Trained networks side by side: how good, how flat, and which differences are more than chance."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from flatsearch.analysis.paired import (
    Estimate,
    estimate,
    fraction,
    gap,
    gap_difference,
    holm,
    paired,
    paired_hits,
)
from flatsearch.data.splits import ImageData
from flatsearch.errors import NonFiniteError, UnsupportedModelError, UsageError
from flatsearch.export.checkpoint import load_model
from flatsearch.flatness.meter import FlatnessMeter
from flatsearch.networks.cost import count_parameters
from flatsearch.networks.inference import eval_mode
from flatsearch.training.evaluation import EVALUATION_BATCH, per_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from flatsearch.data.splits import Split
    from flatsearch.export.card import ModelCard

__all__ = [
    "ComparedModel",
    "Comparison",
    "Contender",
    "Difference",
    "compare",
    "compare_networks",
    "require_different",
    "trained_elsewhere",
]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
_Pair: TypeAlias = tuple[Tensor, Tensor]
# Of the noise on every filter, as in `FlatnessResult.noise_loss`.
_SIGMA = 0.1
_FLATNESS = ("relative_flatness", "relative_flatness_normalized", "noise_loss")


@dataclass(frozen=True)
class ComparedModel:
    """One network's numbers.

    Attributes:
        name: The name it was given.
        parameters: The number of its parameters.
        kind: What its flatness is of, see `FlatnessResult.kind`.
        estimates: Means over images by name: "loss", "accuracy" and, summed over the layers,
            "relative_flatness", "relative_flatness_normalized" (kernels on inputs of unit standard
            deviation) and "noise_loss" (under noise of 10% on every filter); with test images
            "test_loss", "test_accuracy", "loss_gap" (test less the others) and "accuracy_gap" (the
            others less test).
        layers: The three measures of flatness by layer.
        skipped: The layers that the measure does not cover, with the reasons.
    """

    name: str
    parameters: int
    kind: str
    estimates: Mapping[str, Estimate]
    layers: Mapping[str, Mapping[str, Estimate]]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """A difference of two networks over the same images.

    Attributes:
        quantity: What differs, by its name among a model's estimates.
        first: A network.
        second: The one that is subtracted.
        difference: The mean difference.
        p_value: The probability of one as large by the draw of the images alone, corrected for all
            differences of the comparison by Holm's method.
    """

    quantity: str
    first: str
    second: str
    difference: Estimate
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Networks side by side.

    Attributes:
        models: In the given order.
        differences: Of every pair, in every quantity that can be compared.
        n_images: The number of images that loss, accuracy and flatness are means over.
        n_test: The number of test images; None without.
        notes: What the reader has to know, in sentences.
    """

    models: tuple[ComparedModel, ...]
    differences: tuple[Difference, ...]
    n_images: int
    n_test: int | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain types."""
        return asdict(self)


@dataclass(frozen=True)
class Contender:
    """A network with the images as it takes them.

    Attributes:
        network: On the images' device.
        images: Inputs and targets, the same images for every contender, in the same order.
        test: Batches of test images, if any.
        note: What the reader has to know of it; may be empty.
    """

    network: nn.Module
    images: _Pair
    test: Iterable[_Pair] | None = None
    note: str = ""


def compare(
    models: Mapping[str, nn.Module | str | Path] | Sequence[nn.Module | str | Path],
    data: ImageData | _Pair,
    *,
    test: bool | _Pair = False,
    layers: str | Sequence[str] = "all",
) -> Comparison:
    """Put trained networks side by side on the same images.

    Differences are tested over the images: what is significant would be found on other images of
    the kind too, *for these networks*. Another training of the same architecture, with another
    seed, is another network.

    Args:
        models: Networks, or files that flatsearch saved, by name or one after the other.
        data: Loaded images, of whose training images the probe is taken, or a pair of inputs (as
            the networks take them) and targets.
        test: Test images: whether those of the data are read, or a pair like `data`. They make
            a generalisation gap of the difference in loss and in accuracy.
        layers: See `relative_flatness`.

    Returns:
        The comparison.

    Raises:
        UsageError: If a network is for other images or classes, or there are fewer than two images.
        UnsupportedModelError: If a network is not covered by the measure.

    Example:
        >>> from flatsearch import load_data
        >>> _ = torch.manual_seed(0)
        >>> nets = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        ...         nn.Flatten(), nn.Linear(4, 10)) for _ in range(2)]
        >>> found = compare({"a": nets[0], "b": nets[1]}, load_data("digits", probe_size=32))
        >>> [(d.quantity, d.first, d.second) for d in found.differences[:2]]
        [('loss', 'a', 'b'), ('accuracy', 'a', 'b')]
    """
    if not isinstance(models, Mapping):
        names = [
            f"model {i}" if isinstance(given, nn.Module) else str(given)
            for i, given in enumerate(models)
        ]
        require_different(names)
        models = dict(zip(names, models, strict=True))
    contenders = {}
    for name, given in models.items():
        network, card = (given, None) if isinstance(given, nn.Module) else load_model(given)
        contenders[name] = _contender(name, network, card, data, test)
    return compare_networks(contenders, layers=layers)


def _contender(
    name: str,
    network: nn.Module,
    card: ModelCard | None,
    data: ImageData | _Pair,
    test: bool | _Pair,
) -> Contender:
    if not isinstance(data, ImageData):
        if isinstance(test, bool):
            return Contender(network.to(data[0].device), data)
        return Contender(network.to(data[0].device), data, _split(test))
    if not isinstance(test, bool):
        raise UsageError("`test` must be True or False where `data` are loaded images")
    if card is not None:
        card.require_fit(name, data)

    def prepared(split: Split) -> _Pair:
        return split.tensors() if card is None else (card.normalise(split.pixels()), split.targets)

    batches = (prepared(part) for part in data.test.parts(EVALUATION_BATCH)) if test else None
    device, note = data.train.targets.device, trained_elsewhere(name, card, data)
    return Contender(network.to(device), prepared(data.probe), batches, note)


def trained_elsewhere(name: str, card: ModelCard | None, data: ImageData) -> str:
    """Return a note where a model may have been trained on other data than these."""
    if card is None or card.data == data.name:
        return ""
    return f"{name} was trained on data {card.data!r}, which may be other images than these."


def require_different(names: Sequence[str]) -> None:
    """Refuse models that are given twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"model {name!r} is given twice")


def _split(pair: _Pair) -> Iterable[_Pair]:
    x, y = (torch.split(tensor, EVALUATION_BATCH) for tensor in pair)
    return zip(x, y, strict=True)


def compare_networks(
    contenders: Mapping[str, Contender], *, layers: str | Sequence[str] = "all"
) -> Comparison:
    """Compare networks by name; see `compare`."""
    if not contenders:
        raise UsageError("name at least one model to compare")
    sizes = {name: len(contender.images[1]) for name, contender in contenders.items()}
    n_images = next(iter(sizes.values()))
    if n_images < 2:
        raise UsageError(f"comparing takes at least 2 images but there are {n_images}")
    measured = {name: _Measured(name, given, layers) for name, given in contenders.items()}
    classes = {m.classes for m in measured.values()}
    if len(classes) > 1:
        listed = ", ".join(f"{name!r} {m.classes}" for name, m in measured.items())
        raise UsageError(f"the models have different numbers of classes: {listed}")
    n_test = len(next(iter(measured.values())).test.get("loss", ())) or None
    return Comparison(
        models=tuple(m.model for m in measured.values()),
        differences=tuple(_differences(measured)),
        n_images=n_images,
        n_test=n_test,
        notes=(*(c.note for c in contenders.values() if c.note), *_notes(measured)),
    )


class _Measured:
    """A network's numbers per image."""

    def __init__(self, name: str, given: Contender, layers: str | Sequence[str]) -> None:
        network = given.network
        try:
            meter = FlatnessMeter(network, layers, skip_unsupported=True)
            plain = meter.accumulate(given.images, keep=False)
            result = plain.result(None)
            found = tuple(result.layers)
            meter = FlatnessMeter(network, found, "input")
            scaled = meter.accumulate(given.images, keep=False)
            scaled.result("input")
        except (UnsupportedModelError, NonFiniteError) as error:
            raise type(error)(f"model {name!r}: {error}") from error
        losses, hits = plain.scores()
        self.images = {"loss": _numbers(losses), "accuracy": _numbers(hits)}
        by_layer = {}
        normalised = scaled.samples()
        for layer, samples in plain.samples().items():
            kappa, _, nu = map(_numbers, samples.numbers)
            rows = (kappa, _numbers(normalised[layer].numbers[0]), 0.5 * _SIGMA**2 * nu)
            by_layer[layer] = dict(zip(_FLATNESS, rows, strict=True))
        for quantity in _FLATNESS:
            total: _Array = np.sum([numbers[quantity] for numbers in by_layer.values()], axis=0)
            self.images[quantity] = total
        self.classes, self.test = _test(network, given)
        estimates = {quantity: estimate(numbers) for quantity, numbers in self.images.items()}
        estimates["accuracy"] = fraction(self.images["accuracy"])
        if self.test:
            loss, accuracy = estimate(self.test["loss"]), fraction(self.test["accuracy"])
            estimates |= {"test_loss": loss, "test_accuracy": accuracy}
            estimates["loss_gap"] = gap(estimates["loss"], loss)
            estimates["accuracy_gap"] = gap(accuracy, estimates["accuracy"])
        self.model = ComparedModel(
            name=name,
            parameters=count_parameters(network),
            kind=result.kind,
            estimates=estimates,
            layers={
                layer: {quantity: estimate(n) for quantity, n in numbers.items()}
                for layer, numbers in by_layer.items()
            },
            skipped=dict(result.skipped),
        )


def _test(network: nn.Module, given: Contender) -> tuple[int, dict[str, _Array]]:
    """Return the number of classes, and loss and hit per test image, if there are any."""
    with torch.no_grad(), eval_mode(network):
        classes = network(given.images[0][:1]).shape[1]
        found = per_image(network, given.test or ())
    if found is None:
        return classes, {}
    losses, hits = map(_numbers, found)
    return classes, {"loss": losses, "accuracy": hits}


def _numbers(tensor: Tensor) -> _Array:
    return tensor.detach().double().cpu().numpy()


def _differences(measured: Mapping[str, _Measured]) -> list[Difference]:
    """Return the differences of all pairs."""
    rows = []
    for (first, a), (second, b) in itertools.combinations(measured.items(), 2):
        tested = {
            quantity: (paired_hits if quantity == "accuracy" else paired)(a.images[quantity], other)
            for quantity, other in b.images.items()
            if quantity not in _FLATNESS or a.model.kind == b.model.kind
        }
        if a.test:
            tested["test_loss"] = paired(a.test["loss"], b.test["loss"])
            tested["test_accuracy"] = paired_hits(a.test["accuracy"], b.test["accuracy"])
            tested["loss_gap"] = gap_difference(tested["loss"][0], tested["test_loss"][0])
            hits = tested["test_accuracy"][0], tested["accuracy"][0]
            tested["accuracy_gap"] = gap_difference(*hits)
        rows += [(quantity, first, second, *found) for quantity, found in tested.items()]
    corrected = holm([row[-1] for row in rows])
    return [Difference(*row[:-1], p) for row, p in zip(rows, corrected, strict=True)]


def _notes(measured: Mapping[str, _Measured]) -> Iterable[str]:
    kinds = {name: m.model.kind for name, m in measured.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        yield f"Flatness of different kinds is not compared ({listed})."
    for name, m in measured.items():
        for layer, reason in m.model.skipped.items():
            yield f"{name}: layer {layer!r} is left out: {reason}."
