"""`resnet_small` as a search space: what it draws, what it builds, what is measured in it."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsearch
from flatsearch import Architecture, GapCnn, count_parameters
from flatsearch.spaces.space import build_model
from search_spaces.resnet_small import ResNetSmall
from tests.flatness import oracle

SPACE = ResNetSmall()
SIZES = (8, 28, 32, 64)
PARAMETERS: dict[str, Any] = {
    "stem_width": 8,
    "stages": 3,
    "blocks_1": 1,
    "blocks_2": 1,
    "blocks_3": 1,
    "widen_2": 2.0,
    "widen_3": 1.5,
    "block": "basic",
    "kernel": 3,
    "activation": "relu",
    "pre_activation": False,
    "squeeze_excitation": False,
}


def drawn(count: int = 60) -> list[tuple[dict[str, Any], Architecture]]:
    """Random (parameters, architecture)."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    pairs = []
    for _ in range(count):
        trial = study.ask()
        architecture = SPACE.suggest(trial)
        pairs.append((trial.params, architecture))
    return pairs


DRAWN = drawn()


def suggest(**changes: Any) -> Architecture:
    return SPACE.suggest(optuna.trial.FixedTrial({**PARAMETERS, **changes}))


def build(architecture: Architecture, channels: int, size: int, seed: int = 0) -> GapCnn:
    torch.manual_seed(seed)
    model = build_model(SPACE, architecture, in_channels=channels, num_classes=4, image_size=size)
    assert isinstance(model, GapCnn)
    return model


def last_of_branch(model: GapCnn) -> str:
    """The last convolution of the last block's branch, by name."""
    last = max(i for i, layer in enumerate(model.features) if hasattr(layer, "branch"))
    branch = model.features[last].branch
    inner = max(i for i, layer in enumerate(branch) if isinstance(layer, nn.Conv2d))
    return f"features.{last}.branch.{inner}"


def test_the_draws_reach_all_choices() -> None:
    for name, choices in {
        "block": {"basic", "bottleneck"},
        "kernel": {3, 5},
        "activation": {"relu", "silu", "gelu"},
        "pre_activation": {False, True},
        "squeeze_excitation": {False, True},
    }.items():
        assert {architecture[name] for _, architecture in DRAWN} == choices
    assert {len(architecture["widths"]) for _, architecture in DRAWN} == {1, 2, 3}
    assert {architecture["widths"][0] for _, architecture in DRAWN} == {8, 16, 24, 32}
    for _, architecture in DRAWN:
        assert len(architecture["widths"]) == len(architecture["blocks"])
        assert list(architecture["widths"]) == sorted(architecture["widths"])


def test_equal_parameters_give_equal_architectures() -> None:
    for (parameters, architecture), (again, other) in zip(DRAWN, drawn(), strict=True):
        assert parameters == again
        assert architecture == other
        assert SPACE.suggest(optuna.trial.FixedTrial(parameters)) == architecture
        assert Architecture.from_json(architecture.to_json()) == architecture
    assert len({architecture for _, architecture in DRAWN}) > 50


def test_every_parameter_changes_the_architecture() -> None:
    changed = {
        "stem_width": 16,
        "stages": 2,
        "blocks_1": 2,
        "blocks_2": 2,
        "blocks_3": 2,
        "widen_2": 1.0,
        "widen_3": 1.0,
        "block": "bottleneck",
        "kernel": 5,
        "activation": "gelu",
        "pre_activation": True,
        "squeeze_excitation": True,
    }
    assert set(changed) == set(PARAMETERS)
    architectures = {suggest(**{name: value}) for name, value in changed.items()}
    assert len(architectures | {suggest()}) == len(changed) + 1


def test_widths_are_worked_out_from_the_factors() -> None:
    assert suggest()["widths"] == (8, 16, 24)
    assert suggest(widen_2=1.5, widen_3=1.5)["widths"] == (8, 12, 18)
    assert suggest(stages=1)["widths"] == (8,)
    assert suggest(blocks_2=3)["blocks"] == (1, 3, 1)


@pytest.mark.parametrize("size", SIZES)
def test_random_architectures_build_and_learn(size: int) -> None:
    for index, (_, architecture) in enumerate(DRAWN[SIZES.index(size) :: len(SIZES)]):
        channels = (1, 3)[index % 2]
        check_backward(build(architecture, channels, size), channels, size)


def check_backward(model: GapCnn, channels: int, size: int) -> None:
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 4)
    assert bool(logits.isfinite().all())
    F.cross_entropy(logits, torch.arange(2)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        # The few rectified units inside a gate may all be off for these images.
        assert bool(parameter.grad.any()) or ".fc" in name, name


def test_both_channel_counts_at_every_size() -> None:
    for _, architecture in DRAWN[:1]:
        for size in SIZES:
            for channels in (1, 3):
                check_backward(build(architecture, channels, size), channels, size)


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_halved_by_the_stem(channels: int) -> None:
    for block in ("basic", "bottleneck"):
        model = build(suggest(block=block), channels, 224)
        check_backward(model, channels, 224)
        # 224 - 112 - 56 in the stem, then 28 and 14 in the stages.
        maps = model.forward_features(torch.zeros(1, channels, 224, 224))
        assert maps.shape[1:] == (24, 14, 14)


@pytest.mark.parametrize(
    ("size", "maps"), [(8, 4), (28, 7), (32, 8), (64, 16), (100, 13), (15, 4), (5, 5)]
)
def test_no_stage_halves_below_the_smallest_map(size: int, maps: int) -> None:
    model = build(suggest(), 3, size)
    assert model.forward_features(torch.zeros(1, 3, size, size)).shape[1:] == (24, maps, maps)


def test_the_last_convolution_of_the_branch_is_measured() -> None:
    shortcuts = set()
    for index, (_, architecture) in enumerate(DRAWN[::4]):
        channels, size = (1, 3)[index % 2], (8, 28)[index % 5 == 0]
        model = build(architecture, channels, size)
        x = torch.randn(4, channels, size, size)
        model(x)  # batch statistics that are not special
        result = flatsearch.relative_flatness(model.eval(), (x, torch.arange(4)))
        assert list(result.layers) == [last_of_branch(model)], architecture
        assert result.kind == "hessian", architecture
        last = model.get_submodule(last_of_branch(model).partition(".branch")[0])
        shortcuts.add((architecture["block"], type(last.shortcut).__name__))
    # The shortcut of the last block has a convolution in some, is the identity in others.
    assert shortcuts == {
        (block, kind) for block in ("basic", "bottleneck") for kind in ("Identity", "Sequential")
    }


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("extra", [False, True])
def test_the_measure_is_that_of_the_dense_hessian(block: str, activation: str, extra: bool) -> None:
    architecture = suggest(
        stages=2,
        widen_2=1.0,
        block=block,
        activation=activation,
        pre_activation=extra,
        squeeze_excitation=extra,
    )
    model = build(architecture, 1, 8).double()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    model(x)
    result = flatsearch.relative_flatness(model.eval(), (x, torch.arange(4)))
    trace, kappa = oracle.by_hessian(model, x, torch.arange(4), last_of_branch(model))
    assert result.hessian_trace == pytest.approx(trace, rel=1e-8)
    assert result.relative_flatness == pytest.approx(kappa, rel=1e-8)


def test_a_block_is_the_activation_of_branch_plus_shortcut() -> None:
    for block in ("basic", "bottleneck"):
        model = build(suggest(block=block), 3, 8).eval()
        first, *_, last = [m for m in model.features if hasattr(m, "branch")]
        x = torch.randn(2, 8, 8, 8)
        assert isinstance(first.shortcut, nn.Identity)
        assert torch.allclose(first(x.clone()), F.relu(first.branch(x) + x))
        wide = torch.randn(2, 16, 4, 4)
        assert torch.allclose(last(wide.clone()), F.relu(last.branch(wide) + last.shortcut(wide)))


def test_a_block_with_pre_activation_is_branch_plus_shortcut() -> None:
    for block in ("basic", "bottleneck"):
        model = build(suggest(block=block, pre_activation=True), 3, 8).eval()
        first = next(m for m in model.features if hasattr(m, "branch"))
        assert isinstance(first.branch[0], nn.BatchNorm2d)
        x = torch.randn(2, 8, 8, 8)
        assert torch.allclose(first(x.clone()), first.branch(x) + x)
        # What the blocks leave out comes at the end.
        assert isinstance(model.features[-2], nn.BatchNorm2d)
        assert isinstance(model.features[-1], nn.ReLU)


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_the_gate_is_before_the_last_convolution(block: str, pre: bool) -> None:
    model = build(suggest(block=block, squeeze_excitation=True, pre_activation=pre), 3, 8)
    blocks = [m for m in model.features if hasattr(m, "branch")]
    for module in blocks:
        kinds = [type(layer).__name__ for layer in module.branch]
        assert kinds.count("SqueezeExcitation") == 1
        last = max(i for i, kind in enumerate(kinds) if kind == "Conv2d")
        assert kinds[last - 1] == "SqueezeExcitation"
    # Its two 1x1 convolutions with biases are all it adds: 8 or 4 channels to 4 and back.
    small = suggest(stages=1, block=block, pre_activation=pre)
    gated = suggest(stages=1, block=block, pre_activation=pre, squeeze_excitation=True)
    added = count_parameters(build(gated, 1, 8)) - count_parameters(build(small, 1, 8))
    assert added == {"basic": 36 + 40, "bottleneck": 20 + 20}[block]


def test_size_worked_out_by_hand() -> None:
    # Stem 1-8 3x3, one basic block 8-8 of two 3x3, a norm (2 per channel) each, classifier 8-4.
    model = build(suggest(stages=1), 1, 8)
    assert count_parameters(model) == 72 + 16 + 2 * (576 + 16) + 36
    # The bottleneck: 1x1 to 4 channels, 3x3, 1x1 back to 8.
    model = build(suggest(stages=1, block="bottleneck"), 1, 8)
    assert count_parameters(model) == 72 + 16 + (32 + 8) + (144 + 8) + (32 + 16) + 36
    model = build(suggest(stages=1, block="bottleneck", stem_width=32), 1, 8)
    assert count_parameters(model) == 288 + 64 + (256 + 16) + (576 + 16) + (256 + 64) + 132


def test_building_is_fresh_and_seeded() -> None:
    first, second, other = (build(suggest(), 3, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(first.features[0][0].weight, second.features[0][0].weight)
    assert not torch.equal(first.features[0][0].weight, other.features[0][0].weight)
    assert first.features[0][0].weight is not second.features[0][0].weight
