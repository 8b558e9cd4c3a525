"""Layers that several builders put behind their trunk: pooling and the last linear layer, in either order."""

from collections.abc import Iterable

import torch
from torch import nn

from wsol.backbones.registry import IMAGENET_CLASSES, BuildOptions
from wsol.errors import InputError


def pooled_head(
    channels: int, last_layer: str, before: Iterable[tuple[str, nn.Module]] = ()
) -> list[tuple[str, nn.Module]]:
    """Named layers from (B, C, h, w) to logits (B, 1000), for an nn.Sequential.

    Args:
        last_layer: "fc": global average pooling, then a Linear `fc`; "conv": a 1x1 `conv`, then pooling. Both compute
            the same function.
        before: layers right before the last linear layer, such as dropout.
    """
    pool: list[tuple[str, nn.Module]] = [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    if last_layer == "conv":
        return [*before, ("conv", nn.Conv2d(channels, IMAGENET_CLASSES, kernel_size=1)), *pool]
    return [*pool, *before, ("fc", nn.Linear(channels, IMAGENET_CLASSES))]


@torch.no_grad()
def copy_linear(source: nn.Linear, target: nn.Module) -> None:
    """Copy a Linear's weights to a Linear or 1x1 conv of the same size."""
    assert isinstance(target, (nn.Linear, nn.Conv2d))
    assert target.bias is not None
    target.weight.copy_(source.weight.view_as(target.weight))
    target.bias.copy_(source.bias)


def refuse_conv(options: BuildOptions, reason: str) -> None:
    """InputError if --last_layer conv is asked of a network that cannot have it."""
    if options.last_layer == "conv":
        raise InputError(f"--last_layer conv: {reason}; leave it out")
