"""Build a network by its command-line name, whether it is in our table or in timm or torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsol.backbones.registry import ARCHITECTURES, IMAGENET_CLASSES, Architecture, BuildOptions
from wsol.errors import InputError

if TYPE_CHECKING:
    from wsol.classifier import Classifier
    from wsol.methods.base import TrainingMethod


def get_architecture(name: str) -> Architecture:
    """The entry of a name in ARCHITECTURES, or one made for a classifier of timm or torchvision.

    Raises:
        InputError: unknown name; the message suggests the nearest known one.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    from wsol.backbones.named import find_architecture  # imports timm and torchvision, which takes seconds

    return find_architecture(name)


def build(
    architecture: str,
    num_classes: int | None = None,
    *,
    pretrained: bool = True,
    large_feature_map: bool = False,
    classifier_form: str = "cam",
    last_layer: str = "fc",
    pretrained_path: str | None = None,
    image_size: int = 224,
    method: TrainingMethod | None = None,
) -> Classifier:
    """Build a network by its command-line name, without a sigmoid branch.

    Args:
        architecture: a name in ARCHITECTURES, timm (`hf-hub:` names included) or torchvision.
        num_classes: None keeps the ImageNet head; a number replaces its last layer with a new one, weights
            N(0, 0.01) and zero bias as in wsolevaluation.
        pretrained: load ImageNet weights, from `pretrained_path` if given.
        large_feature_map: maps with twice the side length (halves the stride of the last stage).
        classifier_form, last_layer, image_size: see BuildOptions.
        method: the training method whose layers the network gets; None: plain training.

    Raises:
        InputError: unknown name, weights that cannot be loaded, or a network that does not support the options.
    """
    entry = get_architecture(architecture)
    built_in = method is not None and method.layout in entry.layouts
    if built_in and entry.has_two_forms and classifier_form != "cam":
        raise InputError(
            f"--wsol_method {method.layout if method else ''} has layers for the cam form of {architecture} only; give "
            "--classifier_form cam"
        )
    model = entry(
        BuildOptions(
            form=classifier_form,
            large_feature_map=large_feature_map,
            last_layer=last_layer,
            pretrained=pretrained,
            pretrained_path=pretrained_path if pretrained else None,
            image_size=image_size,
            method=method if built_in else None,
        )
    )
    model.fast = entry.fast
    if method is not None and not built_in:
        model = method.adapt(model, image_size)
    if num_classes is not None or model.num_classes != IMAGENET_CLASSES:
        model.reset_head(num_classes or IMAGENET_CLASSES)
    return model
