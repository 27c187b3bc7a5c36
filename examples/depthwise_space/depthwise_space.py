"""An example space: a stem, then depthwise separable convolutions."""

from torch import nn

from flatsearch import Architecture, GapCnn


class DepthwiseSpace:
    """Depthwise separable networks of one to four layers."""

    def suggest(self, trial):
        depth = trial.suggest_int("depth", 1, 4)
        return Architecture(
            "depthwise",
            {
                "widths": [trial.suggest_int(f"width_{i}", 8, 32, step=8) for i in range(depth)],
                "kernel": trial.suggest_categorical("kernel", [3, 5]),
            },
        )

    def build(self, architecture, in_channels=3, num_classes=10, image_size=32):
        widths, kernel = architecture["widths"], architecture["kernel"]
        inputs, size = widths[0], image_size
        layers = [nn.Conv2d(in_channels, inputs, 3, padding=1)]
        for width in widths:
            stride = 2 if size > 8 else 1
            layers += [
                nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs),
                nn.Conv2d(inputs, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            inputs, size = width, size // stride
        return GapCnn(nn.Sequential(*layers), inputs, num_classes)
