"""From raw maps to score maps in [0, 1]: the one place where maps are resized and normalised."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.cam.base import Row, get_method


def minmax(maps: Tensor) -> Tensor:
    """(B, H, W) → (B, H, W) in [0, 1], each map stretched to its own range."""
    low = maps.amin(dim=(1, 2), keepdim=True)
    high = maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low)


def to_scoremaps(raw: Tensor, method: str, size: tuple[int, int], *,
                 interpolation: str | None = None) -> tuple[Tensor, Tensor]:
    """Raw maps (B, h, w) of a method → score maps (B, H, W) float32 in [0, 1] of `size` (H, W).

    cam: cubic resize, then min-max. Others: negatives cut, bilinear resize,
    min-max. Interpolation is that of OpenCV's INTER_CUBIC and INTER_LINEAR
    (torch's with align_corners=False); `interpolation` overrules the method's.

    Returns:
        The maps and (B,) bool, True where a map was constant or not finite: such
        a map tells nothing and is all zeros.
    """
    facts = get_method(method)
    maps = raw.float()
    if facts.rectify:
        maps = maps.relu()
    # Asked before resizing, whose rounding would turn a constant map into noise to be stretched.
    constant = maps.amax(dim=(1, 2)) == maps.amin(dim=(1, 2))
    maps = minmax(F.interpolate(maps[:, None], size, mode=interpolation or facts.interpolation, align_corners=False)[:, 0])
    degenerate = constant | ~torch.isfinite(maps).flatten(1).all(dim=1)
    # Rounding may leave a value a hair outside [0, 1].
    return maps.masked_fill(degenerate[:, None, None], 0).clamp(0, 1), degenerate


class ScoreMaps(NamedTuple):
    """What inference hands to evaluation for one batch, on the CPU.

    indices, labels: (B,) int64. logits, sigmoid_logits: (B, K) float32, the second
    None without a branch. maps: row → (B, H, W) float32 in [0, 1]. degenerate:
    row → (B,) bool, see to_scoremaps.
    """
    indices: np.ndarray
    labels: np.ndarray
    logits: Tensor
    sigmoid_logits: Tensor | None
    maps: dict[Row, np.ndarray]
    degenerate: dict[Row, np.ndarray]
