"""Any classifier of timm or torchvision by its name: head and target layer are found, not listed.

The target layer is the last one with places (maps or tokens on a grid) that the
head depends on; one forward and one backward pass of noise find it.
"""

from functools import lru_cache, partial

import timm
import torch
import torchvision
from torch import Tensor, nn

from wsol.backbones.registry import (ARCHITECTURES, IMAGENET_CLASSES, IMAGENET_MEAN, IMAGENET_STD, Architecture, Wanted,
                                     refuse_conv)
from wsol.backbones.weights import create_timm, load_strictly, torchvision_weights
from wsol.dual_head import Classifier, find_head
from wsol.errors import InputError, nearest
from wsol.layout import Layout, find_layout

# They hand on what they get (in eval mode); the layer before them is the one to name.
_PASSIVE = (nn.Dropout, nn.Dropout2d, nn.Identity)


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
    raise InputError(f"unknown architecture '{name}'" + nearest(name, known) + f" (known: "
                     f"{', '.join(sorted(ARCHITECTURES))}, and the classifiers of timm and torchvision)")


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
            raise InputError(f"--large_feature_map: timm cannot halve the stride of {name}; leave it out or enlarge "
                             "--crop_size") from None
        if "img_size" in arguments and not isinstance(error, InputError):
            raise InputError(f"--crop_size {wanted.image_size}: timm builds {name} for images of "
                             f"{config.input_size[-1]} only") from None
        raise
    return anatomy(network, wanted.image_size, head_is_new=not (wanted.pretrained and has_head))


def from_torchvision(name: str, wanted: Wanted) -> Classifier:
    refuse_conv(wanted, f"{name} ends as torchvision built it")
    if wanted.large_feature_map:
        raise InputError(f"--large_feature_map: torchvision cannot halve the stride of {name}; leave it out, enlarge "
                         "--crop_size, or use timm's network")
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
    if hasattr(network, "aux_logits"):      # GoogLeNet: training with its extra heads is not ours
        network.aux_logits, network.aux1, network.aux2 = False, None, None
    return anatomy(network, wanted.image_size, head_is_new=not wanted.pretrained)


def anatomy(network: nn.Module, image_size: int, head_is_new: bool = True) -> Classifier:
    """Find head, target layer and pooled layer of a network with one pass over an image of noise.

    pooled: the last layer with places before the head. target: the last one as
    wide as that whose places (not only its prefix tokens) the head depends on.

    Raises:
        InputError: there is no such layer, or the network does not take images of this size.
    """
    head = find_head(network)
    seen: list[tuple[str, Tensor, Layout]] = []     # in the order of execution
    reached: list[Tensor] = []

    def note(name, module, output):
        if not reached and isinstance(output, Tensor) and not isinstance(module, _PASSIVE):
            layout = find_layout(tuple(output.shape), (image_size, image_size))
            if layout and layout.grid[0] == layout.grid[1] > 1:
                seen.append((name, output, layout))

    modes = {module: module.training for module in network.modules()}
    network.eval()
    handles = [module.register_forward_hook(lambda module, _inputs, output, name=name: note(name, module, output))
               for name, module in network.named_modules() if name and not name.startswith(f"{head}.")]
    handles.append(network.get_submodule(head).register_forward_pre_hook(lambda _head, inputs: reached.append(inputs[0])))
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            network(torch.randn(1, 3, image_size, image_size))
            if not seen or not reached:
                raise InputError(f"{type(network).__name__} has no layer with places before its head '{head}'; larger "
                                 "images (--crop_size) may have some left")
            # Not the logits' gradient: some heads start as zeros. Not the plain sum's: it is zero behind LayerNorm.
            probe = (reached[0] * torch.randn_like(reached[0])).sum()
            pooled, last, layout = seen[-1]
            width = layout.to_maps(last).shape[1]
            alike = [(name, output, layout) for name, output, layout in reversed(seen)
                     if layout.to_maps(output).shape[1] == width and output.requires_grad]
            target = next((name for name, output, layout in alike if _places_matter(probe, output, layout)), pooled)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--crop_size {image_size}: {type(network).__name__} does not take such images "
                         f"({reason})") from None
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    model = Classifier(network, head, target_layer=target, pooled_layer=pooled)
    model.head_is_new = head_is_new
    return model


def _places_matter(probe: Tensor, output: Tensor, layout: Layout) -> bool:
    gradient = torch.autograd.grad(probe, output, retain_graph=True, allow_unused=True)[0]
    return gradient is not None and bool((layout.to_maps(gradient) != 0).any())
