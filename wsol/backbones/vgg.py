"""VGG-16: torchvision's layers without the last max-pool, in two forms."""

from collections import OrderedDict

import torchvision
from torch import Tensor, nn

from wsol.backbones.heads import pooled_head, refuse_conv
from wsol.backbones.registry import BuildOptions
from wsol.backbones.weights import load_strictly, torchvision_weights
from wsol.classifier import Classifier
from wsol.methods.acol import AdversarialComplementaryLearning
from wsol.methods.adl import AttentionDropout
from wsol.methods.layers import convs, initialize
from wsol.methods.spg import B1, B2, SHARED, C, SelfProducedGuidance

WEIGHTS = torchvision.models.VGG16_Weights.IMAGENET1K_V1


def vgg16(options: BuildOptions) -> Classifier:
    """VGG-16 in the form asked for: maps of 14 x 14 at 224 pixels.

    With large_feature_map the pool before conv5 is dropped, too: 28 x 28.
    cam (wsolevaluation): conv6 (3x3 to 1024 channels), ReLU, global average pooling, fc. The target layer is that ReLU.
    With ADL, ACoL or SPG, the cam form has their layers, under wsolevaluation's names.
    original: adaptive pooling to 7 x 7 and torchvision's three linear layers, all of which are the head. The target
    layer is the last ReLU of conv5.
    """
    tensors = torchvision_weights(WEIGHTS, options, "vgg16") if options.pretrained else None
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    initialize([features], "he")
    if tensors:
        load_strictly(features, _below(tensors, "features."), "vgg16's features")
    if isinstance(options.method, AdversarialComplementaryLearning):
        return _acol(features, options, options.method)
    if isinstance(options.method, SelfProducedGuidance):
        return _spg(features, options, options.method)
    features = _without_pools(features, (4, 3) if options.large_feature_map else (4,))
    if options.form == "original":
        refuse_conv(options, "vgg16's original form has no global average pooling to put a 1x1 conv before")
        return _original(features, _below(tensors or {}, "classifier."))

    if isinstance(options.method, AttentionDropout):
        features = _with_adl(features, options.method)
    conv6 = nn.Conv2d(512, 1024, kernel_size=3, padding=1)
    initialize([conv6], "he")
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


def _with_adl(features: nn.Sequential, method: AttentionDropout) -> nn.Sequential:
    """ADL behind the third pool, conv4 (before its pool) and conv5, as in wsolevaluation; later layers move up."""
    layers: list[nn.Module] = []
    num_pools, num_convs = 0, 0
    for layer in features:
        layers.append(layer)
        num_pools += isinstance(layer, nn.MaxPool2d)
        num_convs += isinstance(layer, nn.Conv2d)
        behind_third_pool = num_pools == 3 and isinstance(layer, nn.MaxPool2d)
        if behind_third_pool or (isinstance(layer, nn.ReLU) and num_convs in (10, 13)):
            layers.append(method.layer())
    return nn.Sequential(*layers)


def _acol(features: nn.Sequential, options: BuildOptions, method: AdversarialComplementaryLearning) -> Classifier:
    """ACoL's VGG: 3x3 max-pools, the last of them (with large_feature_map: the last two) without stride, and a mean."""
    refuse_conv(options, "acol's classifiers end in 1x1 convs already")
    num_strided = 3 if options.large_feature_map else 4
    layers: list[nn.Module] = []
    num_pools = 0
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            num_pools += 1
            layer = nn.MaxPool2d(3, stride=2 if num_pools <= num_strided else 1, padding=1)
        layers.append(layer)
    trunk = [("features", nn.Sequential(*layers)), ("mean", nn.AvgPool2d(3, stride=1, padding=1))]
    return method.network(trunk, "mean", 512)


def _spg(features: nn.Sequential, options: BuildOptions, method: SelfProducedGuidance) -> Classifier:
    """SPG's VGG: conv4 and conv5 are SPG_A_1 and SPG_A_2; without large_feature_map a pool lies between them."""
    refuse_conv(options, "spg's head is a 1x1 conv already")
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    third, fourth, fifth = pools[2:]
    # Slices of a Sequential keep the names of their layers.
    conv4, conv5 = (nn.Sequential(*features[i + 1 : j]) for i, j in ((third, fourth), (fourth, fifth)))
    new = nn.Sequential(*convs(512, 512, 512))
    initialize([new], "xavier")
    pool = [] if options.large_feature_map else [("pool", nn.MaxPool2d(3, stride=2, padding=1))]
    trunk = [("features", features[: third + 1]), ("SPG_A_1", conv4), *pool, ("SPG_A_2", conv5), ("SPG_A_3", new)]
    sides = {
        B1: nn.Sequential(*convs(512, 512)),
        B2: nn.Sequential(*convs(512, 512)),
        SHARED: nn.Sequential(*convs(512, 512), nn.Conv2d(512, 1, kernel_size=1)),
        C: nn.Sequential(*convs(512, 512), nn.Conv2d(512, 1, kernel_size=1)),
    }
    layers = {B1: "pool" if pool else "SPG_A_1", B2: "SPG_A_2", C: "SPG_A_3"}
    return method.network(trunk, "SPG_A_4", sides, layers, neck=["SPG_A_3"])


def _without_pools(features: nn.Sequential, dropped: tuple[int, ...]) -> nn.Sequential:
    """The same layers without the max-pools of these indices (counted from 0); later layers move up."""
    pools = [layer for layer in features if isinstance(layer, nn.MaxPool2d)]
    return nn.Sequential(*(layer for layer in features if layer not in [pools[i] for i in dropped]))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
