"""Dual-CAM's branch: find the classification head, clone it, freeze the rest.

    from wsol import dualize
    dual = dualize(torchvision.models.resnet50(weights="DEFAULT"))
    out = dual(images)                 # out.logits, out.sigmoid_logits: (B, K)

Source: "Beyond Softmax: Dual-Branch Sigmoid Architecture for Accurate Class
Activation Maps", BMVC 2025. The paper describes the sigmoid branch as a clone
of the trained softmax head; that is what is done here.
"""

import copy

from torch import nn

from wsol.classifier import Classifier, find_head, linear_layers
from wsol.errors import InputError, nearest


def dualize(model: nn.Module, head: str | None = None, target_layer: str | None = None) -> Classifier:
    """Give a trained classifier the sigmoid branch of Dual-CAM.

    The head is copied (both branches answer alike until the copy is trained) and
    everything but the copy is frozen. The model itself is used, not copied.

    Args:
        model: any classifier whose head is a Linear, a 1x1 conv or an MLP, of
            timm, torchvision or your own; or a `Classifier` without a branch.
        head: dotted name of the head; None: found, see `find_head`.
        target_layer: dotted name of the layer that maps are made of.

    Returns:
        A Classifier: `dual(images)` gives `.logits` and `.sigmoid_logits`.

    Raises:
        InputError: no head was found, or there is no module of that name.
    """
    facts = {}
    if isinstance(model, Classifier):
        if model.sigmoid_head is not None:
            raise InputError("this classifier has a sigmoid branch already")
        facts = dict(pooled_layer=target_layer or model.pooled_layer_name, neck=model.neck_names, fast=model.fast)
        model, head, target_layer = model.network, head or model.head_name, target_layer or model.target_layer_name
    names = dict(model.named_modules())
    head = head or find_head(model)
    for what, name in (("head", head), ("target layer", target_layer)):
        if name is not None and name not in names:
            raise InputError(f"{type(model).__name__} has no module '{name}' to be its {what}" + nearest(name, names))
    if not linear_layers(names[head]):
        raise InputError(f"the head '{head}' of {type(model).__name__} holds no Linear and no 1x1 conv")
    dual = Classifier(model, head, copy.deepcopy(names[head]), target_layer, **facts)
    return dual.set_trainable(["sigmoid_head"])
