"""From raw maps to score maps in [0, 1]: the one place where maps are resized and normalised."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsol.cam.normalization import NORMALIZATIONS
from wsol.cam.registry import get_method
from wsol.cam.variant import Variant
from wsol.classifier import Output


def to_scoremaps(
    raw: Tensor,
    method: str,
    size: tuple[int, int],
    normalization: str = "minmax",
    quantile: float | None = None,
    *,
    interpolation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Raw maps (B, h, w) of a method → score maps (B, H, W), float32 in [0, 1].

    cam: bicubic resizing, then normalisation. Others: negatives set to 0, bilinear resizing, normalisation.
    Interpolation is that of OpenCV's INTER_CUBIC and INTER_LINEAR (torch's with align_corners=False).

    Args:
        raw: maps of a CamExtractor.
        method: name in CAM_METHODS.
        size: (H, W).
        normalization: one of NORMALIZATIONS.
        quantile: that of pas and ivr; None: their defaults.
        interpolation: "bilinear" or "bicubic"; None: the method's.

    Returns:
        The score maps, and (B,) bool, True for degenerate maps: constant, not finite, or without anything that the
        normalisation can stretch. A degenerate map is all zeros.
    """
    entry = get_method(method)
    maps = raw.float()
    if entry.rectify:
        maps = maps.relu()
    # Checked before resizing, whose rounding turns a constant map into noise that normalisation would stretch.
    constant = maps.amax(dim=(1, 2)) == maps.amin(dim=(1, 2))
    maps = F.interpolate(maps[:, None], size, mode=interpolation or entry.interpolation, align_corners=False)[:, 0]
    # Checked before normalising, because minima and quantiles may ignore NaN and infinity.
    broken = constant | ~torch.isfinite(maps).flatten(1).all(dim=1)
    maps = NORMALIZATIONS[normalization](maps, quantile)
    degenerate = broken | ~torch.isfinite(maps).flatten(1).all(dim=1)
    # Rounding may leave a value slightly outside [0, 1].
    return maps.masked_fill(degenerate[:, None, None], 0).clamp(0, 1), degenerate


class Prediction(NamedTuple):
    """What explains a batch's predicted classes, for fidelity.

    Attributes:
        images: (B, 3, H, W), normalized, on the model's device.
        raw: variant → (B, h, w), raw maps of the class that the softmax head predicts.
        output: the logits of both heads.
    """

    images: Tensor
    raw: dict[Variant, Tensor]
    output: Output


class ScoreMaps(NamedTuple):
    """The score maps of one batch on the CPU, as inference passes them to evaluation.

    Attributes:
        indices: (B,) int64, positions in the data set.
        labels: (B,) int64.
        logits: (B, K) float32 of the softmax head; None for maps from files.
        sigmoid_logits: (B, K) float32; None without a branch.
        maps: variant → (B, H, W) float32 in [0, 1].
        degenerate: variant → (B,) bool, see to_scoremaps.
        prediction: where fidelity is measured.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: Tensor | None
    sigmoid_logits: Tensor | None
    maps: dict[Variant, NDArray[np.float32]]
    degenerate: dict[Variant, NDArray[np.bool_]]
    prediction: Prediction | None = None
