"""Guided backpropagation: which pixels excite a class, with every negative signal cut on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from wsol.cam.targets import logit
from wsol.classifier import eval_mode, logits_of
from wsol.errors import InputError

_RECTIFIERS = (nn.ReLU, nn.ReLU6)


def guided_backpropagation(model: nn.Module, images: Tensor, class_ids: Tensor | Sequence[int] | None = None) -> Tensor:
    """d s_k / d image, where each ReLU passes back only positive gradients of positive activations.

    Springenberg et al., "Striving for Simplicity", ICLR 2015 workshop. Times a Grad-CAM map at the image's size it is
    Guided Grad-CAM (Selvaraju et al., ICCV 2017). It shows edges more than what a class rests on (Adebayo et al.,
    "Sanity Checks for Saliency Maps", NeurIPS 2018): a picture for the eye, not a map to measure.

    Args:
        model: any network of images whose activations are ReLU or ReLU6; runs in eval mode and is left as it was.
        images: (B, 3, H, W), normalised.
        class_ids: (B,), the classes to explain; None: the predicted ones.

    Returns:
        (B, 3, H, W), signed.

    Raises:
        InputError: the network has no such activation.
    """
    network = getattr(model, "network", model)
    rectifiers = [module for module in network.modules() if isinstance(module, _RECTIFIERS)]
    if not rectifiers:
        raise InputError(
            f"guided backpropagation needs ReLUs, and {type(network).__name__} has none among its modules; it is "
            "defined for networks such as VGG and ResNet"
        )

    def guide(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp(min=0))

    with torch.inference_mode(False), torch.enable_grad(), eval_mode(model), ExitStack() as hooks:
        for module in dict.fromkeys(rectifiers):
            hooks.callback(module.register_forward_hook(guide).remove)
        images = images.detach().clone().requires_grad_()
        logits = logits_of(network(images))
        chosen = logits.argmax(dim=1) if class_ids is None else torch.as_tensor(class_ids, device=logits.device)
        return torch.autograd.grad(logit(logits, chosen).sum(), images)[0]
