"""What a candidate costs, against sums done by hand."""

from __future__ import annotations

import optuna
import pytest
import torch
import torchvision
from torch import Tensor, nn

from flatsearch.networks.cost import (
    count_flops,
    excess,
    measure_cost,
    measure_latency,
    over_limit,
)
from flatsearch.networks.gap_cnn import GapCnn
from flatsearch.spaces.registry import load_space, space_names
from flatsearch.spaces.space import build_model, suggest_checked


def count_memory(model: nn.Module, in_channels: int, image_size: int) -> int:
    return int(measure_cost(model, in_channels, image_size)["memory"])


def maps(*channels: int) -> int:
    """Bytes of float32 maps of 4x4 pixels."""
    return 4 * 16 * sum(channels)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(1, 3, 1)], maps(1, 3)),
        # In place: the activation costs nothing.
        ([nn.Conv2d(1, 3, 1), nn.ReLU(inplace=True)], maps(1, 3)),
        ([nn.Conv2d(1, 3, 1), nn.ReLU()], maps(1, 3, 3)),
        # The image (held by the caller), input and output of the widest convolution; what came
        # before is gone.
        ([nn.Conv2d(1, 2, 1), nn.Conv2d(2, 5, 1), nn.Conv2d(5, 7, 1)], maps(1, 5, 7)),
        # A view is no copy.
        ([nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Unflatten(1, (3, 4, 4))], maps(1, 3)),
    ],
)
def test_memory_of_a_chain(layers: list[nn.Module], expected: int) -> None:
    assert count_memory(nn.Sequential(*layers), 1, 4) == expected


def test_a_shortcut_keeps_its_map_alive() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(i, 4, 1) for i in (1, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.b(self.a(x))

    # image, x, a(x) and b(a(x)); or image, x, b(a(x)) and the sum
    assert count_memory(Residual(), 1, 4) == maps(1, 4, 4, 4)


def test_memory_leaves_the_model_alone() -> None:
    model = GapCnn(nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU()), 3, 2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (count_memory(model, 1, 4) for _ in range(2))
    assert first == second  # nothing is left over
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_what_is_asked_for_is_timed() -> None:
    model = nn.Conv2d(1, 1, 1)
    assert set(measure_cost(model, 1, 4)) == {"parameters", "flops", "memory"}
    cost = measure_cost(model, 1, 4, ["accuracy", "latency", "batch_latency"])
    assert cost["latency"] > 0
    assert cost["batch_latency"] > 0


def test_the_cost_of_the_exported_network() -> None:
    model = GapCnn(nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU()), 3, 2).train()
    cost = measure_cost(model, 1, 4, ["onnx_latency", "onnx_memory"])
    assert cost["onnx_latency"] > 0
    assert model.training
    # The convolution with the batch norm folded into it, the linear layer; before and after ReLU.
    # Exporters add an index or two.
    assert 0 <= cost["onnx_memory"] - 4 * (3 + 3 + 3 * 2 + 2) - 2 * maps(3) <= 64


def test_a_latency_is_of_its_batch() -> None:
    seen = []

    class Spy(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((tuple(x.shape), self.training))
            return super().forward(x)

    measure_latency(Spy(3, 2, 1), 3, 5, batch_size=64)
    assert set(seen) == {((64, 3, 5, 5), False)}


def test_limits() -> None:
    cost = {"parameters": 1_234_567, "memory": 10, "latency": 2.34567}
    assert excess(cost, {"memory": 20}) == {"memory": -0.5}
    assert not over_limit(cost, {"memory": 10, "latency": 3.0})
    assert over_limit(cost, {"parameters": 1_000_000, "latency": 2.0}) == (
        "over the limit: 1234567 parameters, at most 1000000"
    )
    assert over_limit(cost, {"latency": 2.0}) == "over the limit: 2.346 ms latency, at most 2 ms"
    assert over_limit(cost, {"memory": 5}) == "over the limit: 10 bytes memory, at most 5 bytes"


def test_the_large_batch_is_64() -> None:
    seen = set()

    class Spy(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(len(x))
            return super().forward(x)

    measure_cost(Spy(1, 1, 1), 1, 4, ["batch_latency"])
    assert seen == {1, 64}


def test_a_view_of_a_weight_is_no_activation() -> None:
    class Transposed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight.t()

    assert count_memory(Transposed(16, 2, bias=False), 1, 4) == maps(1) + 4 * 2


def test_sparse_tensors_are_passed_over() -> None:
    class Sparse(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to_sparse().to_dense())

    assert count_memory(Sparse(1, 1, 1), 1, 4) > 0


@pytest.mark.parametrize("name", [name for name in space_names() if name != "torchvision_zoo"])
def test_flops_are_those_of_pytorchs_own_counter(name: str) -> None:
    space = load_space(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(3):
        model = build_model(
            space, suggest_checked(space, study.ask()), in_channels=1, num_classes=4, image_size=8
        )
        assert measure_cost(model, 1, 8)["flops"] == count_flops(model, 1, 8)


@pytest.mark.parametrize(
    "name",
    [
        "densenet121",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
        "regnet_x_400mf",
        "resnet50",
        "googlenet",
        "convnext_tiny",
        "swin_t",
        "vit_b_32",
    ],
)
def test_flops_of_torchvision_networks(name: str) -> None:
    options = {"image_size": 32} if name.startswith("vit") else {}
    if name == "googlenet":
        options = {"aux_logits": False, "init_weights": False}
    if name in {"swin_t", "regnet_x_400mf"}:  # these compute with numbers as they are made
        model = torchvision.models.get_model(name, **options)
    else:  # drawing the weights would take most of the time
        with torch.device("meta"):
            model = torchvision.models.get_model(name, **options)
        model.to_empty(device="cpu")
    assert measure_cost(model, 3, 32)["flops"] == count_flops(model, 3, 32)
