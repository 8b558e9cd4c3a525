"""CAM_METHODS: a class activation map method is its formula.

A formula sees one head's view of one forward pass (`HeadView`) and returns
either a weight for each channel, (B, C), or the finished map, (B, h, w):

    @register("gradcam", weights=True)
    def gradcam(view):
        return view.gradients.mean(dim=(2, 3))

Everything else (hooks, the forward pass, gradients, clamping, the weighted sum)
is written once, in wsol/cam/extractor.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsol.errors import InputError, nearest

# Rows a person can ask for: the head that the map explains, and whether negative
# channel weights are clamped to zero before they meet the activations.
HEADS = ("softmax", "softmax_clamped", "sigmoid", "sigmoid_clamped")


class HeadView:
    """What a formula may look at: activations, and one head's reading of them.

    Attributes:
        activations: (B, C, h, w), A at the target layer.
        class_ids: (B,), the class k each map explains.
        scores: (B,), the head's logit s_k.
        gradients: (B, C, h, w), g = d s_k / d A, taken when first asked for.
        class_weights: (B, C), the row W[k] of a linear head.

    Args:
        activations: the layer's output in its own layout, which logits depend on.
        to_maps: turns that layout into (B, C, h, w); see wsol/layout.py.
    """

    def __init__(self, activations: Tensor, logits: Tensor, class_ids: Tensor, head: nn.Module,
                 to_maps: Callable[[Tensor], Tensor] = lambda maps: maps):
        self.activations = to_maps(activations.detach())
        self.class_ids = class_ids
        self.scores = logits.gather(1, class_ids[:, None])[:, 0]
        self._leaf = activations
        self._to_maps = to_maps
        self._head = head

    @cached_property
    def gradients(self) -> Tensor:
        # Images do not mix after the target layer, so the sum's gradient is each image's own.
        return self._to_maps(torch.autograd.grad(self.scores.sum(), self._leaf, retain_graph=True)[0])

    @cached_property
    def class_weights(self) -> Tensor:
        weight = getattr(self._head, "weight", None)
        channels = self.activations.shape[1]
        if weight is None or weight.ndim not in (2, 4) or weight.shape[1] != channels:
            raise InputError(f"the method cam needs a head of one linear layer over the {channels} channels of the "
                             f"target layer, not {type(self._head).__name__}; use gradcam or another target layer")
        return weight.detach().flatten(1)[self.class_ids]


@dataclass(frozen=True)
class CamMethod:
    """A method's entry. weights: its formula gives channel weights (so clamping exists for it).

    pooled: it reads the layer that the head pools, not the target layer, where a
    network tells them apart (vision transformers). rectify and interpolation say
    how its raw map becomes a score map (wsol/cam/scoremap.py): cut negatives
    before resizing, and how to resize.
    """
    name: str
    formula: Callable[[HeadView], Tensor]
    weights: bool
    pooled: bool = False
    rectify: bool = True
    interpolation: str = "bilinear"


CAM_METHODS: dict[str, CamMethod] = {}


def register(name: str, **facts) -> Callable:
    """Decorator that enters a formula into CAM_METHODS."""
    def enter(formula):
        CAM_METHODS[name] = CamMethod(name, formula, **facts)
        return formula
    return enter


def get_method(name: str) -> CamMethod:
    """The entry of a method, or an InputError that lists the known ones."""
    if name not in CAM_METHODS:
        raise InputError(f"unknown CAM method '{name}'" + nearest(name, CAM_METHODS)
                         + f" (known: {', '.join(CAM_METHODS)})")
    return CAM_METHODS[name]


class Row(NamedTuple):
    """A row of the results: a method and one of HEADS. It is the plain tuple ("gradcam", "sigmoid_clamped"), too."""
    method: str
    head: str

    @property
    def branch(self) -> str:
        """The head itself: "softmax" or "sigmoid"."""
        return self.head.removesuffix("_clamped")

    @property
    def clamped(self) -> bool:
        """Are negative channel weights cut to zero?"""
        return self.head.endswith("_clamped")

    def __str__(self) -> str:
        return f"{self.method}_{self.head}"


def rows(methods: Iterable[str], heads: Iterable[str]) -> list[Row]:
    """The rows that exist for these methods and heads, in order, each once.

    A method without channel weights has nothing to clamp: asked for a clamped
    row it gives the head's plain one.
    """
    found: dict[Row, None] = {}
    for method in map(get_method, methods):
        for head in heads:
            if head not in HEADS:
                raise InputError(f"unknown head '{head}'" + nearest(head, HEADS) + f" (known: {', '.join(HEADS)})")
            row = Row(method.name, head)
            found[row if method.weights else Row(method.name, row.branch)] = None
    return list(found)
