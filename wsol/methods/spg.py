"""SPG: "Self-produced Guidance for Weakly-supervised Object Localization", Zhang et al., ECCV 2018.

Confident places of one map are labels for the next, lower one: the class's own map (network A) for B2, B2's for B1, and
the mean of both for C, which is only there to train the trunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsol.classifier import Classifier, MethodLayers, Output
from wsol.errors import InputError
from wsol.losses import Objective
from wsol.methods.base import Forward, TrainingMethod, is_frozen, recorded, stretched
from wsol.methods.layers import Chain, Named, initialize, pooled

B1, B2, SHARED, C = "SPG_B_1a", "SPG_B_2a", "SPG_B_shared", "SPG_C"
_CLASSES = 1000  # as every builder; `reset_head` replaces them
# An object's map may have no place above the high threshold. With fewer places than this, those above a share of the
# map's own maximum count as object, as in wsolevaluation.
_FEWEST_PLACES, _SHARE_OF_MAXIMUM = 30, 0.7


class SelfProducedGuidance(TrainingMethod):
    """The loss is the objective + three binary cross entropies over confident places (section 3.3)."""

    name = layout = "spg"
    compiles = False

    def __init__(self, **thresholds: float):
        self.levels = [(thresholds[f"spg_threshold_{n}h"], thresholds[f"spg_threshold_{n}l"]) for n in (1, 2, 3)]

    def network(
        self,
        trunk: Named,
        head: str,
        sides: Mapping[str, nn.Module],
        layers: Mapping[str, str],
        neck: Sequence[str] = (),
        target_layer: str | None = None,
    ) -> Classifier:
        """A network with SPG's side branches.

        Args:
            trunk: layers that give (B, C, h, w); the last one feeds the head.
            head: name of the head, a new 1x1 conv.
            sides: B1, B2, SHARED and C.
            layers: the layer whose output each of B1, B2 and C reads.
            neck: layers of the trunk without ImageNet weights.
            target_layer: None: the layer that C reads.
        """
        channels = next(
            layer.in_channels for layer in sides[C].modules() if isinstance(layer, nn.Conv2d)
        )  # C reads what the head reads
        last = nn.Conv2d(channels, _CLASSES, kernel_size=1)
        initialize([last, *sides.values()], "xavier")
        return Classifier(
            Chain([*trunk, (head, last), *pooled()], sides.items()),
            head,
            target_layer=target_layer or layers[C],
            neck=[*neck, *sides],
            method_layers=MethodLayers(dict(layers)),
        )

    def adapt(self, model: Classifier, side: int) -> Classifier:
        """Always an InputError: which layers guide which is only known for three networks."""
        raise InputError("--wsol_method spg has layers for vgg16, resnet50 and inception_v3 only; choose one of them")

    def loss(
        self, model: Classifier, forward: Forward, objective: Objective, images: Tensor, labels: Tensor
    ) -> tuple[Output, Tensor]:
        """A step with guidance; without it where the side branches are frozen."""
        network = model.network
        b1, b2, shared, c = (network.get_submodule(name) for name in (B1, B2, SHARED, C))
        if is_frozen(c):
            return super().loss(model, forward, objective, images, labels)
        layers = model.method_layers.layers
        with recorded(network, *layers.values(), model.head_name) as seen:
            output = forward(images, labels)

        def full(maps: Tensor) -> Tensor:
            """(B, 1, h, w) → (B, H, W)."""
            return functional.interpolate(maps, size=images.shape[-2:], mode="bilinear")[:, 0]

        own = seen[model.head_name][torch.arange(len(images)), labels]  # a branch's maps come behind the head's
        attention = stretched(full(own[:, None].detach()))
        first, second = full(shared(b1(seen[layers[B1]]))), full(shared(b2(seen[layers[B2]])))
        of_first, of_second = first.detach().sigmoid(), second.detach().sigmoid()
        guided = (
            (second, attention),
            (first, of_second),
            (full(c(seen[layers[C]])), (of_first + of_second) / 2),
        )
        loss = objective(output, labels)
        for (logits, guide), (high, low) in zip(guided, self.levels, strict=True):
            loss = loss + guided_loss(logits, guide, high, low)
        return output, loss


def guided_loss(logits: Tensor, guide: Tensor, high: float, low: float) -> Tensor:
    """Binary cross entropy of logits (B, H, W) over the confident places of a guide (B, H, W) in [0, 1].

    Object: above `high`. Background: below `low`. The mean is over the places of all images; 0 if there is none.
    """
    is_object = guide > high
    few = is_object.sum(dim=(1, 2), keepdim=True) < _FEWEST_PLACES
    is_object = torch.where(few, guide > _SHARE_OF_MAXIMUM * guide.amax(dim=(1, 2), keepdim=True), is_object)
    is_background = guide < low
    is_object = is_object & ~is_background
    confident = is_object | is_background
    losses = functional.binary_cross_entropy_with_logits(logits, is_object.to(logits.dtype), reduction="none")
    return (losses * confident).sum() / confident.sum().clamp(min=1)
