"""Layers that methods put into networks: a chain with side branches, and a classifier of convolutions."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor, nn

Named = Iterable[tuple[str, nn.Module]]


class Chain(nn.Sequential):
    """Named layers, one after the other, and side branches, which only training runs: the chain leaves them out."""

    def __init__(self, layers: Named, sides: Named):
        sides = list(sides)
        super().__init__(OrderedDict([*layers, *sides]))
        self.sides = {name for name, _ in sides}

    def forward(self, x: Tensor) -> Tensor:
        """Images → logits, or whatever the chain makes."""
        for name, layer in self.named_children():
            if name not in self.sides:
                x = layer(x)
        return x


def convs(*widths: int) -> list[nn.Module]:
    """A 3x3 conv and a ReLU between each two of the widths, sizes kept."""
    return [
        layer
        for inputs, outputs in itertools.pairwise(widths)
        for layer in (nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.ReLU(inplace=True))
    ]


def conv_classifier(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """Two 3x3 convs with ReLU, and a 1x1 conv to one map per class: (B, inputs, h, w) → (B, classes, h, w)."""
    return nn.Sequential(*convs(inputs, hidden, hidden), nn.Conv2d(hidden, classes, kernel_size=1))


def pooled() -> list[tuple[str, nn.Module]]:
    """From one map per class to logits: global average pooling."""
    return [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]


def initialize(modules: Iterable[nn.Module], scheme: str) -> None:
    """Initialise new convolutions: "xavier" (uniform) or "he" (normal, fan out); zero bias. As wsolevaluation does."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                if scheme == "xavier":
                    nn.init.xavier_uniform_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
