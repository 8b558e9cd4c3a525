"""Build a network by its command-line name, whether it is in our table or in timm or torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsol.backbones.registry import ARCHITECTURES, IMAGENET_CLASSES, Architecture, BuildOptions

if TYPE_CHECKING:
    from wsol.classifier import Classifier


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
) -> Classifier:
    """Build a network by its command-line name, without a sigmoid branch.

    Args:
        architecture: a name in ARCHITECTURES, timm (`hf-hub:` names included) or torchvision.
        num_classes: None keeps the ImageNet head; a number replaces its last layer with a new one, weights
            N(0, 0.01) and zero bias as in wsolevaluation.
        pretrained: load ImageNet weights, from `pretrained_path` if given.
        large_feature_map: maps with twice the side length (halves the stride of the last stage).
        classifier_form, last_layer, image_size: see BuildOptions.

    Raises:
        InputError: unknown name, weights that cannot be loaded, or a network that does not support the options.
    """
    entry = get_architecture(architecture)
    model = entry(
        BuildOptions(
            form=classifier_form,
            large_feature_map=large_feature_map,
            last_layer=last_layer,
            pretrained=pretrained,
            pretrained_path=pretrained_path if pretrained else None,
            image_size=image_size,
        )
    )
    model.fast = entry.fast
    if num_classes is not None or model.num_classes != IMAGENET_CLASSES:
        model.reset_head(num_classes or IMAGENET_CLASSES)
    return model
