"""DeiT-tiny/16: timm's, split into trunk and head as in Dual-CAM's checkpoints."""

from collections import OrderedDict
from typing import cast

import timm
from torch import nn

from wsol.backbones.heads import refuse_conv
from wsol.backbones.registry import BuildOptions
from wsol.backbones.weights import create_timm
from wsol.classifier import Classifier
from wsol.errors import InputError

NAME = "deit_tiny_patch16_224"


def vit(options: BuildOptions) -> Classifier:
    """DeiT-tiny/16: maps of 14 x 14 patches at 224 pixels.

    Other image sizes must be multiples of 16; position embeddings are interpolated. Both forms are this network.
    The head reads the class token, so the last patches that get a gradient are those before the last block's
    attention: its norm1 is the target layer (as in Dual-CAM). `cam` reads the normalised patch tokens of the last
    block, as if the head averaged them.
    """
    refuse_conv(
        options, "vit's head reads the class token, so there is no global average pooling to put a 1x1 conv before"
    )
    if options.large_feature_map:
        raise InputError(
            "--large_feature_map: vit has one stage of 16-pixel patches and no stride to halve; give "
            "--crop_size 448 for maps with twice the side length, or leave it out"
        )
    features = cast(timm.models.VisionTransformer, create_timm(NAME, options, dynamic_img_size=True))
    head = features.head
    features.reset_classifier(0)
    network = nn.Sequential(OrderedDict([("features", features), ("head", head)]))
    return Classifier(
        network,
        "head",
        target_layer=f"features.blocks.{len(features.blocks) - 1}.norm1",
        pooled_layer="features.norm",
        head_is_new=not options.pretrained,
    )
