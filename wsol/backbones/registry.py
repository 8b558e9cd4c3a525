r"""ARCHITECTURES: everything the program must know about a network, under its command-line name.

    @register("vgg16", forms={"cam": "fc", "original": "classifier"}, fast=r"(?!features\.)")
    def vgg16(wanted: Wanted) -> Classifier: ...

Names that no family registers are looked up in timm, then in torchvision
(wsol/backbones/named.py); wsol/backbones/factory.py builds either kind.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from wsol.classifier import Classifier
from wsol.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
FORMS = ("cam", "original")
LAST_LAYERS = ("fc", "conv")


@dataclass(frozen=True)
class Wanted:
    """What is asked of a builder.

    form: one of FORMS. large_feature_map: maps of twice the side. last_layer: of
    LAST_LAYERS, "conv" puts a 1x1 conv before global average pooling instead of a
    Linear behind it. pretrained: ImageNet weights, from pretrained_path (a file or
    a folder) where one is given. image_size: side of the images, for networks
    that are made for one size.
    """

    form: str = "cam"
    large_feature_map: bool = False
    last_layer: str = "fc"
    pretrained: bool = True
    pretrained_path: str | None = None
    image_size: int = 224


@dataclass(frozen=True)
class Architecture:
    """A network's entry.

    builder(wanted) returns it with a head of 1000 classes and says with
    `head_is_new` whether that came with weights. forms: the name of the head in
    each form; two equal names are one network. fast: pattern of the published
    parameter names that learn lr_classifier_ratio times as fast; None: the heads.
    mean and std are those of its weights, of RGB values in [0, 1].
    """

    name: str
    builder: Callable[[Wanted], Classifier]
    forms: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(FORMS, ""))
    fast: str | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def has_two_forms(self) -> bool:
        return len(set(self.forms.values())) > 1

    def form_of(self, names: Iterable[str]) -> str | None:
        """The form whose head is among the tensor names of a checkpoint; None where that does not tell."""
        heads = {name.removeprefix("module.").split(".")[0] for name in names}
        if not self.has_two_forms:
            return None
        # A 1x1 conv stands where the cam form's fc would.
        found = [form for form, head in self.forms.items() if head in heads or (head == "fc" and "conv" in heads)]
        return found[0] if len(found) == 1 else None


ARCHITECTURES: dict[str, Architecture] = {}


def register(name: str, **facts) -> Callable:
    """Decorator that enters a builder into ARCHITECTURES."""

    def enter(builder):
        ARCHITECTURES[name] = Architecture(name, builder, **facts)
        return builder

    return enter


def pooled_head(
    channels: int, last_layer: str, before: Iterable[tuple[str, nn.Module]] = ()
) -> list[tuple[str, nn.Module]]:
    """The layers from (B, C, h, w) to logits: pool and a Linear `fc`, or a 1x1 `conv` and pool (the same function).

    `before`: layers in front of the last one, such as dropout.
    """
    pool = [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    if last_layer == "conv":
        return [*before, ("conv", nn.Conv2d(channels, IMAGENET_CLASSES, kernel_size=1)), *pool]
    return [*pool, *before, ("fc", nn.Linear(channels, IMAGENET_CLASSES))]


def take_over(head: nn.Module, source: nn.Linear) -> None:
    """Copy a Linear's weights to a Linear or 1x1 conv of the same classes."""
    with torch.no_grad():
        head.weight.copy_(source.weight.view_as(head.weight))
        head.bias.copy_(source.bias)


def refuse_conv(wanted: Wanted, what: str) -> None:
    """InputError where a network has no place for --last_layer conv."""
    if wanted.last_layer == "conv":
        raise InputError(f"--last_layer conv: {what}; leave it out")
