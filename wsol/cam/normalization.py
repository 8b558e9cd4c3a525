"""How a resized map is brought to [0, 1]: NORMALIZATIONS by their command-line names.

Compared by Kim et al., "Normalization Matters in Weakly Supervised Object Localization", ICCV 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


def minmax(maps: Tensor) -> Tensor:
    """(B, H, W) → (B, H, W) in [0, 1], each map stretched to its own range."""
    low = maps.amin(dim=(1, 2), keepdim=True)
    high = maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low)


def max_norm(maps: Tensor) -> Tensor:
    """s / max s, negatives set to 0; a map without a positive value becomes NaN."""
    return _over(maps, maps.amax(dim=(1, 2), keepdim=True))


def pas(maps: Tensor, quantile: float = 0.9) -> Tensor:
    """s - min s, divided by its own quantile; values above that become 1 (PaS, Bae et al., ECCV 2020).

    A map whose quantile is its minimum (nine tenths of it are constant) becomes NaN.
    """
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return _over(maps, sorted_value(maps, quantile))


def ivr(maps: Tensor, quantile: float = 0.45) -> Tensor:
    """s minus its quantile, negatives set to 0, divided by the maximum (IVR, Kim et al., ICCV 2021)."""
    maps = maps - sorted_value(maps, quantile)
    return _over(maps, maps.amax(dim=(1, 2), keepdim=True))


def _over(maps: Tensor, scale: Tensor) -> Tensor:
    """maps / scale, clamped to [0, 1]; NaN if the scale (B, 1, 1) is not positive."""
    return (maps / scale).clamp(0, 1).where(scale > 0, math.nan)


def sorted_value(maps: Tensor, quantile: float) -> Tensor:
    """The value at index min(floor(quantile n), n - 1) of each map's n sorted values: (B, 1, 1)."""
    values = maps.flatten(1)
    index = min(math.floor(quantile * values.shape[1]), values.shape[1] - 1)
    return values.kthvalue(index + 1, dim=1).values[:, None, None]


class Normalization(NamedTuple):
    """A normalisation and the default of its quantile, which is None if it takes none."""

    function: Callable[..., Tensor]
    quantile: float | None = None

    def __call__(self, maps: Tensor, quantile: float | None = None) -> Tensor:
        """(B, H, W) → (B, H, W) in [0, 1]; a map that cannot be normalised has NaN."""
        if self.quantile is None:
            return self.function(maps)
        return self.function(maps, self.quantile if quantile is None else quantile)


NORMALIZATIONS: dict[str, Normalization] = {
    "minmax": Normalization(minmax),
    "max": Normalization(max_norm),
    "pas": Normalization(pas, 0.9),
    "ivr": Normalization(ivr, 0.45),
}
