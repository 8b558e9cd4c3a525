"""VGG-16: torchvision's layers without the last max-pool, in two forms."""

from collections import OrderedDict

import torchvision
from torch import nn

from wsol.backbones.registry import Wanted, pooled_head, refuse_conv, register
from wsol.backbones.weights import load_strictly, torchvision_weights
from wsol.classifier import Classifier

WEIGHTS = torchvision.models.VGG16_Weights.IMAGENET1K_V1


@register("vgg16", forms={"cam": "fc", "original": "classifier"}, fast=r"(?!features\.)")
def vgg16(wanted: Wanted) -> Classifier:
    """Maps of 14 x 14 at 224 pixels; large_feature_map drops the pool before conv5, too: 28 x 28.

    cam (wsolevaluation): conv6 3x3 to 1024 channels, ReLU, global average
    pooling, fc; maps are made of the ReLU behind conv6.
    original: adaptive pooling to 7 x 7 and torchvision's three linear layers; the
    last ReLU of conv5. The sigmoid branch is all three layers.
    """
    tensors = torchvision_weights(WEIGHTS, wanted, "vgg16") if wanted.pretrained else None
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    initialize(features)
    if tensors:
        load_strictly(features, _below(tensors, "features."), "vgg16's features")
    features = _without_pools(features, (4, 3) if wanted.large_feature_map else (4,))
    if wanted.form == "original":
        refuse_conv(wanted, "vgg16's original form has no global average pooling to put it before")
        return _original(features, _below(tensors or {}, "classifier."))

    head = pooled_head(1024, wanted.last_layer)
    network = nn.Sequential(
        OrderedDict(
            [
                ("features", features),
                ("conv6", nn.Conv2d(512, 1024, kernel_size=3, padding=1)),
                ("relu", nn.ReLU()),
                *head,
            ]
        )
    )
    initialize(network.conv6)
    return Classifier(network, wanted.last_layer, target_layer="relu", neck=["conv6"])


def _original(features: nn.Sequential, tensors: dict) -> Classifier:
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 1000),
    )
    if tensors:
        load_strictly(classifier, tensors, "vgg16's classifier")
    network = nn.Sequential(
        OrderedDict(
            [
                ("features", features),
                ("avgpool", nn.AdaptiveAvgPool2d(7)),
                ("flatten", nn.Flatten()),
                ("classifier", classifier),
            ]
        )
    )
    model = Classifier(network, "classifier", target_layer=f"features.{len(features) - 1}")
    model.head_is_new = not tensors
    return model


def _without_pools(features: nn.Sequential, dropped: tuple[int, ...]) -> nn.Sequential:
    """The same layers without the max-pools of these numbers (from 0); the layers behind them move up."""
    pools = [layer for layer in features if isinstance(layer, nn.MaxPool2d)]
    return nn.Sequential(*(layer for layer in features if layer not in [pools[i] for i in dropped]))


def _below(tensors: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def initialize(module: nn.Module) -> None:
    """He's initialisation of convolutions, as torchvision and wsolevaluation do."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
