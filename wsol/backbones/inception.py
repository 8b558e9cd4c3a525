"""Inception v3: torchvision's layers, in two forms."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.inception import InceptionB

from wsol.backbones.registry import IMAGENET_CLASSES, Wanted, pooled_head, refuse_conv, register, take_over
from wsol.backbones.weights import load_strictly, torchvision_weights
from wsol.classifier import Classifier

WEIGHTS = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1


@register("inception_v3", forms={"cam": "SPG_A4", "original": "fc"}, fast=r"(?!Conv2d_|Mixed_)")
def inception_v3(wanted: Wanted) -> Classifier:
    """cam (wsolevaluation): up to Mixed_6e with padded pools and no stride in Mixed_6a, 28 x 28 at 224 pixels,
    14 x 14 without large_feature_map; two 3x3 convs to 1024 channels, a 1x1 conv, global average pooling. Maps are
    made of the second conv's ReLU. original: torchvision's network up to Mixed_7c, 5 x 5, without auxiliary head.

    Inputs are normalised as for every other network (the references' transform_input=False).
    """
    source = torchvision.models.inception_v3(aux_logits=False, transform_input=False, init_weights=False)
    for conv in (layer for layer in source.modules() if isinstance(layer, nn.Conv2d)):
        nn.init.xavier_uniform_(conv.weight)  # torchvision's own start explodes unless BatchNorm learns
    if wanted.pretrained:
        tensors = torchvision_weights(WEIGHTS, wanted, "inception_v3")
        load_strictly(source, {n: t for n, t in tensors.items() if not n.startswith("AuxLogits.")}, "inception_v3")
    return _original(source, wanted) if wanted.form == "original" else _cam(source, wanted)


def _original(source: nn.Module, wanted: Wanted) -> Classifier:
    trunk = [(name, layer) for name, layer in source.named_children() if name not in ("avgpool", "dropout", "fc")]
    network = nn.Sequential(
        OrderedDict(
            [*trunk, *pooled_head(source.fc.in_features, wanted.last_layer, before=[("dropout", source.dropout)])]
        )
    )
    model = Classifier(network, wanted.last_layer, target_layer="Mixed_7c")
    take_over(model.softmax_head, source.fc)
    model.head_is_new = not wanted.pretrained
    return model


def _cam(source: nn.Module, wanted: Wanted) -> Classifier:
    refuse_conv(wanted, "inception_v3's cam form ends in the 1x1 conv SPG_A4 already")
    layers = OrderedDict(source.named_children())
    for name in ("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool", "dropout", "fc"):
        del layers[name]
    layers["Conv2d_1a_3x3"].conv.padding = (1, 1)
    layers["maxpool1"] = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    layers["maxpool2"] = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    layers["Mixed_6a"] = _KeepGrid(layers["Mixed_6a"])
    trunk = list(layers.items())
    if not wanted.large_feature_map:
        trunk.insert(list(layers).index("Mixed_6a"), ("maxpool3", nn.MaxPool2d(3, stride=2, ceil_mode=True)))

    network = nn.Sequential(
        OrderedDict(
            [
                *trunk,
                ("dropout1", nn.Dropout()),
                ("SPG_A3_1b", _conv_relu(768, 1024)),
                ("dropout2", nn.Dropout()),
                ("SPG_A3_2b", _conv_relu(1024, 1024)),
                ("dropout3", nn.Dropout()),
                ("SPG_A4", nn.Conv2d(1024, IMAGENET_CLASSES, kernel_size=1)),
                ("avgpool", nn.AdaptiveAvgPool2d(1)),
                ("flatten", nn.Flatten()),
            ]
        )
    )
    return Classifier(
        network, "SPG_A4", target_layer="SPG_A3_2b", neck=["dropout1", "SPG_A3_1b", "dropout2", "SPG_A3_2b", "dropout3"]
    )


def _conv_relu(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.ReLU(inplace=True))


class _KeepGrid(nn.Module):
    """torchvision's grid reduction without the reduction: stride 1, padded."""

    def __init__(self, source: InceptionB):
        super().__init__()
        for name, layer in source.named_children():
            self.add_module(name, layer)
        for layer in (self.branch3x3, self.branch3x3dbl_3):
            layer.conv.stride, layer.conv.padding = (1, 1), (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, kernel_size=3, stride=1, padding=1)], dim=1)
