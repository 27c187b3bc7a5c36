"""Every built-in space keeps the contract that third parties are tested by."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from flatsearch import Architecture, GapCnn, relative_flatness
from flatsearch.errors import SpaceError
from flatsearch.testing import CornerSampler, SearchSpaceContract


class BuiltIn(SearchSpaceContract):
    image_sizes: ClassVar[tuple[int, ...]] = (8, 28)
    draws = 4  # every shape of images once

    def test_large_images(self) -> None:
        """The smallest network, on images as large as they are where nobody says how large."""
        self.draws, size = 1, 64
        ((_, architecture),) = self._draw(CornerSampler(end=0))
        for channels in self.channels:
            model = self._build(architecture, channels, size)
            x, y = torch.randn(2, channels, size, size), torch.arange(2)
            assert len(relative_flatness(model, (x, y)).layers) == 1


class TestResNetSmall(BuiltIn):
    space = "resnet_small"


class TestPlainCnn(BuiltIn):
    space = "plain_cnn"


class TestMobileNetSmall(BuiltIn):
    space = "mobilenet_small"


class TestDenseNetSmall(BuiltIn):
    space = "densenet_small"


class TestConvNeXtSmall(BuiltIn):
    space = "convnext_small"


class TestRegNetSmall(BuiltIn):
    space = "regnet_small"


class TestTorchvisionZoo(BuiltIn):
    space = "torchvision_zoo"
    draws = 2


class TestNasBench201(BuiltIn):
    space = "nasbench201"
    draws = 3  # networks of fifteen cells


class Toy:
    """Keeps the contract."""

    def suggest(self, trial: Any) -> Architecture:
        return Architecture("toy", {"width": trial.suggest_int("width", 2, 4)})

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> nn.Module:
        width = architecture["width"]
        features = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU())
        return GapCnn(features, width, num_classes)


class Twice(Toy):
    def suggest(self, trial: Any) -> Architecture:
        widths = [trial.suggest_int("width", 2, 4) for _ in range(2)]
        return Architecture("toy", {"width": widths[0]})


class Forgets(Toy):
    calls = 0

    def suggest(self, trial: Any) -> Architecture:
        Forgets.calls += 1
        return Architecture("toy", {"width": trial.suggest_int("width", 2, 4) + Forgets.calls})


class OwnGenerator(Toy):
    def build(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super().build(*args, **kwargs)
        torch.seed()
        nn.init.normal_(next(model.parameters()))
        return model


class Unused(Toy):
    def build(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super().build(*args, **kwargs)
        model.extra = nn.Linear(2, 2)
        return model


class Flattens(Toy):
    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> nn.Module:
        conv = nn.Conv2d(in_channels, 2, 3, padding=1)
        return nn.Sequential(conv, nn.Flatten(), nn.Linear(2 * image_size**2, num_classes))


class FailsInACorner(Toy):
    def build(self, architecture: Architecture, *args: Any, **kwargs: Any) -> nn.Module:
        if architecture["width"] == 4:
            raise ValueError("too wide")
        return super().build(architecture, *args, **kwargs)


class LeavesNothingOut(Toy):
    def suggest(self, trial: Any) -> Architecture:
        return Architecture("toy", {"width": 3, "unused": trial.suggest_int("unused", 0, 9)})


def contract(broken: object) -> SearchSpaceContract:
    class Contract(SearchSpaceContract):
        space = broken  # type: ignore[assignment]

    return Contract()


@pytest.mark.parametrize(
    ("broken", "test", "message"),
    [
        (Twice, "the_same_seed_draws_the_same_architectures", "'width' is used twice"),
        (Forgets, "parameters_alone_give_the_architecture", "width"),
        (LeavesNothingOut, "equal_networks_are_equal_architectures", "are one network"),
        (OwnGenerator, "the_same_seed_builds_the_same_network", "features.0.weight"),
        (Unused, "logits_and_gradients", "no gradient reaches extra.weight"),
        (Flattens, "the_measure_finds_convolution_and_classifier", "flattened"),
        (FailsInACorner, "every_corner_builds", "FailsInACorner.build failed.*too wide"),
    ],
)
def test_the_contract_can_fail(broken: type, test: str, message: str) -> None:
    for space, fails in ((Toy(), False), (broken(), True)):
        check = getattr(contract(space), f"test_{test}")
        if fails:
            with pytest.raises((AssertionError, SpaceError, Exception), match=message):
                check()
        else:
            check()
