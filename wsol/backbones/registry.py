r"""ARCHITECTURES: the networks by their command-line names, and what is true of each.

A network is a builder, a function from `BuildOptions` to a `Classifier` in a file of its family, and one line here.
The table can be read without importing torch: builders are imported when first called.

Names that are not in the table are looked up in timm, then in torchvision (wsol/backbones/named.py). `get_architecture`
and `build` in wsol/backbones/factory.py handle both kinds.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsol.classifier import Classifier
    from wsol.methods.base import TrainingMethod

    Builder = Callable[["BuildOptions"], Classifier]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
FORMS = ("cam", "original")
LAST_LAYERS = ("fc", "conv")


@dataclass(frozen=True)
class BuildOptions:
    """What a builder is asked to build.

    Attributes:
        form: one of FORMS: "cam" ends in global average pooling and one linear layer, "original" as published.
        large_feature_map: maps with twice the side length.
        last_layer: one of LAST_LAYERS; "conv" is a 1x1 conv before global average pooling instead of a Linear after it.
        pretrained: load ImageNet weights.
        pretrained_path: file or folder to load them from; None: the libraries' caches, or a download.
        image_size: side length of the images, for networks that are built for one size.
        method: the training method whose layers the network gets, of one of the architecture's `layouts`; None: plain.
    """

    form: str = "cam"
    large_feature_map: bool = False
    last_layer: str = "fc"
    pretrained: bool = True
    pretrained_path: str | None = None
    image_size: int = 224
    method: TrainingMethod | None = None

    @property
    def layout(self) -> str:
        """The layout that the method asks for; "" for a plain network."""
        return self.method.layout if self.method is not None else ""


@dataclass(frozen=True)
class Architecture:
    """A network's entry; calling it builds the network.

    Args:
        name: as on the command line.
        builder: the function, or "module:function". It returns the network with a head of 1000 classes.
        forms: the name of the head in each form. If the two are equal, both forms are the same network.
        fast: regular expression for the published names of the parameters that learn lr_classifier_ratio times as
            fast; None: the parameters of the heads.
        layouts: the training methods (wsol/methods/) for which the builder has layers, in its cam form.
        mean, std: normalisation that its weights expect, for RGB values in [0, 1].
    """

    name: str
    builder: str | Builder
    forms: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(FORMS, ""))
    fast: str | None = None
    layouts: tuple[str, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, options: BuildOptions) -> Classifier:
        """Build the network; InputError if it does not support the options."""
        builder = pkgutil.resolve_name(self.builder) if isinstance(self.builder, str) else self.builder
        return builder(options)

    @property
    def has_two_forms(self) -> bool:
        """Whether the two forms are different networks."""
        return len(set(self.forms.values())) > 1

    def form_of(self, names: Iterable[str]) -> str | None:
        """The form whose head is among the (unwrapped) tensor names of a checkpoint; None if they do not tell."""
        if not self.has_two_forms:
            return None
        modules = {name.split(".")[0] for name in names}
        # With last_layer "conv", a 1x1 conv takes the place of fc.
        forms = [form for form, head in self.forms.items() if head in modules or (head == "fc" and "conv" in modules)]
        return forms[0] if len(forms) == 1 else None


_LAYOUTS = ("acol", "spg", "adl")

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("efficientnet_lite0", "wsol.backbones.efficientnet:efficientnet_lite0"),
        Architecture(
            "inception_v3",
            "wsol.backbones.inception:inception_v3",
            forms={"cam": "SPG_A4", "original": "fc"},
            fast=r"(?!Conv2d_|Mixed_)",
            layouts=_LAYOUTS,
        ),
        # The references train layer4 and fc, but not fc2, at the higher rate.
        Architecture("resnet50", "wsol.backbones.resnet:resnet50", fast=r"(layer4|fc|conv)\.", layouts=_LAYOUTS),
        Architecture(
            "vgg16",
            "wsol.backbones.vgg:vgg16",
            forms={"cam": "fc", "original": "classifier"},
            fast=r"(?!features\.)",
            layouts=_LAYOUTS,
        ),
        Architecture("vit", "wsol.backbones.vit:vit", fast=r"(?!features\.(blocks|patch_embed|norm)\.)"),
    )
}


def register(name: str, **properties: Any) -> Callable[[Builder], Builder]:
    """Enter a builder of your own into ARCHITECTURES: `@register("mine")` above the function."""

    def enter(builder: Builder) -> Builder:
        ARCHITECTURES[name] = Architecture(name, builder, **properties)
        return builder

    return enter
