"""ADL: "Attention-based Dropout Layer for Weakly Supervised Object Localization", Choe & Shim, CVPR 2019."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsol.classifier import Classifier
from wsol.layout import find_guiding_layer
from wsol.methods.base import TrainingMethod, last_maps, require_maps


class ADL(nn.Module):
    """The layer: in training, a feature map is multiplied by its drop mask or by its importance map (section 3).

    The attention map is the mean over the channels. The drop mask is 0 where it exceeds threshold * its maximum, else
    1; the importance map is its sigmoid. One of the two is drawn per batch, the drop mask with probability `rate`.
    """

    def __init__(self, rate: float, threshold: float):
        super().__init__()
        self.rate, self.threshold = rate, threshold

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) → the same shape; unchanged in eval mode."""
        if not self.training:
            return features
        attention = features.mean(dim=1, keepdim=True)
        if torch.rand(()) < self.rate:
            return features * (attention < self.threshold * attention.amax(dim=(2, 3), keepdim=True))
        return features * attention.sigmoid()


class _After:
    """A layer's forward hook that applies an ADL in training. Hooks leave the names in checkpoints as they are."""

    def __init__(self, layer: ADL):
        self.layer = layer

    def __call__(self, module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        return self.layer.train(module.training)(output)


class AttentionDropout(TrainingMethod):
    """ADL layers behind late feature maps.

    In vgg16, resnet50 and inception_v3 they are where the authors have them. In other networks they are behind the last
    layers of strides 8 and 16 and the target layer, which corresponds to that.
    """

    name = layout = "adl"

    def __init__(self, adl_drop_rate: float, adl_threshold: float):
        self.rate, self.threshold = adl_drop_rate, adl_threshold

    def layer(self) -> ADL:
        """A new layer."""
        return ADL(self.rate, self.threshold)

    def adapt(self, model: Classifier, side: int) -> Classifier:
        """Hooks on three layers; a layer that two of the strides share has one."""
        network, images = model.network, torch.zeros(1, 3, side, side)
        target = last_maps(model, images)
        places = ("stride8:last", "stride16:last")
        names = [find_guiding_layer(network, model.head_name, target, images, place) for place in places]
        for name in dict.fromkeys([*names, target]):
            require_maps(network, name, images, self.name)
            network.get_submodule(name).register_forward_hook(_After(self.layer()))
        return model

    def why_idle(self, model: Classifier) -> str:
        """With a frozen trunk, which stays in eval mode."""
        return "" if "trunk" in model.trainable else "its layers drop nothing, because the trunk is frozen"
