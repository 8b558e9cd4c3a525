"""ResNet-50: torchvision's, with a finer feature map."""

from collections import OrderedDict

import torchvision
from torch import nn

from wsol.backbones.heads import copy_linear, pooled_head
from wsol.backbones.registry import BuildOptions
from wsol.backbones.weights import load_strictly, torchvision_weights
from wsol.classifier import Classifier

WEIGHTS = torchvision.models.ResNet50_Weights.IMAGENET1K_V1


def resnet50(options: BuildOptions) -> Classifier:
    """ResNet-50 whose layer4 does not downsample: maps of 14 x 14 at 224 pixels.

    With large_feature_map layer3 does not downsample either: 28 x 28. Both forms are this network. The target layer is
    the last block of layer4.
    """
    source = torchvision.models.resnet50()
    if options.pretrained:
        load_strictly(source, torchvision_weights(WEIGHTS, options, "resnet50"), "resnet50")
    for layer in (source.layer4, *([source.layer3] if options.large_feature_map else [])):
        layer[0].conv2.stride = layer[0].downsample[0].stride = (1, 1)
    trunk = [(name, layer) for name, layer in source.named_children() if name not in ("avgpool", "fc")]
    network = nn.Sequential(OrderedDict([*trunk, *pooled_head(source.fc.in_features, options.last_layer)]))
    copy_linear(source.fc, network.get_submodule(options.last_layer))
    target_layer = f"layer4.{len(source.layer4) - 1}"
    return Classifier(network, options.last_layer, target_layer=target_layer, head_is_new=not options.pretrained)
