"""ARCHITECTURES: everything the program must know about a network, under its command-line name."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from wsol.dual_head import Classifier, linear_layers
from wsol.errors import InputError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """A network's entry.

    builder(pretrained: bool, large_feature_map: bool) returns the network with
    its ImageNet head of 1000 classes; mean and std are those of its weights, of
    RGB values in [0, 1].
    """
    name: str
    builder: Callable[..., nn.Module]
    head: str
    target_layer: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


ARCHITECTURES: dict[str, Architecture] = {}


def register(name: str, *, head: str, target_layer: str, **facts) -> Callable:
    """Decorator that enters a builder into ARCHITECTURES."""
    def enter(builder):
        ARCHITECTURES[name] = Architecture(name, builder, head, target_layer, **facts)
        return builder
    return enter


def build(architecture: str, num_classes: int | None = None, *, pretrained: bool = True,
          large_feature_map: bool = False) -> Classifier:
    """Build a network by its command-line name, without a sigmoid branch.

    Args:
        architecture: a name in ARCHITECTURES.
        num_classes: None keeps the ImageNet head; a number replaces it with a
            new Linear, weights N(0, 0.01) and zero bias as in wsolevaluation.
        pretrained: load ImageNet weights.
        large_feature_map: half the stride of the last stage, maps of twice the side.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"unknown architecture '{architecture}'" + nearest(architecture, ARCHITECTURES)
                         + f" (known: {', '.join(sorted(ARCHITECTURES))})")
    entry = ARCHITECTURES[architecture]
    network = entry.builder(pretrained=pretrained, large_feature_map=large_feature_map)
    classifier = Classifier(network, entry.head, target_layer=entry.target_layer)
    if num_classes is not None:
        replace_last_linear(classifier.softmax_head, network, entry.head, num_classes)
    return classifier


def replace_last_linear(head: nn.Module, network: nn.Module, head_name: str, num_classes: int) -> None:
    """Put a fresh Linear for `num_classes` where the head's last linear layer is."""
    old = linear_layers(head)[-1]
    fresh = nn.Linear(old.in_features, num_classes)
    nn.init.normal_(fresh.weight, std=0.01)
    nn.init.zeros_(fresh.bias)
    name = next(name for name, module in network.named_modules() if module is old)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, fresh)
