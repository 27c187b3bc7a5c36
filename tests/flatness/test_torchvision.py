"""torchvision's classifiers against an independent float64 computation."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck

import flatsearch
from flatsearch import UnsupportedModelError
from tests.flatness import oracle

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 3  # the time that the independent computation takes is in proportion
# Larger than 48 pixels where the last maps would be of one pixel, which cannot show much.
SIZES = {"convnext_tiny": 64, "densenet121": 64}
# Fewer blocks, or narrower ones, of networks whose millions of parameters take most of the time.
SMALLER: dict[str, Callable[..., nn.Module]] = {
    "resnet18": lambda **options: models.ResNet(BasicBlock, [1, 1, 1, 1], **options),
    "resnet50": lambda **options: models.ResNet(
        Bottleneck, [1, 2, 1, 1], groups=2, width_per_group=8, **options
    ),
    "efficientnet_b0": lambda **options: models.EfficientNet(
        [MBConvConfig(1, 3, 2, 32, 16, 1, 1.0, 1.0), MBConvConfig(6, 5, 2, 16, 24, 2, 1.0, 1.0)],
        dropout=0.2,
        last_channel=24,
        **options,
    ),
    "convnext_tiny": lambda **options: models.ConvNeXt(
        [CNBlockConfig(24, 48, 1), CNBlockConfig(48, 96, 2), CNBlockConfig(96, None, 1)], **options
    ),
    "densenet121": lambda **options: models.DenseNet(16, (3, 4, 6, 4), 32, **options),
    "mobilenet_v2": lambda **options: models.MobileNetV2(
        width_mult=0.5,
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]],
        **options,
    ),
    "regnet_y_400mf": lambda **options: models.RegNet(
        BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25), **options
    ),
    "shufflenet_v2_x1_0": lambda **options: models.ShuffleNetV2(
        [2, 3, 2], [24, 32, 48, 64, 96], **options
    ),
}
# The kind of the last convolution's measure.
LAST = {
    "resnet18": "hessian",
    "resnet50": "hessian",
    "mobilenet_v2": "hessian",
    "mobilenet_v3_small": "gauss-newton",  # two linear layers with a hardswish in between
    "efficientnet_b0": "hessian",  # a SiLU, channel by channel
    "densenet121": "hessian",  # by classes: it is concatenated before the classifier
    "regnet_y_400mf": "hessian",
    "shufflenet_v2_x1_0": "hessian",
    "squeezenet1_1": "hessian",  # no linear layer: the classifier is the last convolution
    "convnext_tiny": "gauss-newton",  # depthwise, followed by a layer norm
}


def network(name: str) -> nn.Module:
    """Random weights in float64, with batch statistics of random images."""
    torch.manual_seed(0)
    make = SMALLER.get(name, functools.partial(models.get_model, name))
    model = make(num_classes=CLASSES).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        with torch.no_grad():
            model.train()(torch.randn(4, 3, 64, 64, dtype=torch.float64))
    return model.eval()


@pytest.mark.parametrize("name", LAST)
def test_last_and_two_middle_convolutions(name: str) -> None:
    model, size = network(name), SIZES.get(name, 48)
    x, y = torch.randn(2, 3, size, size, dtype=torch.float64), torch.tensor([0, 2])
    last = flatsearch.relative_flatness(model, (x, y))
    assert last.kind == LAST[name]
    (final,) = last.layers
    convs = [n for n, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    middle = [convs[len(convs) // 3], convs[2 * len(convs) // 3]]
    some = flatsearch.relative_flatness(model, (x, y), layers=[*middle, final])
    expected = oracle.by_kernel_gradients(model, x, [*middle, final])
    for layer in middle if some.kind == "hessian" else [*middle, final]:
        trace, kappa = expected[layer]
        assert trace > 0
        assert some.layers[layer].hessian_trace == pytest.approx(trace, rel=1e-8)
        assert some.layers[layer].relative_flatness == pytest.approx(kappa, rel=1e-8)
    if name == "efficientnet_b0":
        expected[final] = oracle.by_output_hessian(model, x, y, final)
    assert last.hessian_trace == pytest.approx(expected[final][0], rel=1e-8)
    assert last.relative_flatness == pytest.approx(expected[final][1], rel=1e-8)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("vgg16", 64, "layer 'features.28': its positions are flattened into a dense layer"),
        ("vit_b_16", 224, "layer 'conv_proj', the last convolution, is not followed by global"),
    ],
)
def test_networks_without_global_pooling_are_refused(name: str, size: int, reason: str) -> None:
    with torch.device("meta"):  # drawing the weights would take most of the time
        model = models.get_model(name, num_classes=CLASSES)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match=reason):
        flatsearch.relative_flatness(model, (torch.randn(2, 3, size, size), torch.tensor([0, 1])))
