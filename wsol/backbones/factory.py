"""A network by its command-line name, registered here or known to timm or torchvision."""

from dataclasses import replace

from torch import nn

from wsol.backbones.named import entry as named_entry
from wsol.backbones.registry import ARCHITECTURES, IMAGENET_CLASSES, Architecture, Wanted
from wsol.classifier import Classifier, linear_layers, randomize


def get_architecture(name: str) -> Architecture:
    """The entry of a registered name, or one made for a classifier of timm or torchvision.

    Raises:
        InputError: unknown name; the message has the nearest known one.
    """
    return ARCHITECTURES[name] if name in ARCHITECTURES else named_entry(name)


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
        architecture: a name in ARCHITECTURES, in timm or in torchvision.
        num_classes: None: the ImageNet classes; a number replaces the head's last
            layer with a new one, weights N(0, 0.01) and zero bias as in wsolevaluation.
        pretrained: load ImageNet weights, from `pretrained_path` if given.
        large_feature_map: half the stride of the last stage, maps of twice the side.
        classifier_form, last_layer, image_size: see Wanted.

    Raises:
        InputError: unknown name, or the network does not come as asked for.
    """
    entry = get_architecture(architecture)
    wanted = Wanted(classifier_form, large_feature_map, last_layer, pretrained, pretrained_path, image_size)
    if pretrained_path and not pretrained:
        wanted = replace(wanted, pretrained_path=None)
    model = entry.builder(wanted)
    model.fast = entry.fast
    if num_classes is not None or model.num_classes != IMAGENET_CLASSES:
        new_classes(model, num_classes or IMAGENET_CLASSES)
    return model


def new_classes(model: Classifier, num_classes: int) -> None:
    """Put a fresh layer for `num_classes` where the head's last linear layer is."""
    old = linear_layers(model.softmax_head)[-1]
    if isinstance(old, nn.Linear):
        fresh = nn.Linear(old.in_features, num_classes)
    else:
        fresh = nn.Conv2d(old.in_channels, num_classes, kernel_size=1)
    randomize(fresh)
    name = next(name for name, module in model.network.named_modules() if module is old)
    parent, _, attribute = name.rpartition(".")
    setattr(model.network.get_submodule(parent), attribute, fresh)
    model.head_is_new = True
