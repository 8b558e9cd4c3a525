"""Maps of several views of an image, mirrored and at several scales, added up."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.errors import InputError

Key = TypeVar("Key", bound=Hashable)


class View(NamedTuple):
    """An image at another scale, mirrored left to right or not, times `gain`. The default is the image itself."""

    scale: float = 1.0
    mirrored: bool = False
    gain: float = 1.0

    def side(self, side: int) -> int:
        """The side of a scaled image, rounded to whole pixels."""
        return max(round(side * self.scale), 1)

    def of(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) → the view of them, (B, 3, scale H, scale W)."""
        size = [self.side(side) for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        images = images if self.gain == 1 else images * self.gain
        return images.flip(-1) if self.mirrored else images

    def undo(self, maps: Tensor) -> Tensor:
        """Maps (B, h, w) of the view → maps of the image, still at the view's scale."""
        return maps.flip(-1) if self.mirrored else maps


PLAIN = View()
# Of `aug_smooth`: those of grad-cam's forward_augmentation_smoothing.
AUGMENTED = [View(1.0, mirrored, gain) for gain in (1.0, 0.9, 1.1) for mirrored in (False, True)]


def make_views(scales: Sequence[float], flip: bool) -> list[View]:
    """Each scale once, in the order given, and with `flip` each of them mirrored, too.

    Raises:
        InputError: there is no scale, or one is not a positive number.
    """
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise InputError(f"scales must be positive numbers, at least one, got {list(scales)}")
    return [
        View(scale, mirrored) for scale in dict.fromkeys(scales) for mirrored in ((False, True) if flip else (False,))
    ]


def add_views(
    maps: Sequence[Mapping[Key, Tensor]], views: Sequence[View], cut: Collection[Key] = ()
) -> dict[Key, Tensor]:
    """The sum of maps over views, each brought to the size of the largest one of its key (bilinear).

    Args:
        maps: of each view, key → (B, h, w).
        cut: keys of which negative places of each scale's sum are cut before the scales are added.
    """
    total = {}
    for key in maps[0]:
        of_views = [view[key] for view in maps]
        size = (max(m.shape[-2] for m in of_views), max(m.shape[-1] for m in of_views))
        of_scales: dict[float, list[Tensor]] = {}
        for view, of_view in zip(views, of_views, strict=True):
            brought = F.interpolate(of_view[:, None], size, mode="bilinear", align_corners=False)[:, 0]
            of_scales.setdefault(view.scale if key in cut else 1.0, []).append(brought)
        sums = [torch.stack(of_scale).sum(dim=0) for of_scale in of_scales.values()]
        total[key] = torch.stack([one.relu() for one in sums]).sum(dim=0) if key in cut else sums[0]
    return total
