"""Where the channels of a layer's output are: images (B, C, h, w), channels last (B, h, w, C) or tokens (B, P + N, C).

Transformers put P prefix tokens (class, distillation, registers) before the
N = h * w patches. The layout follows from the output's shape and the image's.
"""

import math
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

MOST_PREFIX_TOKENS = 8


class Layout(NamedTuple):
    """kind: "BCHW", "BHWC" or "BNC"; grid: (h, w); prefix: tokens before the patches (BNC)."""
    kind: str
    grid: tuple[int, int]
    prefix: int = 0

    def to_maps(self, activations: Tensor) -> Tensor:
        """Activations in this layout → (B, C, h, w), prefix tokens dropped."""
        if self.kind == "BHWC":
            return activations.permute(0, 3, 1, 2)
        if self.kind == "BNC":
            return activations[:, self.prefix:].transpose(1, 2).unflatten(2, self.grid)
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
