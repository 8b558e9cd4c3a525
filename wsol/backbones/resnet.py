"""ResNet-50: torchvision's, with a finer grid."""

from collections import OrderedDict

import torchvision
from torch import nn

from wsol.backbones.registry import Wanted, pooled_head, register, take_over
from wsol.backbones.weights import load_strictly, torchvision_weights
from wsol.classifier import Classifier

WEIGHTS = torchvision.models.ResNet50_Weights.IMAGENET1K_V1


@register("resnet50", fast=r"(layer4|fc|conv)\.")
def resnet50(wanted: Wanted) -> Classifier:
    """layer4 keeps layer3's grid: 14 x 14 at 224 pixels; with large_feature_map layer3 keeps layer2's, too: 28 x 28.

    Both forms are this network; maps are made of the last block of layer4. The
    references train layer4 and fc, but not fc2, lr_classifier_ratio times as fast.
    """
    source = torchvision.models.resnet50()
    if wanted.pretrained:
        load_strictly(source, torchvision_weights(WEIGHTS, wanted, "resnet50"), "resnet50")
    for layer in (source.layer4, *([source.layer3] if wanted.large_feature_map else [])):
        layer[0].conv2.stride = layer[0].downsample[0].stride = (1, 1)
    trunk = [(name, layer) for name, layer in source.named_children() if name not in ("avgpool", "fc")]
    network = nn.Sequential(OrderedDict([*trunk, *pooled_head(source.fc.in_features, wanted.last_layer)]))
    model = Classifier(network, wanted.last_layer, target_layer=f"layer4.{len(source.layer4) - 1}")
    take_over(model.softmax_head, source.fc)
    model.head_is_new = not wanted.pretrained
    return model
