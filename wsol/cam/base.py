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

from wsol.classifier import Classifier, Output
from wsol.errors import InputError, nearest
from wsol.layout import Layout

# Rows a person can ask for: the head that the map explains, and whether negative
# channel weights are clamped to zero before they meet the activations.
HEADS = ("softmax", "softmax_clamped", "sigmoid", "sigmoid_clamped")
NO_HEAD = "none"  # of methods that see no head


class Pass:
    """One forward pass of a batch, as far as one layer is concerned: what both heads' views share.

    Attributes:
        model: the network; images: (B, 3, H, W), as it got them.
        layer: the module that A comes from; leaf: its output, in its own layout, from which autograd records.
        layout: where the places and channels of `leaf` are, see wsol/layout.py.
        activations: (B, C, h, w), A.
        logits: {"softmax": (B, K), "sigmoid": (B, K)}, of the heads that there are, depending on `leaf`.
        class_ids: (B,), the class k each map explains.
        perturb_batch: how many changed inputs go through the network at a time.
        alpha: strength of finercam's comparison.
    """

    def __init__(
        self,
        model: Classifier,
        images: Tensor,
        layer: nn.Module,
        leaf: Tensor,
        layout: Layout,
        output: Output,
        class_ids: Tensor,
        *,
        perturb_batch: int = 64,
        alpha: float = 0.6,
    ):
        self.model, self.images, self.layer, self.leaf, self.layout = model, images, layer, leaf, layout
        self.logits, self.class_ids = by_head(output), class_ids
        self.perturb_batch, self.alpha = perturb_batch, alpha
        self.activations = self.to_maps(leaf.detach())
        self._computed: dict[Callable, dict[str, Tensor]] = {}

    def to_maps(self, tensor: Tensor) -> Tensor:
        """A tensor in the layer's layout → (B, C, h, w), float32 at least."""
        maps = self.layout.to_maps(tensor)
        return maps if maps.dtype == torch.float64 else maps.float()

    def once(self, compute: Callable[["Pass"], dict[str, Tensor]]) -> dict[str, Tensor]:
        """compute(self), a tensor a head; asked for by the other head, it is there already."""
        if compute not in self._computed:
            self._computed[compute] = compute(self)
        return self._computed[compute]


def by_head(output: Output) -> dict[str, Tensor]:
    """Logits of the heads that there are, by name."""
    return {"softmax": output.logits} | ({} if output.sigmoid_logits is None else {"sigmoid": output.sigmoid_logits})


class HeadView:
    """What a formula may look at: activations, and one head's reading of them.

    Attributes:
        shared: the Pass, which other heads' views share.
        activations: (B, C, h, w), A at the target layer.
        class_ids: (B,), the class k each map explains.
        logits: (B, K) of the head. scores: (B,), its logit s_k.
        gradients: (B, C, h, w), g = d s_k / d A, taken when first asked for.
        class_weights: (B, C), the row W[k] of a linear head.
    """

    def __init__(self, shared: Pass, head: str, module: nn.Module):
        self.shared, self.head = shared, head
        self.activations, self.class_ids = shared.activations, shared.class_ids
        self.logits = shared.logits[head]
        self.scores = self.logits.gather(1, self.class_ids[:, None])[:, 0]
        self._module = module

    @cached_property
    def gradients(self) -> Tensor:
        return self.gradients_of(self.scores)

    def gradients_of(self, scores: Tensor) -> Tensor:
        """d scores / d A: (B,) → (B, C, h, w)."""
        # Images do not mix after the target layer, so the sum's gradient is each image's own.
        return self.shared.to_maps(torch.autograd.grad(scores.sum(), self.shared.leaf, retain_graph=True)[0])

    def hessian_product(self) -> Tensor:
        """H A with H = d^2 s_k / d A^2, a Hessian-vector product: (B, C, h, w); zeros where s_k is linear in A."""
        leaf = self.shared.leaf
        gradients = torch.autograd.grad(self.scores.sum(), leaf, create_graph=True)[0]
        product = None
        if gradients.requires_grad:
            product = torch.autograd.grad(gradients, leaf, leaf.detach(), retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(self.activations) if product is None else self.shared.to_maps(product)

    @cached_property
    def class_weights(self) -> Tensor:
        weight = getattr(self._module, "weight", None)
        channels = self.activations.shape[1]
        if weight is None or weight.ndim not in (2, 4) or weight.shape[1] != channels:
            raise InputError(
                f"the method cam needs a head of one linear layer over the {channels} channels of the "
                f"target layer, not {type(self._module).__name__}; use gradcam or another target layer"
            )
        return weight.detach().flatten(1)[self.class_ids].to(self.activations.dtype)


@dataclass(frozen=True)
class CamMethod:
    """A method's entry. weights: its formula gives channel weights (so clamping exists for it).

    pooled: it reads the layer that the head pools, not the target layer, where a
    network tells them apart (vision transformers). rectify and interpolation say
    how its raw map becomes a score map (wsol/cam/scoremap.py): cut negatives
    before resizing, and how to resize. headless: it sees activations only, so all
    heads share its one map. second_order: it differentiates twice, which
    attention's fused kernels do not support.
    """

    name: str
    formula: Callable[[HeadView], Tensor]
    weights: bool
    pooled: bool = False
    rectify: bool = True
    interpolation: str = "bilinear"
    headless: bool = False
    second_order: bool = False


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
        raise InputError(
            f"unknown CAM method '{name}'" + nearest(name, CAM_METHODS) + f" (known: {', '.join(CAM_METHODS)})"
        )
    return CAM_METHODS[name]


class Row(NamedTuple):
    """A row of the results: a method and one of HEADS, or NO_HEAD. It is the plain tuple ("gradcam", "sigmoid_clamped"), too."""

    method: str
    head: str

    @property
    def branch(self) -> str:
        """The head itself: "softmax" or "sigmoid"; "none" of a method that sees no head."""
        return self.head.removesuffix("_clamped")

    @property
    def clamped(self) -> bool:
        """Are negative channel weights cut to zero?"""
        return self.head.endswith("_clamped")

    @property
    def label(self) -> str:
        """The head in words, for pictures and tables: "sigmoid, clamped"."""
        return "no head" if self.head == NO_HEAD else self.head.replace("_", ", ")

    def __str__(self) -> str:
        return f"{self.method}_{self.head}"


def rows(methods: Iterable[str], heads: Iterable[str]) -> list[Row]:
    """The rows that exist for these methods and heads, in order, each once.

    A method without channel weights has nothing to clamp: asked for a clamped
    row it gives the head's plain one. A method that sees no head has one row.
    """
    found: dict[Row, None] = {}
    for method in map(get_method, methods):
        for head in heads:
            if head not in HEADS:
                raise InputError(f"unknown head '{head}'" + nearest(head, HEADS) + f" (known: {', '.join(HEADS)})")
            row = Row(method.name, head)
            if method.headless:
                row = Row(method.name, NO_HEAD)
            elif not method.weights:
                row = Row(method.name, row.branch)
            found[row] = None
    return list(found)
