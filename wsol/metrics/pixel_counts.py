"""Scores counted in bins, foreground and background apart, in one pass over a map: the loop behind PxAP."""

import numpy as np
from numba import int32, uint32, uintp

from wsol.metrics.compiled import inlined, kept

_BLOCK = 1024  # pixels that stay in the nearest cache between the loops


def count_pixels(scoremap: np.ndarray, mask: np.ndarray, interval: float, below_one: int) -> np.ndarray:
    """Pixels per bin, (2, below_one + 1) int64, foreground and background.

    Args:
        scoremap: any shape, floats in [0, 1]; they meet the bins' edges as float64, as in np.histogram.
        mask: the same shape, uint8, 1 foreground, 0 background, 255 ignored.
        interval, below_one: the bins are [i * interval, (i + 1) * interval) for i below below_one, the last of
            these ends at 1, and one more begins there.

    Raises:
        ValueError: a score outside [0, 1] or NaN, ignored or not, or another mask value.
    """
    # Always the same types and layouts, so that the loops are compiled for one only.
    scores, mask = scoremap.astype(np.float64).ravel(), np.require(mask, np.uint8, ["C", "W"]).ravel()
    counts = _count(scores, mask, float(interval), int(below_one)).reshape(4, -1)
    if counts[:, -1].any():
        raise ValueError("score map values must lie in [0, 1], without NaN")
    if counts[3].any():
        raise ValueError("mask values must be 1 (foreground), 0 (background) or 255 (ignored)")
    return counts[:2, :-1].astype(np.int64)


@kept
def _count(scores, mask, interval, below_one):
    """Pixels with the mask's value 1, 0, 255 and others, per bin and, last, outside [0, 1]: 4 * (bins + 1) uint32."""
    width = below_one + 2
    counts, places = np.zeros(4 * width, np.uint32), np.empty(_BLOCK, np.int32)
    for start in range(0, scores.size, _BLOCK):
        of_block = places[:min(_BLOCK, scores.size - start)]
        _find_bins(scores[start:start + _BLOCK], interval, below_one, of_block)
        _add_rows(mask[start:start + _BLOCK], width, of_block)
        for place in of_block:
            counts[uintp(uint32(place))] += uint32(1)
    return counts


@inlined
def _find_bins(scores, interval, below_one, bins):
    """The bin of each score, below_one + 1 for an invalid one. Choices only, no branches: this is vectorised."""
    bins_per_unit, last = 1 / interval, below_one - 1.0
    for i in range(scores.size):
        score = scores[i]
        bin = np.floor(score * bins_per_unit)
        bin = bin - 1.0 if score < bin * interval else bin  # rounding can put the guess off by one
        bin = bin + 1.0 if score >= (bin + 1.0) * interval else bin
        bin = last if bin > last else bin
        bin = last + 1.0 if score == 1.0 else bin
        bin = bin if score >= 0.0 else last + 2.0  # NaN neither
        bin = bin if score <= 1.0 else last + 2.0
        bins[i] = int32(bin)


@inlined
def _add_rows(mask, width, places):
    """Turn bins into places in the table of counts, by the row of the mask's value."""
    for i in range(mask.size):
        row = int32(3 * width)
        row = int32(0) if mask[i] == 1 else row
        row = int32(width) if mask[i] == 0 else row
        row = int32(2 * width) if mask[i] == 255 else row
        places[i] += row
