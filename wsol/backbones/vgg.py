"""VGG-16: torchvision's layers without the last max-pool, in two forms."""

from collections import OrderedDict

import torchvision
from torch import Tensor, nn

from wsol.backbones.heads import pooled_head, refuse_conv
from wsol.backbones.registry import BuildOptions
from wsol.backbones.weights import load_strictly, torchvision_weights
from wsol.classifier import Classifier

WEIGHTS = torchvision.models.VGG16_Weights.IMAGENET1K_V1


def vgg16(options: BuildOptions) -> Classifier:
    """VGG-16 in the form asked for: maps of 14 x 14 at 224 pixels.

    With large_feature_map the pool before conv5 is dropped, too: 28 x 28.
    cam (wsolevaluation): conv6 (3x3 to 1024 channels), ReLU, global average pooling, fc. The target layer is that ReLU.
    original: adaptive pooling to 7 x 7 and torchvision's three linear layers, all of which are the head. The target
    layer is the last ReLU of conv5.
    """
    tensors = torchvision_weights(WEIGHTS, options, "vgg16") if options.pretrained else None
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    initialize(features)
    if tensors:
        load_strictly(features, _below(tensors, "features."), "vgg16's features")
    features = _without_pools(features, (4, 3) if options.large_feature_map else (4,))
    if options.form == "original":
        refuse_conv(options, "vgg16's original form has no global average pooling to put a 1x1 conv before")
        return _original(features, _below(tensors or {}, "classifier."))

    conv6 = nn.Conv2d(512, 1024, kernel_size=3, padding=1)
    initialize(conv6)
    network = nn.Sequential(
        OrderedDict(
            [
                ("features", features),
                ("conv6", conv6),
                ("relu", nn.ReLU()),
                *pooled_head(1024, options.last_layer),
            ]
        )
    )
    return Classifier(network, options.last_layer, target_layer="relu", neck=["conv6"])


def _original(features: nn.Sequential, tensors: dict[str, Tensor]) -> Classifier:
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
    target_layer = f"features.{len(features) - 1}"
    return Classifier(network, "classifier", target_layer=target_layer, head_is_new=not tensors)


def _without_pools(features: nn.Sequential, dropped: tuple[int, ...]) -> nn.Sequential:
    """The same layers without the max-pools of these indices (counted from 0); later layers move up."""
    pools = [layer for layer in features if isinstance(layer, nn.MaxPool2d)]
    return nn.Sequential(*(layer for layer in features if layer not in [pools[i] for i in dropped]))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def initialize(module: nn.Module) -> None:
    """He initialisation of convolutions, as in torchvision and wsolevaluation."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
