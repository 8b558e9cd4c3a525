"""Dual-CAM's sigmoid branch: find the classification head, clone it, freeze the rest; nonnegative weights.

    from wsol import dualize
    dual = dualize(torchvision.models.resnet50(weights="DEFAULT"))
    out = dual(images)                 # out.logits, out.sigmoid_logits: (B, K)

Source: "Beyond Softmax: Dual-Branch Sigmoid Architecture for Accurate Class Activation Maps", BMVC 2025. The paper
describes the sigmoid branch as a clone of the trained softmax head; that is what is done here.
"""

import copy

import torch
from torch import nn

from wsol.classifier import Classifier, MethodLayers, find_head, linear_layers, module_name
from wsol.errors import InputError


def dualize(
    model: nn.Module, head: nn.Module | str | None = None, target_layer: nn.Module | str | None = None
) -> Classifier:
    """Give a trained classifier the sigmoid branch of Dual-CAM.

    The head is copied, so both branches give the same logits until the copy is trained. Everything but the copy is
    frozen. The model itself is used, not copied.

    Args:
        model: any classifier of timm, torchvision, transformers or your own whose head is a Linear, a 1x1 conv or an
            MLP, and whose output `wsol.classifier.logits_of` reads; or a `Classifier` without a branch.
        head: the head, as a module of the model or by its dotted name; None: found, see `find_head`.
        target_layer: the layer that maps are made of, given likewise; None: found by CamExtractor.

    Returns:
        A Classifier: `dual(images)` gives `.logits` and `.sigmoid_logits`.

    Raises:
        InputError: no head was found, or the model does not have the module that was named.
    """
    network = model.network if isinstance(model, Classifier) else model
    if target_layer is not None:
        target_layer = module_name(network, target_layer, "target layer")
    if head is not None:
        head = module_name(network, head, "head")
    if isinstance(model, Classifier):
        if model.sigmoid_head is not None:
            raise InputError("this classifier has a sigmoid branch already")
        head, pooled_layer = head or model.head_name, target_layer or model.pooled_layer_name
        target_layer, neck, fast = target_layer or model.target_layer_name, model.neck_names, model.fast
        head_is_new, method_layers = model.head_is_new, model.method_layers
    else:
        head, pooled_layer, neck, fast, head_is_new = head or find_head(network), target_layer, (), None, False
        method_layers = MethodLayers()
    softmax_head = network.get_submodule(head)
    if not linear_layers(softmax_head):
        raise InputError(f"the head '{head}' of {type(network).__name__} has no Linear and no 1x1 conv")
    dual = Classifier(
        network,
        head,
        copy.deepcopy(softmax_head),
        target_layer,
        pooled_layer=pooled_layer,
        neck=neck,
        fast=fast,
        head_is_new=head_is_new,
        method_layers=method_layers,
    )
    return dual.set_trainable(["sigmoid_head"])


@torch.no_grad()
def make_nonnegative(head: nn.Module) -> None:
    """Set the negative weights of a head's last linear layer to zero, in place; its bias is left as it is.

    Called after each optimizer step, this is projected gradient descent onto weights >= 0. The head then explains a
    class by the same weights that a clamped map uses. In an MLP head, units of the last hidden layer are only added to
    a class's score, never subtracted.
    """
    linear_layers(head)[-1].weight.clamp_(min=0)
