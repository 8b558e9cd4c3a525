"""The seam of all training methods: plain training, and where a method may differ from it.

A method may change the network (`build` layers into ours, `adapt` any other), the step (`loss`: images, labels and
losses), and the network's own map (`MethodLayers.own_map`). Nothing else in the project asks which method it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from wsol.classifier import Classifier, Output, eval_mode
from wsol.errors import InputError
from wsol.layout import find_layers
from wsol.losses import Objective

Forward = Callable[[Tensor, Tensor], Output]  # images (B, 3, H, W), labels (B,) → Output


class TrainingMethod:
    """Plain training; a subclass overrides what it does otherwise.

    Attributes:
        name: as on the command line.
        layout: the name of the networks with its own layers, for builders that know them; "" if it has none.
        compiles: a step may run a compiled network; not one whose layers are recorded.
        fixed_images: a step sees the images as they are, so that what a frozen trunk makes of them can be kept.
    """

    name: ClassVar[str] = "cam"
    layout: ClassVar[str] = ""
    fixed_images: ClassVar[bool] = True
    compiles: ClassVar[bool] = True

    def adapt(self, model: Classifier, side: int) -> Classifier:
        """A network of timm or torchvision with the method's layers in it; side: of the images, in pixels.

        Raises:
            InputError: the method does not work on such a network.
        """
        return model

    def loss(
        self, model: Classifier, forward: Forward, objective: Objective, images: Tensor, labels: Tensor
    ) -> tuple[Output, Tensor]:
        """One step's output, for the accuracy, and the loss to be minimised.

        Args:
            model: in training mode, except for its frozen parts.
            forward: runs the model.
            objective: of the output of both heads, see wsol/losses.py.
            images: (B, 3, H, W), normalised; may be changed in place.
            labels: (B,).
        """
        output = forward(images, labels)
        return output, objective(output, labels)

    def why_idle(self, model: Classifier) -> str:
        """Why the method changes nothing in the training of this network, or ""."""
        return ""


@contextmanager
def recorded(network: nn.Module, *layers: str) -> Iterator[dict[str, Tensor]]:
    """What layers, by their dotted names, give in the last forward pass of the block: name → output."""
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in layers:

            def record(_layer: nn.Module, _inputs: tuple, output: Tensor, name: str = name) -> None:
                outputs[name] = output

            hooks.callback(network.get_submodule(name).register_forward_hook(record).remove)
        yield outputs


def stretched(maps: Tensor) -> Tensor:
    """Each map of (B, h, w) on [0, 1]; zeros where it is constant."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / (high - low).where(high > low, 1)).where(high > low, 0)


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter of a module trains."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def last_maps(model: Classifier, images: Tensor) -> str:
    """The target layer of a network, found with images (n, 3, H, W) of its size where it is not known."""
    return model.target_layer_name or find_layers(model.network, model.head_name, torch.randn_like(images))[0]


def require_maps(network: nn.Module, layer: str, images: Tensor, method: str) -> int:
    """The number of channels of a layer's maps (B, C, h, w); InputError if it gives something else."""
    with recorded(network, layer) as seen, torch.no_grad(), eval_mode(network):
        network(images)
    maps: object = seen.get(layer)  # a layer may give something else than a tensor, or never be reached
    if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[2] != maps.shape[3] or maps.shape[1] < 2:
        raise InputError(
            f"--wsol_method {method} needs feature maps (B, C, h, w), which {layer} of {type(network).__name__} does "
            "not give; choose another network or method"
        )
    return maps.shape[1]
