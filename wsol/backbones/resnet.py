"""ResNet-50: torchvision's, with a finer feature map."""

from collections import OrderedDict

import torchvision
from torch import nn

from wsol.backbones.heads import copy_linear, pooled_head, refuse_conv
from wsol.backbones.registry import BuildOptions
from wsol.backbones.weights import load_strictly, torchvision_weights
from wsol.classifier import Classifier
from wsol.methods.acol import AdversarialComplementaryLearning
from wsol.methods.adl import AttentionDropout
from wsol.methods.layers import convs
from wsol.methods.spg import B1, B2, SHARED, C, SelfProducedGuidance

WEIGHTS = torchvision.models.ResNet50_Weights.IMAGENET1K_V1


def resnet50(options: BuildOptions) -> Classifier:
    """ResNet-50 whose layer4 does not downsample: maps of 14 x 14 at 224 pixels.

    With large_feature_map layer3 does not downsample either: 28 x 28. Both forms are this network. The target layer is
    the last block of layer4. With ADL, ACoL or SPG it has their layers, under wsolevaluation's names.
    """
    source = torchvision.models.resnet50()
    if options.pretrained:
        load_strictly(source, torchvision_weights(WEIGHTS, options, "resnet50"), "resnet50")
    for layer in (source.layer4, *([source.layer3] if options.large_feature_map else [])):
        layer[0].conv2.stride = layer[0].downsample[0].stride = (1, 1)
    if isinstance(options.method, AttentionDropout):
        source.layer3 = _with_adl(source.layer3, options.method, (0,))
        source.layer4 = _with_adl(source.layer4, options.method, (0, 2))
    trunk = [(name, layer) for name, layer in source.named_children() if name not in ("avgpool", "fc")]
    if isinstance(options.method, AdversarialComplementaryLearning):
        refuse_conv(options, "acol's classifiers end in 1x1 convs already")
        return options.method.network(trunk, "layer4", source.fc.in_features, scheme="he")
    if isinstance(options.method, SelfProducedGuidance):
        refuse_conv(options, "spg's head is a 1x1 conv already")
        return _spg(trunk, options.method)
    network = nn.Sequential(OrderedDict([*trunk, *pooled_head(source.fc.in_features, options.last_layer)]))
    copy_linear(source.fc, network.get_submodule(options.last_layer))
    target_layer = f"layer4.{len(source.layer4) - 1}"
    return Classifier(network, options.last_layer, target_layer=target_layer, head_is_new=not options.pretrained)


def _with_adl(layer: nn.Sequential, method: AttentionDropout, after: tuple[int, ...]) -> nn.Sequential:
    """A stage with ADL behind these of its blocks, as in wsolevaluation; later blocks move up."""
    blocks: list[nn.Module] = []
    for number, block in enumerate(layer):
        blocks += [block, method.layer()] if number in after else [block]
    return nn.Sequential(*blocks)


def _spg(trunk: list[tuple[str, nn.Module]], method: SelfProducedGuidance) -> Classifier:
    """SPG's ResNet: the first block of layer3 is SPG_A1, the others are SPG_A2."""
    parts = dict(trunk)
    layer3 = parts.pop("layer3")
    assert isinstance(layer3, nn.Sequential)
    first, *others = layer3  # slices of a Sequential would keep the names of their layers
    layer4 = parts.pop("layer4")
    chain = [*parts.items(), ("SPG_A1", nn.Sequential(first)), ("SPG_A2", nn.Sequential(*others)), ("layer4", layer4)]
    sides = {
        B1: nn.Sequential(*convs(1024, 1024)),
        B2: nn.Sequential(*convs(1024, 1024)),
        SHARED: nn.Sequential(*convs(1024, 1024), nn.Conv2d(1024, 1, kernel_size=1)),
        C: nn.Sequential(*convs(2048, 512), nn.Conv2d(512, 1, kernel_size=1)),
    }
    return method.network(chain, "SPG_A4", sides, {B1: "SPG_A1", B2: "SPG_A2", C: "layer4"}, target_layer="layer4.2")
