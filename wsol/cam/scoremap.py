"""From raw maps to score maps in [0, 1]: the one place where maps are resized and normalised."""

import math
from collections.abc import Callable
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


def max_norm(maps: Tensor) -> Tensor:
    """s / max s, negatives cut; a map without a positive value becomes NaN."""
    return _over(maps, maps.amax(dim=(1, 2), keepdim=True))


def pas(maps: Tensor, quantile: float = 0.9) -> Tensor:
    """s - min s, divided by its own quantile: what lies above that is 1 (PaS, Bae et al., ECCV 2020).

    Of a map whose quantile is its minimum (nine tenths of it are flat) nothing is left to divide by: NaN.
    """
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return _over(maps, sorted_value(maps, quantile))


def ivr(maps: Tensor, quantile: float = 0.45) -> Tensor:
    """s minus its quantile, negatives cut, divided by the maximum (IVR, Kim et al., ICCV 2021)."""
    maps = maps - sorted_value(maps, quantile)
    return _over(maps, maps.amax(dim=(1, 2), keepdim=True))


def _over(maps: Tensor, scale: Tensor) -> Tensor:
    """maps / scale, cut at 0 and 1; NaN where the scale (B, 1, 1) is not positive."""
    return (maps / scale).clamp(0, 1).where(scale > 0, torch.nan)


def sorted_value(maps: Tensor, quantile: float) -> Tensor:
    """Of a map's n sorted values that at place floor(quantile n), counted from 0 and at most n - 1: (B, 1, 1)."""
    values = maps.flatten(1)
    place = min(math.floor(quantile * values.shape[1]), values.shape[1] - 1)
    return values.kthvalue(place + 1, dim=1).values[:, None, None]


class Normalization(NamedTuple):
    """How a resized map is brought to [0, 1]. quantile: its default where it takes one, else None."""

    function: Callable[..., Tensor]
    quantile: float | None = None

    def __call__(self, maps: Tensor, quantile: float | None = None) -> Tensor:
        """(B, H, W) → (B, H, W) in [0, 1]; a map that cannot be normalised is NaN somewhere."""
        if self.quantile is None:
            return self.function(maps)
        return self.function(maps, self.quantile if quantile is None else quantile)


# --normalization. Surveyed by Kim et al., "Normalization Matters in Weakly Supervised Object Localization", ICCV 2021.
NORMALIZATIONS: dict[str, Normalization] = {
    "minmax": Normalization(minmax),
    "max": Normalization(max_norm),
    "pas": Normalization(pas, 0.9),
    "ivr": Normalization(ivr, 0.45),
}


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
    None for maps from files, the second without a branch. maps: row → (B, H, W) float32 in [0, 1]. degenerate:
    row → (B,) bool, see to_scoremaps.
    """

    indices: np.ndarray
    labels: np.ndarray
    logits: Tensor | None
    sigmoid_logits: Tensor | None
    maps: dict[Row, np.ndarray]
    degenerate: dict[Row, np.ndarray]
