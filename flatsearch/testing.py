"""What every search space has to pass, for pytest; built-in spaces and third parties alike.

from flatsearch.testing import SearchSpaceContract

class TestMySpace(SearchSpaceContract):
    space = "my_package.spaces:MySpace"

and what every source of data has to pass: `DataSourceContract`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import optuna
import torch
import torch.nn.functional as F

from flatsearch.data import ImageData, load_data
from flatsearch.flatness import relative_flatness
from flatsearch.networks.duplicate_key import network_key
from flatsearch.networks.gap_cnn import GapCnn
from flatsearch.spaces.registry import load_space
from flatsearch.spaces.space import Architecture, SearchSpace, build_model, suggest_checked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial
    from torch import nn

__all__ = ["CornerSampler", "DataSourceContract", "SearchSpaceContract"]

_CLASSES = 4


class CornerSampler(optuna.samplers.RandomSampler):
    """Draws only the ends of every parameter's range, at random; every choice of a categorical one.

    Args:
        seed: Of the draws.
        end: Always the low (0) or high (1) end, or the first or last choice; random where None.
    """

    def __init__(self, seed: int = 0, end: int | None = None) -> None:
        super().__init__(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._end = end

    def _draw(self, count: int) -> int:
        if self._end is not None:
            return (count - 1) * self._end
        return int(torch.randint(count, (), generator=self._generator))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return one end of a parameter's range."""
        del study, trial, param_name
        if isinstance(param_distribution, optuna.distributions.CategoricalDistribution):
            return param_distribution.choices[self._draw(len(param_distribution.choices))]
        ends: Any = param_distribution
        return ends.high if self._draw(2) else ends.low


class SearchSpaceContract:
    """Tests of one search space: subclass it in a test file and set `space`.

    Attributes:
        space: A reference as `flatsearch.load_space` takes it, or an object.
        image_sizes: Heights and widths of the images that networks are built for.
        channels: Numbers of channels of the images.
        draws: Random architectures per test.
    """

    space: ClassVar[str | SearchSpace]
    image_sizes: ClassVar[tuple[int, ...]] = (8, 28, 32)
    channels: ClassVar[tuple[int, ...]] = (1, 3)
    draws: ClassVar[int] = 12

    def _space(self) -> SearchSpace:
        return load_space(self.space) if isinstance(self.space, str) else self.space

    def _draw(self, *samplers: optuna.samplers.BaseSampler) -> Iterator[tuple[dict[str, Any], Any]]:
        """Yield (parameters, architecture): each sampler's draws in turn."""
        space = self._space()
        for sampler in samplers or (optuna.samplers.RandomSampler(seed=0),):
            study = optuna.create_study(sampler=sampler)
            for _ in range(self.draws):
                trial = study.ask()
                architecture = suggest_checked(space, trial)
                yield trial.params, architecture

    def _build(self, architecture: Architecture, channels: int, size: int) -> nn.Module:
        torch.manual_seed(0)
        return build_model(
            self._space(), architecture, in_channels=channels, num_classes=_CLASSES, image_size=size
        )

    def _cases(self) -> Iterator[tuple[nn.Module, torch.Tensor, torch.Tensor, str]]:
        """Yield networks of random architectures, images, targets and a name, sizes in turn."""
        generator = torch.Generator().manual_seed(0)
        shapes = [(size, channels) for size in self.image_sizes for channels in self.channels]
        for index, (_, architecture) in enumerate(self._draw()):
            size, channels = shapes[index % len(shapes)]
            model = self._build(architecture, channels, size)
            x = torch.randn(4, channels, size, size, generator=generator)
            y = torch.arange(4) % _CLASSES
            yield model, x, y, f"{architecture!r} for {channels}x{size}x{size}"

    def test_the_same_seed_draws_the_same_architectures(self) -> None:
        """Nothing but the trial decides."""
        assert list(self._draw()) == list(self._draw())

    def test_parameters_alone_give_the_architecture(self) -> None:
        """A finished trial's parameters, as they are stored, rebuild it."""
        for parameters, architecture in self._draw():
            again = self._space().suggest(optuna.trial.FixedTrial(parameters))
            assert again == architecture, parameters

    def test_architectures_survive_json(self) -> None:
        """The canonical JSON has everything that `build` needs."""
        for _, architecture in self._draw():
            assert Architecture.from_json(architecture.to_json()) == architecture

    def test_equal_networks_are_equal_architectures(self) -> None:
        """Whatever does not change the network, for the largest images, is left out."""
        size, channels = max(self.image_sizes), self.channels[0]
        found: dict[str, Architecture] = {}
        for _, architecture in self._draw():
            key = network_key(self._build(architecture, channels, size), channels, size)
            if key is not None:
                other = found.setdefault(key, architecture)
                assert other == architecture, f"{other!r} and {architecture!r} are one network"

    def test_the_same_seed_builds_the_same_network(self) -> None:
        """Weights come from torch's generator and from nowhere else."""
        _, architecture = next(self._draw())
        size, channels = self.image_sizes[0], self.channels[0]
        first, second = (self._build(architecture, channels, size) for _ in range(2))
        for (name, a), b in zip(
            first.state_dict().items(), second.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name

    def test_logits_and_gradients(self) -> None:
        """Logits have the right shape, are finite, and depend on every parameter."""
        for model, x, y, name in self._cases():
            logits = model.train()(x)
            assert logits.shape == (len(x), _CLASSES), name
            assert bool(logits.isfinite().all()), name
            parameters = dict(model.named_parameters())
            gradients = torch.autograd.grad(
                F.cross_entropy(logits, y), list(parameters.values()), allow_unused=True
            )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                assert gradient is not None, f"{name}: no gradient reaches {parameter}"
                assert bool(gradient.isfinite().all()), f"{name}: {parameter}"

    def test_the_measure_finds_convolution_and_classifier(self) -> None:
        """Every network ends in global pooling and one linear layer."""
        for model, x, y, name in self._cases():
            two = x[:2], y[:2]
            last = relative_flatness(model, two)
            assert math.isfinite(last.relative_flatness), name
            head = relative_flatness(model, two, layers="head")
            assert len(head.layers) == 1, name
            if isinstance(model, GapCnn):
                assert list(head.layers) == ["classifier"], name

    def test_every_corner_builds(self) -> None:
        """The ends of all ranges, for the smallest and the largest images."""
        samplers = [CornerSampler(end=0), CornerSampler(end=1), CornerSampler(seed=1)]
        seen = set()
        for _, architecture in self._draw(*samplers):
            for size in {min(self.image_sizes), max(self.image_sizes)}:
                if (architecture, size) not in seen:
                    seen.add((architecture, size))
                    self._build(architecture, self.channels[0], size)


class DataSourceContract:
    """Tests of one source of data: subclass it in a test file and define `given`."""

    def given(self, folder: Path) -> Any:
        """Return what `flatsearch.load_data` is given.

        Args:
            folder: An empty folder, for files.
        """
        raise NotImplementedError

    def test_images_and_targets_have_the_right_form(self, tmp_path: Path) -> None:
        """Images (N, C, H, W) of finite numbers, and targets below the number of classes."""
        data = load_data(self.given(tmp_path))
        names = data.class_names
        assert len(set(names)) == len(names) >= 2, names
        assert all(isinstance(name, str) for name in names), names
        size, channels = data.image_size, data.in_channels
        for split in (data.train, data.validation, data.test):
            assert split.images.shape == (len(split), channels, size, size)
            assert split.images.dtype in {torch.uint8, torch.float32}
            assert bool(split.pixels().isfinite().all())
            assert split.targets.dtype == torch.int64
            assert int(split.targets.min()) >= 0
            assert int(split.targets.max()) < len(names)

    def test_what_is_read_is_the_same_each_time(self, tmp_path: Path) -> None:
        """Nothing is random but what `seed` decides."""
        given = self.given(tmp_path)
        first, again = load_data(given), load_data(given)
        assert first.fingerprint() == again.fingerprint()
        assert torch.equal(first.test.pixels(), again.test.pixels())

    def test_images_take_the_size_that_is_asked_for(self, tmp_path: Path) -> None:
        """`image_size` holds for every split, and resizing is said."""
        given = self.given(tmp_path)
        size = load_data(given).image_size + 2
        data = load_data(given, image_size=size)
        assert {s.images.shape[2] for s in (data.train, data.validation, data.test)} == {size}
        assert f"resized to {size}x{size}" in str(data)

    def test_what_was_read_is_said_in_one_line(self, tmp_path: Path) -> None:
        """Images, splits, sizes and classes."""
        data: ImageData = load_data(self.given(tmp_path))
        line = str(data)
        assert "\n" not in line
        assert line.startswith(f"data {data.name}: {len(data.train)} training")
        assert f"{data.num_classes} classes (" in line
