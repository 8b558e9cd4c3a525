"""From raw maps to score maps in [0, 1]: the one place where maps are resized and normalised."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.cam.normalization import NORMALIZATIONS
from wsol.cam.registry import get_method
from wsol.cam.variant import Variant


def to_scoremaps(
    raw: Tensor,
    method: str,
    size: tuple[int, int],
    normalization: str = "minmax",
    quantile: float | None = None,
    *,
    interpolation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Raw maps (B, h, w) of a method → score maps (B, H, W) float32 in [0, 1] of `size` (H, W).

    cam: cubic resize, then normalisation. Others: negatives cut, bilinear resize,
    normalisation. Interpolation is that of OpenCV's INTER_CUBIC and INTER_LINEAR
    (torch's with align_corners=False); `interpolation` overrules the method's. normalization: one of NORMALIZATIONS;
    quantile: that of pas and ivr, None for their own.

    Returns:
        The maps and (B,) bool, True where a map was constant or not finite, or has
        nothing that its normalisation can stretch: such a map tells nothing and is all zeros.
    """
    facts = get_method(method)
    maps = raw.float()
    if facts.rectify:
        maps = maps.relu()
    # Asked before resizing, whose rounding would turn a constant map into noise to be stretched.
    constant = maps.amax(dim=(1, 2)) == maps.amin(dim=(1, 2))
    maps = F.interpolate(maps[:, None], size, mode=interpolation or facts.interpolation, align_corners=False)[:, 0]
    # NaN and infinity, in whatever order a normalisation's minima and quantiles would put them, are found before it.
    unusable = constant | ~torch.isfinite(maps).flatten(1).all(dim=1)
    maps = NORMALIZATIONS[normalization](maps, quantile)
    degenerate = unusable | ~torch.isfinite(maps).flatten(1).all(dim=1)
    # Rounding may leave a value a hair outside [0, 1].
    return maps.masked_fill(degenerate[:, None, None], 0).clamp(0, 1), degenerate


class ScoreMaps(NamedTuple):
    """What inference hands to evaluation for one batch, on the CPU.

    indices, labels: (B,) int64. logits, sigmoid_logits: (B, K) float32, the first
    None for maps from files, the second without a branch. maps: variant → (B, H, W) float32 in [0, 1]. degenerate:
    variant → (B,) bool, see to_scoremaps.
    """

    indices: np.ndarray
    labels: np.ndarray
    logits: Tensor | None
    sigmoid_logits: Tensor | None
    maps: dict[Variant, np.ndarray]
    degenerate: dict[Variant, np.ndarray]
