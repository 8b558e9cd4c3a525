"""Scores counted in bins, foreground and background apart, in one pass over a map: the loop behind PxAP."""

import numpy as np
from numba import uintp

from wsol.metrics.compiled import kept

_FOREGROUND, _BACKGROUND, _IGNORED, _INVALID = range(4)
_ROW = np.full(256, _INVALID, np.uint8)  # of a mask's value
_ROW[[1, 0, 255]] = _FOREGROUND, _BACKGROUND, _IGNORED


def count_pixels(scoremap: np.ndarray, mask: np.ndarray, edges: np.ndarray, interval: float) -> np.ndarray:
    """Pixels per bin [edges[i], edges[i + 1]): (2, bins) int64, foreground and background.

    Args:
        scoremap: any shape, floats in [0, 1]; they meet the edges as float64, as in np.histogram.
        mask: the same shape, uint8, 1 foreground, 0 background, 255 ignored.
        edges: (bins + 1,) float64, rising from 0 to a value above 1.
        interval: the width of most bins, to begin the search with; any positive number gives the same counts.

    Raises:
        ValueError: a score outside [0, 1] or NaN, ignored or not, or another mask value.
    """
    # Always the same types and layouts, so that the loop is compiled for one only.
    scores = scoremap.astype(np.float64).ravel()
    counts, valid = _count(scores, np.require(mask, np.uint8, ["C", "W"]).ravel(), edges, 1 / interval)
    if not valid:
        raise ValueError("score map values must lie in [0, 1], without NaN")
    if counts[_INVALID].any():
        raise ValueError("mask values must be 1 (foreground), 0 (background) or 255 (ignored)")
    return counts[[_FOREGROUND, _BACKGROUND]]


@kept
def _count(scores, mask, edges, bins_per_unit):
    counts = np.zeros((4, len(edges) - 1), np.int64)
    last = counts.shape[1] - 1
    for i in range(scores.size):
        score = scores[i]
        if not 0 <= score <= 1:  # NaN neither
            return counts, False
        bin = uintp(min(int(score * bins_per_unit), last))
        while score < edges[bin]:  # rounding can put the guess off by one
            bin -= uintp(1)
        while score >= edges[bin + uintp(1)]:
            bin += uintp(1)
        counts[_ROW[mask[i]], bin] += 1
    return counts, True
