"""The measure alone: every convolution of a torchvision network on your own images."""

import torch
import torchvision

import flatsearch

torch.manual_seed(0)
model = torchvision.models.resnet18(num_classes=10)  # weights="DEFAULT" for trained ones
images, labels = torch.randn(16, 3, 64, 64), torch.randint(0, 10, (16,))

last = flatsearch.relative_flatness(model, (images, labels))
print(f"last: {last.relative_flatness:.4g} +- {last.standard_error:.2g} ({last.kind})")
every = flatsearch.relative_flatness(model, (images, labels), layers="all")
for name, layer in every.layers.items():
    print(f"{name:24} {layer.relative_flatness:.4g}")
