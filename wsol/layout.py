"""Where the channels of a layer's output are: (B, C, h, w), channels last (B, h, w, C), or tokens (B, P + N, C).

Transformers put P prefix tokens (class, distillation, registers) before the N = h * w patches. The layout follows from
the shapes of the output and of the image.

`find_layers` finds the target layer: the last one with places (positions of a map, or tokens on a grid) that the head
depends on. It takes one forward and one backward pass.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsol.classifier import eval_mode
from wsol.errors import InputError

MOST_PREFIX_TOKENS = 8
# In eval mode these return their input; the layer before them is the one to name.
_PASSIVE = (nn.Dropout, nn.Dropout2d, nn.Identity)


class Layout(NamedTuple):
    """Where places and channels are.

    Attributes:
        kind: "BCHW", "BHWC" or "BNC".
        grid: (h, w).
        prefix: number of tokens before the patches (BNC).
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def channel_dim(self) -> int:
        """The dimension of the channels."""
        return {"BCHW": 1, "BHWC": 3, "BNC": 2}[self.kind]

    def to_maps(self, activations: Tensor) -> Tensor:
        """Activations in this layout → (B, C, h, w), without prefix tokens."""
        if self.kind == "BHWC":
            return activations.permute(0, 3, 1, 2)
        if self.kind == "BNC":
            return activations[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return activations


@lru_cache
def find_layout(shape: tuple[int, ...], image: tuple[int, int]) -> Layout | None:
    """The layout of an output of `shape` for images of (H, W); None if it has no places."""
    if len(shape) == 4:
        # Choose the reading whose grid is closer to the image's proportions; (B, C, h, w) if both are equally close.
        def stretch(h: int, w: int) -> float:
            return abs(math.log(h * image[1] / (w * image[0]))) if h and w else math.inf

        grids = {"BCHW": (shape[2], shape[3]), "BHWC": (shape[1], shape[2])}
        kind = min(grids, key=lambda name: stretch(*grids[name]))
        return Layout(kind, grids[kind])
    if len(shape) == 3:
        for prefix in range(MOST_PREFIX_TOKENS + 1):
            patches = shape[1] - prefix
            h = round(math.sqrt(max(patches, 0) * image[0] / image[1]))
            if h and patches % h == 0 and abs(h * image[1] - patches // h * image[0]) < max(image):
                return Layout("BNC", (h, patches // h), prefix)
    return None


class _LayerOutput(NamedTuple):
    name: str
    output: Tensor
    layout: Layout

    @property
    def channels(self) -> int:
        return self.layout.to_maps(self.output).shape[1]


def find_layers(network: nn.Module, head: str, images: Tensor) -> tuple[str, str]:
    """Names of the target layer and of the pooled layer of a network.

    The pooled layer is the last one with places before the head. The target layer is the last one with as many channels
    as that, whose places (not only its prefix tokens) the head depends on, and that is not one of parallel layers.

    Args:
        network: runs once in eval mode, forward and backward, and is left as it was.
        head: dotted name of its classification head.
        images: (n, 3, H, W) of the size, dtype and device that the network takes; noise will do.

    Raises:
        InputError: there is no such layer, or the network does not take such images.
    """
    height, width = images.shape[-2:]
    outputs: list[_LayerOutput] = []  # in the order of execution
    head_inputs: list[Tensor] = []

    def record_output(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, _inputs: tuple, output: object) -> None:
            if head_inputs or not isinstance(output, Tensor) or isinstance(module, _PASSIVE):
                return
            layout = find_layout(tuple(output.shape), (height, width))
            if layout is None or len(output) != len(images) or math.prod(layout.grid) == 1:
                return
            if _has_proportions_of(layout.grid, (height, width)):
                outputs.append(_LayerOutput(name, output, layout))

        return hook

    handles = [
        module.register_forward_hook(record_output(name))
        for name, module in network.named_modules()
        if name and not name.startswith(f"{head}.")
    ]
    handles.append(
        network.get_submodule(head).register_forward_pre_hook(lambda _head, inputs: head_inputs.append(inputs[0]))
    )
    try:
        with eval_mode(network), torch.enable_grad():
            network(images.detach().requires_grad_().clone())  # a graph is recorded even if all parameters are frozen
            if not outputs or not head_inputs:
                raise InputError(
                    f"{type(network).__name__} has no layer with places before its head '{head}'; try larger "
                    "images (--crop_size)"
                )
            # The logits' gradient would not do, as some heads start as zeros; nor that of the plain sum of the head's
            # input, which is zero after LayerNorm. So the sum is weighted by noise.
            noise = torch.randn(head_inputs[0].shape, generator=torch.Generator().manual_seed(0))
            score = (head_inputs[0] * noise.to(head_inputs[0])).sum()
            pooled = outputs[-1]
            candidates = (
                layer
                for layer in reversed(outputs)
                if layer.channels == pooled.channels and _places_matter(score, layer)
            )
            last = layer = next(candidates, pooled)
            for before in candidates:
                # In parallel layers, such as the projections to keys and values, the one before has a way around.
                if not _places_matter(score, before, without=layer):
                    return layer.name, pooled.name
                layer = before
            return last.name, pooled.name
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--crop_size {height}: {type(network).__name__} does not take such images ({reason})"
        ) from None
    finally:
        for handle in handles:
            handle.remove()


def _has_proportions_of(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether the grid has the image's proportions, up to the rounding of a stride on either side."""
    return all((side - 1) * image[1 - i] < (grid[1 - i] + 1) * image[i] for i, side in enumerate(grid))


def _places_matter(score: Tensor, layer: _LayerOutput, without: _LayerOutput | None = None) -> bool:
    """Whether the score depends on the layer's places; `without`: on paths that avoid this other layer."""
    if not layer.output.requires_grad:
        return False
    with ExitStack() as stack:
        if without is not None:
            stack.callback(without.output.register_hook(torch.zeros_like).remove)
        (gradient,) = torch.autograd.grad(score, layer.output, retain_graph=True, allow_unused=True)
    return gradient is not None and bool((layer.layout.to_maps(gradient) != 0).any())
