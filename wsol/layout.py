"""Where the channels of a layer's output are: images (B, C, h, w), channels last (B, h, w, C) or tokens (B, P + N, C).

Transformers put P prefix tokens (class, distillation, registers) before the
N = h * w patches. The layout follows from the output's shape and the image's.

The target layer is the last one with places (maps or tokens on a grid) that the
head depends on; one forward and one backward pass find it.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsol.classifier import eval_mode
from wsol.errors import InputError

MOST_PREFIX_TOKENS = 8
# They hand on what they get (in eval mode); the layer before them is the one to name.
_PASSIVE = (nn.Dropout, nn.Dropout2d, nn.Identity)


class Layout(NamedTuple):
    """kind: "BCHW", "BHWC" or "BNC"; grid: (h, w); prefix: tokens before the patches (BNC)."""

    kind: str
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def channel_dim(self) -> int:
        return {"BCHW": 1, "BHWC": 3, "BNC": 2}[self.kind]

    def to_maps(self, activations: Tensor) -> Tensor:
        """Activations in this layout → (B, C, h, w), prefix tokens dropped."""
        if self.kind == "BHWC":
            return activations.permute(0, 3, 1, 2)
        if self.kind == "BNC":
            return activations[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return activations


@lru_cache
def find_layout(shape: tuple[int, ...], image: tuple[int, int]) -> Layout | None:
    """The layout of an output of `shape` for images of (H, W); None where it has no places."""
    if len(shape) == 4:
        # Of the two readings the one whose grid has the image's proportions; (B, C, h, w) where both have.
        def stretch(h: int, w: int) -> float:
            return abs(math.log(h * image[1] / (w * image[0]))) if h and w else math.inf

        kinds = {"BCHW": shape[2:], "BHWC": shape[1:3]}
        kind = min(kinds, key=lambda name: stretch(*kinds[name]))
        return Layout(kind, tuple(kinds[kind]))
    if len(shape) == 3:
        for prefix in range(MOST_PREFIX_TOKENS + 1):
            patches = shape[1] - prefix
            h = round(math.sqrt(max(patches, 0) * image[0] / image[1]))
            if h and patches % h == 0 and abs(h * image[1] - patches // h * image[0]) < max(image):
                return Layout("BNC", (h, patches // h), prefix)
    return None


def find_layers(network: nn.Module, head: str, images: Tensor) -> tuple[str, str]:
    """Names of the target layer and of the pooled layer of a network.

    pooled: the last layer with places before the head. target: the last one as
    wide as that whose places (not only its prefix tokens) the head depends on.
    The network runs in eval mode once, forward and backward, and is left as it was.

    Args:
        head: dotted name of its classification head.
        images: (n, 3, H, W) of the size, type and device that the network takes; noise will do.

    Raises:
        InputError: there is no such layer, or the network does not take such images.
    """
    size = tuple(images.shape[-2:])
    seen: list[tuple[str, Tensor, Layout]] = []  # in the order of execution
    reached: list[Tensor] = []

    def note(name, module, output):
        if not reached and isinstance(output, Tensor) and not isinstance(module, _PASSIVE):
            layout = find_layout(tuple(output.shape), size)
            if (
                layout
                and len(output) == len(images)
                and math.prod(layout.grid) > 1
                and _has_shape_of(layout.grid, size)
            ):
                seen.append((name, output, layout))

    handles = [
        module.register_forward_hook(lambda module, _inputs, output, name=name: note(name, module, output))
        for name, module in network.named_modules()
        if name and not name.startswith(f"{head}.")
    ]
    handles.append(
        network.get_submodule(head).register_forward_pre_hook(lambda _head, inputs: reached.append(inputs[0]))
    )
    try:
        with eval_mode(network), torch.enable_grad():
            network(images)
            if not seen or not reached:
                raise InputError(
                    f"{type(network).__name__} has no layer with places before its head '{head}'; larger "
                    "images (--crop_size) may have some left"
                )
            # Not the logits' gradient: some heads start as zeros. Not the plain sum's: it is zero behind LayerNorm.
            noise = torch.randn(reached[0].shape, generator=torch.Generator().manual_seed(0))
            probe = (reached[0] * noise.to(reached[0])).sum()
            pooled, last, layout = seen[-1]
            width = layout.to_maps(last).shape[1]
            alike = [
                (name, output, layout)
                for name, output, layout in reversed(seen)
                if layout.to_maps(output).shape[1] == width and output.requires_grad
            ]
            target = next((name for name, output, layout in alike if _places_matter(probe, output, layout)), pooled)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--crop_size {size[0]}: {type(network).__name__} does not take such images ({reason})"
        ) from None
    finally:
        for handle in handles:
            handle.remove()
    return target, pooled


def _has_shape_of(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Are the places laid out in the image's proportions, up to a stride's rounding on either side?"""
    return all((side - 1) * image[1 - i] < (grid[1 - i] + 1) * image[i] for i, side in enumerate(grid))


def _places_matter(probe: Tensor, output: Tensor, layout: Layout) -> bool:
    gradient = torch.autograd.grad(probe, output, retain_graph=True, allow_unused=True)[0]
    return gradient is not None and bool((layout.to_maps(gradient) != 0).any())
