"""Any classifier of timm or torchvision by its name: head and target layer are found, not listed."""

from functools import lru_cache, partial

import timm
import torch
import torchvision
from torch import nn

from wsol.backbones.registry import (
    ARCHITECTURES,
    IMAGENET_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    Wanted,
    refuse_conv,
)
from wsol.backbones.weights import create_timm, load_strictly, torchvision_weights
from wsol.classifier import Classifier, find_head
from wsol.errors import InputError, nearest
from wsol.layout import find_layers


@lru_cache
def entry(name: str) -> Architecture:
    """The Architecture of a timm or torchvision classifier.

    Raises:
        InputError: neither knows the name; the message has the nearest known one.
    """
    if timm.is_model(name):
        try:
            config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        except RuntimeError as error:
            raise InputError(f"unknown architecture '{name}': {error}") from None
        mean, std = (config.mean, config.std) if config and config.mean else (IMAGENET_MEAN, IMAGENET_STD)
        return Architecture(name, partial(from_timm, name), mean=tuple(mean), std=tuple(std))
    if name in _torchvision_names():
        return Architecture(name, partial(from_torchvision, name))
    known = [*ARCHITECTURES, *timm.list_models(), *_torchvision_names()]
    raise InputError(
        f"unknown architecture '{name}'" + nearest(name, known) + f" (known: "
        f"{', '.join(sorted(ARCHITECTURES))}, and the classifiers of timm and torchvision)"
    )


@lru_cache
def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def from_timm(name: str, wanted: Wanted) -> Classifier:
    refuse_conv(wanted, f"{name} ends as timm built it")
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    arguments = {"output_stride": 16} if wanted.large_feature_map else {}
    if config and config.fixed_input_size and config.input_size[-1] != wanted.image_size:
        arguments["img_size"] = wanted.image_size
    has_head = bool(config and config.num_classes == IMAGENET_CLASSES)
    if not has_head:
        arguments["num_classes"] = IMAGENET_CLASSES
    try:
        network = create_timm(name, wanted, **arguments)
    except (TypeError, NotImplementedError, AssertionError, ValueError) as error:
        if wanted.large_feature_map and not isinstance(error, InputError):
            raise InputError(
                f"--large_feature_map: timm cannot halve the stride of {name}; leave it out or enlarge --crop_size"
            ) from None
        if "img_size" in arguments and not isinstance(error, InputError):
            raise InputError(
                f"--crop_size {wanted.image_size}: timm builds {name} for images of {config.input_size[-1]} only"
            ) from None
        raise
    return anatomy(network, wanted.image_size, head_is_new=not (wanted.pretrained and has_head))


def from_torchvision(name: str, wanted: Wanted) -> Classifier:
    refuse_conv(wanted, f"{name} ends as torchvision built it")
    if wanted.large_feature_map:
        raise InputError(
            f"--large_feature_map: torchvision cannot halve the stride of {name}; leave it out, enlarge "
            "--crop_size, or use timm's network"
        )
    arguments = {"init_weights": True} if name == "googlenet" else {}
    if name.startswith("vit_"):
        arguments["image_size"] = wanted.image_size
    try:
        network = torchvision.models.get_model(name, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"torchvision cannot build {name}: {str(error).splitlines()[0]}") from None
    if wanted.pretrained:
        entries = torchvision.models.get_model_weights(name)
        weights = getattr(entries, "IMAGENET1K_V1", None) or entries.DEFAULT
        load_strictly(network, torchvision_weights(weights, wanted, name), name)
    if hasattr(network, "aux_logits"):  # GoogLeNet: training with its extra heads is not ours
        network.aux_logits, network.aux1, network.aux2 = False, None, None
    return anatomy(network, wanted.image_size, head_is_new=not wanted.pretrained)


def anatomy(network: nn.Module, image_size: int, head_is_new: bool = True) -> Classifier:
    """A network with its head, target layer and pooled layer found; see wsol/layout.py.

    Raises:
        InputError: there are no such layers, or the network does not take images of this size.
    """
    head = find_head(network)
    target, pooled = find_layers(
        network, head, torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    )
    model = Classifier(network, head, target_layer=target, pooled_layer=pooled)
    model.head_is_new = head_is_new
    return model
