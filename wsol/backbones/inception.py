"""Inception v3: torchvision's layers, in two forms."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.inception import BasicConv2d, InceptionB

from wsol.backbones.heads import copy_linear, pooled_head, refuse_conv
from wsol.backbones.registry import IMAGENET_CLASSES, BuildOptions
from wsol.backbones.weights import load_strictly, torchvision_weights
from wsol.classifier import Classifier
from wsol.methods.acol import AdversarialComplementaryLearning
from wsol.methods.adl import AttentionDropout
from wsol.methods.layers import convs, initialize, pooled
from wsol.methods.spg import B1, B2, SHARED, C, SelfProducedGuidance

WEIGHTS = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1


def inception_v3(options: BuildOptions) -> Classifier:
    """Inception v3 in the form asked for.

    cam (wsolevaluation): the layers up to Mixed_6e with padded pools and no stride in Mixed_6a, then two 3x3 convs to
    1024 channels, a 1x1 conv and global average pooling. The target layer is the ReLU of the second conv: 14 x 14 at
    224 pixels, 28 x 28 with large_feature_map.
    With ADL, ACoL or SPG, the cam form has their layers, under wsolevaluation's names (ADL's without dropout).
    original: torchvision's network without the auxiliary head. The target layer is Mixed_7c: 5 x 5.

    Inputs are normalised as for every other network (transform_input=False, as in the references).
    """
    source = torchvision.models.inception_v3(aux_logits=False, transform_input=False, init_weights=False)
    for conv in (layer for layer in source.modules() if isinstance(layer, nn.Conv2d)):
        nn.init.xavier_uniform_(conv.weight)  # torchvision's own initialisation explodes unless BatchNorm learns
    if options.pretrained:
        tensors = torchvision_weights(WEIGHTS, options, "inception_v3")
        load_strictly(source, {n: t for n, t in tensors.items() if not n.startswith("AuxLogits.")}, "inception_v3")
    return _original(source, options) if options.form == "original" else _cam(source, options)


def _original(source: torchvision.models.Inception3, options: BuildOptions) -> Classifier:
    trunk = [(name, layer) for name, layer in source.named_children() if name not in ("avgpool", "dropout", "fc")]
    network = nn.Sequential(
        OrderedDict(
            [*trunk, *pooled_head(source.fc.in_features, options.last_layer, before=[("dropout", source.dropout)])]
        )
    )
    copy_linear(source.fc, network.get_submodule(options.last_layer))
    return Classifier(network, options.last_layer, target_layer="Mixed_7c", head_is_new=not options.pretrained)


def _cam(source: torchvision.models.Inception3, options: BuildOptions) -> Classifier:
    refuse_conv(options, "inception_v3's cam form already ends in the 1x1 conv SPG_A4")
    layers: OrderedDict[str, nn.Module] = OrderedDict(source.named_children())
    for name in ("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool", "dropout", "fc"):
        del layers[name]
    source.Conv2d_1a_3x3.conv.padding = (1, 1)
    layers["maxpool1"] = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    layers["maxpool2"] = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    layers["Mixed_6a"] = _KeepGrid(source.Mixed_6a)
    trunk: list[tuple[str, nn.Module]] = list(layers.items())
    if not options.large_feature_map:
        trunk.insert(list(layers).index("Mixed_6a"), ("maxpool3", nn.MaxPool2d(3, stride=2, ceil_mode=True)))

    if isinstance(options.method, AdversarialComplementaryLearning):
        return options.method.network(trunk, "Mixed_6e", 768)
    if isinstance(options.method, AttentionDropout):
        trunk = _with_adl(trunk, options.method)
        neck = [*_new_convs(), ("ADL_A3_2b", options.method.layer())]
    else:
        (first, conv1), (second, conv2) = _new_convs()
        dropout1, dropout2, dropout3 = (nn.Dropout() for _ in range(3))
        neck = [
            *(("dropout1", dropout1), (first, conv1), ("dropout2", dropout2), (second, conv2)),
            ("dropout3", dropout3),
        ]
    names = [name for name, _ in neck]
    if isinstance(options.method, SelfProducedGuidance):
        return _spg([*trunk, *neck], names, options)
    head = ("SPG_A4", nn.Conv2d(1024, IMAGENET_CLASSES, kernel_size=1))
    network = nn.Sequential(OrderedDict([*trunk, *neck, head, *pooled()]))
    return Classifier(network, "SPG_A4", target_layer="SPG_A3_2b", neck=names)


def _new_convs() -> list[tuple[str, nn.Module]]:
    layers: list[tuple[str, nn.Module]] = [
        ("SPG_A3_1b", nn.Sequential(*convs(768, 1024))),
        ("SPG_A3_2b", nn.Sequential(*convs(1024, 1024))),
    ]
    initialize((layer for _, layer in layers), "xavier")
    return layers


def _with_adl(trunk: list[tuple[str, nn.Module]], method: AttentionDropout) -> list[tuple[str, nn.Module]]:
    """ADL behind Mixed_5d and Mixed_6e, as in wsolevaluation."""
    layers: list[tuple[str, nn.Module]] = []
    for name, layer in trunk:
        layers.append((name, layer))
        if name in ("Mixed_5d", "Mixed_6e"):
            layers.append((f"ADL_{name.removeprefix('Mixed_')}", method.layer()))
    return layers


def _spg(trunk: list[tuple[str, nn.Module]], neck: list[str], options: BuildOptions) -> Classifier:
    """SPG's Inception: B1 reads what Mixed_6a reads, B2 Mixed_6e, and C what the head reads."""
    assert isinstance(options.method, SelfProducedGuidance)
    sides = {
        B1: nn.Sequential(*convs(288, 512)),
        B2: nn.Sequential(*convs(768, 512)),
        SHARED: nn.Sequential(*convs(512, 512), nn.Conv2d(512, 1, kernel_size=1)),
        C: nn.Sequential(*convs(1024, 512), nn.Conv2d(512, 1, kernel_size=1)),
    }
    layers = {B1: "Mixed_5d" if options.large_feature_map else "maxpool3", B2: "Mixed_6e", C: "dropout3"}
    return options.method.network(trunk, "SPG_A4", sides, layers, neck=neck, target_layer="SPG_A3_2b")


class _KeepGrid(nn.Module):
    """torchvision's InceptionB without the grid reduction: stride 1, padded."""

    branch3x3: BasicConv2d
    branch3x3dbl_1: BasicConv2d
    branch3x3dbl_2: BasicConv2d
    branch3x3dbl_3: BasicConv2d

    def __init__(self, source: InceptionB):
        super().__init__()
        for name, layer in source.named_children():
            self.add_module(name, layer)
        for layer in (self.branch3x3, self.branch3x3dbl_3):
            layer.conv.stride, layer.conv.padding = (1, 1), (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, kernel_size=3, stride=1, padding=1)], dim=1)
