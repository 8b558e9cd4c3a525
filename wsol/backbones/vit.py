"""DeiT-tiny/16: timm's, split into trunk and head as in Dual-CAM's checkpoints."""

from collections import OrderedDict

from torch import nn

from wsol.backbones.registry import Wanted, refuse_conv, register
from wsol.backbones.weights import create_timm
from wsol.classifier import Classifier
from wsol.errors import InputError

NAME = "deit_tiny_patch16_224"


@register("vit", fast=r"(?!features\.(blocks|patch_embed|norm)\.)")
def vit(wanted: Wanted) -> Classifier:
    """Maps of 14 x 14 patches at 224 pixels; other sizes are multiples of 16, position embeddings are interpolated.

    Both forms are this network. The head reads the class token, so gradients
    reach the patches in front of the last block's attention only: its norm1 is
    the target layer (as in Dual-CAM). `cam` reads the normalised patch tokens of
    the last block, as if the head had averaged them.
    """
    refuse_conv(wanted, "vit's head reads the class token, there is no global average pooling to put it before")
    if wanted.large_feature_map:
        raise InputError(
            "--large_feature_map: vit has one stage of 16-pixel patches and no stride to halve; give "
            "--crop_size 448 for maps of twice the side, or leave it out"
        )
    features = create_timm(NAME, wanted, dynamic_img_size=True)
    head = features.head
    features.reset_classifier(0)
    network = nn.Sequential(OrderedDict([("features", features), ("head", head)]))
    model = Classifier(
        network, "head", target_layer=f"features.blocks.{len(features.blocks) - 1}.norm1", pooled_layer="features.norm"
    )
    model.head_is_new = not wanted.pretrained
    return model
