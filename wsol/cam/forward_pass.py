"""What a method's formula reads: a batch's forward pass (`ForwardPass`), and one head's view of it (`HeadView`)."""

import zlib
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from wsol.cam.registry import PERTURB_BATCH, cam_options
from wsol.cam.targets import Target, logit
from wsol.classifier import Classifier, Output
from wsol.errors import InputError
from wsol.layout import Layout


class ForwardPass:
    """One forward pass of a batch and the output of one layer in it; both heads' views share it.

    Attributes:
        model: the network.
        images: (B, 3, H, W), its input.
        layer: the module that A comes from.
        leaf: the layer's output, in its own layout, from which autograd records.
        layout: where the places and channels of `leaf` are, see wsol/layout.py.
        activations: (B, C, h, w), A.
        logits: {"softmax": (B, K)} and, if there is a branch, {"sigmoid": (B, K)}; they depend on `leaf`.
        class_ids: (B,), the class k that each map explains.
        perturb_batch: number of perturbed inputs in one forward pass.
        options: hyperparameters of the methods, see wsol/cam/registry.py; those not given have their defaults.
        target: what is explained, see wsol/cam/targets.py.
        fitted: method → what its fit to the training images gave.
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
        perturb_batch: int = PERTURB_BATCH,
        options: Mapping[str, float] | None = None,
        target: Target = logit,
        fitted: Mapping[str, Tensor] | None = None,
    ):
        self.fitted = dict(fitted or {})
        self.model, self.images, self.layer, self.leaf, self.layout = model, images, layer, leaf, layout
        self.logits, self.class_ids = output.by_head(), class_ids
        self.perturb_batch, self.target = perturb_batch, target
        self.options = {name: option.default for name, option in cam_options().items()} | dict(options or {})
        self.activations = self.to_maps(leaf.detach())
        self._computed: dict[Callable, dict[str, Tensor]] = {}

    @cached_property
    def image_seeds(self) -> list[int]:
        """A checksum of each image: what is drawn from it is the same in any batch, process and run."""
        return [zlib.crc32(image.contiguous().cpu().numpy().tobytes()) for image in self.images.detach().float()]

    def to_maps(self, tensor: Tensor) -> Tensor:
        """A tensor in the layer's layout → (B, C, h, w), float32 at least."""
        maps = self.layout.to_maps(tensor)
        return maps if maps.dtype == torch.float64 else maps.float()

    def once(self, compute: Callable[["ForwardPass"], dict[str, Tensor]]) -> dict[str, Tensor]:
        """compute(self), one tensor per head, computed only once for both heads."""
        if compute not in self._computed:
            self._computed[compute] = compute(self)
        return self._computed[compute]


class HeadView:
    """What a formula reads: the activations, and one head's logits for them.

    Attributes:
        shared: the ForwardPass, which the other head's view shares.
        activations: (B, C, h, w), A at the target layer.
        class_ids: (B,), the class k that each map explains.
        options: hyperparameters by name.
        logits: (B, K) of the head.
        scores: (B,), its logit s_k, or another target.
        gradients: (B, C, h, w), g = d s_k / d A, computed when first read.
        class_weights: (B, C), the row W[k] of a linear head.
        levels: the head's views of several stages, of the target layer's first if `levels` of CamExtractor begin so;
            empty unless a method reads them.
    """

    def __init__(self, shared: ForwardPass, head: str, module: nn.Module):
        self.shared, self.head = shared, head
        self.activations, self.class_ids, self.options = shared.activations, shared.class_ids, shared.options
        self.logits = shared.logits[head]
        self._module = module
        self.levels: list[HeadView] = []

    @cached_property
    def scores(self) -> Tensor:
        """What is explained of each image: (B,)."""
        return self.shared.target(self.logits, self.class_ids)

    @cached_property
    def gradients(self) -> Tensor:
        """g = d s_k / d A: (B, C, h, w)."""
        return self.gradients_of(self.scores)

    def gradients_of(self, scores: Tensor) -> Tensor:
        """d scores / d A: (B,) → (B, C, h, w)."""
        # Images do not interact after the target layer, so the sum's gradient is that of each image.
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
        """The rows W[k] of the head, (B, C); InputError if it is not one linear layer over the channels of A."""
        weight = getattr(self._module, "weight", None)
        channels = self.activations.shape[1]
        if weight is None or weight.ndim not in (2, 4) or weight.shape[1] != channels:
            raise InputError(
                f"the method cam needs a head of one linear layer over the {channels} channels of the "
                f"target layer, not {type(self._module).__name__}; use gradcam or another target layer"
            )
        return weight.detach().flatten(1)[self.class_ids].to(self.activations.dtype)
