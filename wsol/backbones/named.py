"""Any classifier of timm or torchvision by its name; its head and target layer are found, not listed."""

from __future__ import annotations

from functools import lru_cache, partial

import timm
import torch
import torchvision
from torch import nn

from wsol.backbones.heads import refuse_conv
from wsol.backbones.registry import (
    ARCHITECTURES,
    IMAGENET_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    BuildOptions,
)
from wsol.backbones.weights import HUB_PREFIXES, create_timm, load_strictly, timm_config, torchvision_weights
from wsol.classifier import Classifier, find_head
from wsol.errors import InputError, nearest
from wsol.layout import find_layers


@lru_cache
def find_architecture(name: str) -> Architecture:
    """The Architecture of a timm or torchvision classifier, or of timm's `hf-hub:ORGANISATION/NAME`.

    Raises:
        InputError: there is no such network, and the message suggests the nearest known name; or the repository cannot
            be reached.
    """
    if name.startswith(HUB_PREFIXES) or timm.is_model(name):
        try:
            config = timm_config(name)
        except RuntimeError as error:
            raise InputError(f"unknown architecture '{name}': {error}") from None
        mean, std = (config.mean, config.std) if config and config.mean else (IMAGENET_MEAN, IMAGENET_STD)
        return Architecture(name, partial(from_timm, name), mean=tuple(mean), std=tuple(std))
    if name in _torchvision_names():
        return Architecture(name, partial(from_torchvision, name))
    known = [*ARCHITECTURES, *timm.list_models(), *_torchvision_names()]
    raise InputError(
        f"unknown architecture '{name}'{nearest(name, known)} (known: {', '.join(sorted(ARCHITECTURES))}, and the "
        "classifiers of timm and torchvision)"
    )


@lru_cache
def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def from_timm(name: str, options: BuildOptions) -> Classifier:
    """timm's network of that name with a head of 1000 classes; InputError if it does not support the options."""
    refuse_conv(options, f"timm builds {name} with a head of its own")
    config = timm_config(name)
    arguments: dict[str, int] = {"output_stride": 16} if options.large_feature_map else {}
    if config and config.fixed_input_size and config.input_size[-1] != options.image_size:
        arguments["img_size"] = options.image_size
    has_head = bool(config and config.num_classes == IMAGENET_CLASSES)
    if not has_head:
        arguments["num_classes"] = IMAGENET_CLASSES
    try:
        network = create_timm(name, options, **arguments)
    except InputError:
        raise
    except (TypeError, NotImplementedError, AssertionError, ValueError):
        if options.large_feature_map:
            raise InputError(
                f"--large_feature_map: timm cannot halve the stride of {name}; leave it out or enlarge --crop_size"
            ) from None
        if config and "img_size" in arguments:
            raise InputError(
                f"--crop_size {options.image_size}: timm builds {name} only for images of {config.input_size[-1]}"
            ) from None
        raise
    return with_found_layers(network, options.image_size, head_is_new=not (options.pretrained and has_head))


def from_torchvision(name: str, options: BuildOptions) -> Classifier:
    """torchvision's network of that name; InputError if it does not support the options."""
    refuse_conv(options, f"torchvision builds {name} with a head of its own")
    if options.large_feature_map:
        raise InputError(
            f"--large_feature_map: torchvision cannot halve the stride of {name}; leave it out, enlarge "
            "--crop_size, or use timm's network"
        )
    arguments: dict[str, int] = {"init_weights": True} if name == "googlenet" else {}
    if name.startswith("vit_"):
        arguments["image_size"] = options.image_size
    try:
        network = torchvision.models.get_model(name, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"torchvision cannot build {name}: {str(error).splitlines()[0]}") from None
    if options.pretrained:
        entries = torchvision.models.get_model_weights(name)
        weights = getattr(entries, "IMAGENET1K_V1", None) or entries.DEFAULT
        load_strictly(network, torchvision_weights(weights, options, name), name)
    if hasattr(network, "aux_logits"):  # GoogLeNet: its auxiliary heads are not trained here
        network.aux_logits, network.aux1, network.aux2 = False, None, None
    return with_found_layers(network, options.image_size, head_is_new=not options.pretrained)


def with_found_layers(network: nn.Module, image_size: int, head_is_new: bool = True) -> Classifier:
    """A Classifier whose head, target layer and pooled layer are found; see wsol/layout.py.

    Raises:
        InputError: the network has no such layers, or does not take images of this size.
    """
    head = find_head(network)
    images = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    target, pooled = find_layers(network, head, images)
    return Classifier(network, head, target_layer=target, pooled_layer=pooled, head_is_new=head_is_new)
