"""ACoL: "Adversarial Complementary Learning for Weakly Supervised Object Localization", Zhang et al., CVPR 2018.

Two classifiers A and B read the same feature maps S. B sees them with the places erased that A's map of the true class
marks, so that it has to find other parts of the object. The network's map is the larger of both, place by place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsol.classifier import Classifier, MethodLayers, Output
from wsol.losses import Objective
from wsol.methods.base import Forward, TrainingMethod, is_frozen, last_maps, recorded, require_maps, stretched
from wsol.methods.layers import Chain, Named, conv_classifier, initialize, pooled

HEAD, TWIN = "classifier_A", "classifier_B"
_HIDDEN = 1024
_CLASSES = 1000  # as every builder; `reset_head` replaces them


class AdversarialComplementaryLearning(TrainingMethod):
    """The loss is both classifiers' cross entropy (section 3.2); with a sigmoid branch, on A."""

    name = layout = "acol"
    compiles = False

    def __init__(self, acol_threshold: float):
        self.threshold = acol_threshold

    def network(self, trunk: Named, features: str, channels: int, scheme: str = "xavier") -> Classifier:
        """A network with both classifiers behind a trunk.

        Args:
            trunk: layers that give S, (B, channels, h, w).
            features: the name of the last of them.
            scheme: see `wsol.methods.layers.initialize`.
        """
        first, second = (conv_classifier(channels, _HIDDEN, _CLASSES) for _ in range(2))
        initialize([first, second], scheme)
        return Classifier(
            Chain([*trunk, (HEAD, first), *pooled()], [(TWIN, second)]),
            f"{HEAD}.4",
            target_layer=f"{HEAD}.3",
            neck=[*(f"{HEAD}.{i}" for i in range(4)), TWIN],
            method_layers=MethodLayers({"features": features}, twins=(TWIN,), own_map=self.own_map),
        )

    def adapt(self, model: Classifier, side: int) -> Classifier:
        """Both classifiers behind the last spatial layer of a network, in place of its own head."""
        network, images = model.network, torch.zeros(1, 3, side, side)
        layer = last_maps(model, images)
        channels = require_maps(network, layer, images, self.name)
        parent, _, leaf = model.head_name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
        adapted = self.network([("trunk", _UpTo(network, layer))], "trunk", channels)
        adapted.fast = "classifier_"  # all that is new
        return adapted

    def loss(
        self, model: Classifier, forward: Forward, objective: Objective, images: Tensor, labels: Tensor
    ) -> tuple[Output, Tensor]:
        """A step of both classifiers; of A alone where B is frozen."""
        second = model.network.get_submodule(TWIN)
        if is_frozen(second):
            return super().loss(model, forward, objective, images, labels)
        features = model.method_layers.layers["features"]
        with recorded(model.network, features, HEAD) as seen:
            output = forward(images, labels)
        maps = seen[HEAD][: len(images)]  # a sigmoid branch's maps come behind those of A
        of_labels = maps.detach()[torch.arange(len(images)), labels]
        logits = second(self.erase(seen[features], of_labels)).mean(dim=(2, 3))
        return output, objective(output, labels) + functional.cross_entropy(logits, labels)

    def erase(self, features: Tensor, maps: Tensor) -> Tensor:
        """S with zeros where A's stretched map reaches the threshold: (B, C, h, w), maps (B, h, w)."""
        return features * (stretched(maps) < self.threshold)[:, None]

    def own_map(self, network: nn.Module, features: Tensor, first: Tensor, class_ids: Tensor, clamped: bool) -> Tensor:
        """The larger of the stretched maps of A (`first`) and B, (B, h, w); clamped: without negative weights."""
        second = network.get_submodule(TWIN)
        assert isinstance(second, nn.Sequential)
        hidden, last = second[:-1](self.erase(features, first)), second[-1]
        assert isinstance(last, nn.Conv2d)
        weights = last.weight.flatten(1)[class_ids]  # (B, C); the bias moves the whole map, which stretching undoes
        other = torch.einsum("bc,bchw->bhw", weights.clamp(min=0) if clamped else weights, hidden)
        return torch.maximum(stretched(first), stretched(other))


class _UpTo(nn.Module):
    """A network that gives a layer's output instead of its own."""

    def __init__(self, network: nn.Module, layer: str):
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, h, w)."""
        maps: list[Tensor] = []

        def keep(_layer: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
            maps.append(output)
            return output.clone()  # a later layer may work in place

        handle = self.network.get_submodule(self.layer).register_forward_hook(keep)
        try:
            self.network(images)
        finally:
            handle.remove()
        return maps[0]
