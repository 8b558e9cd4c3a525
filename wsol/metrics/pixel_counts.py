"""Scores counted in bins, foreground and background apart, in one pass over each map: the loop behind PxAP."""

import numpy as np
from numba import int32, uint32, uintp

from wsol.metrics.compiled import inlined, kept

_BLOCK = 1024  # pixels that stay in the nearest cache between the loops
_BAD_SCORE, _BAD_MASK = 1, 2


def count_pixels(scoremaps: np.ndarray, masks: np.ndarray, interval: float, below_one: int) -> np.ndarray:
    """Pixels per bin of each map, (n, 2, below_one + 2) uint32, foreground and background.

    Args:
        scoremaps: (n, ...) floats in [0, 1]; they meet the bins' edges as float64, as in np.histogram.
        masks: the same shape, uint8, 1 foreground, 0 background, 255 ignored.
        interval, below_one: the bins are [i * interval, (i + 1) * interval) for i below below_one, the last of
            these ends at 1, one more begins there, and an empty one follows.

    Raises:
        ValueError: a score outside [0, 1] or NaN, ignored or not, or another mask value.
    """
    if scoremaps.dtype not in (np.float32, np.float64):
        scoremaps = scoremaps.astype(np.float64)
    # Always the same layouts, so that the loops are compiled once for each of the two types.
    scores, masks = (np.require(x, requirements=["C", "W"]).reshape(len(x), -1) for x in (scoremaps, masks))
    counts = np.zeros((len(scores), 3, below_one + 2), np.uint32)  # foreground, background, ignored
    wrong = _count(scores, masks, float(interval), float(below_one), counts.reshape(len(scores), -1))
    if wrong == _BAD_SCORE:
        raise ValueError("score map values must lie in [0, 1], without NaN")
    if wrong == _BAD_MASK:
        raise ValueError("mask values must be 1 (foreground), 0 (background) or 255 (ignored)")
    return counts[:, :2]


@kept
def _count(scores, masks, interval, below_one, counts):
    """Add the pixels (n, P) to the counts (n, 3 * bins); returns what is wrong with them, 0 for nothing."""
    width = int32(counts.shape[1] // 3)
    # A guess of the bin by multiplying: shrunk by more than rounding can add, so never too high, and at most one too low.
    bins_per_unit = (1.0 - 1e-14) / interval
    places = np.empty(_BLOCK, np.int32)
    for image in range(scores.shape[0]):
        for start in range(0, scores.shape[1], _BLOCK):
            of_block = places[: min(_BLOCK, scores.shape[1] - start)]
            if _find_bins(scores[image, start : start + _BLOCK], bins_per_unit, interval, below_one, of_block):
                return _BAD_SCORE
            if _add_rows(masks[image, start : start + _BLOCK], width, of_block):
                return _BAD_MASK
            for place in of_block:
                counts[image, uintp(uint32(place))] += uint32(1)
    return 0


@inlined
def _find_bins(scores, bins_per_unit, interval, below_one, bins):
    """The bin of each score; returns whether one is invalid. Choices only, no branches: this is vectorised."""
    invalid = int32(0)
    for i in range(scores.size):
        score = np.float64(scores[i])
        bin = np.floor(score * bins_per_unit)
        bin = bin + 1.0 if score >= (bin + 1.0) * interval else bin
        bin = below_one - 1.0 if bin >= below_one else bin  # the last bin below 1 may be a narrower one
        bin = below_one if score == 1.0 else bin
        invalid |= int32(not score >= 0.0) | int32(not score <= 1.0)  # NaN is neither
        bins[i] = int32(bin)
    return invalid


@inlined
def _add_rows(mask, width, places):
    """Turn bins into places in the table of counts, by the row of the mask's value; returns whether one is invalid."""
    invalid = int32(0)
    for i in range(mask.size):
        value = mask[i]
        row = int32(0) if value == 1 else width
        row = int32(2) * width if value == 255 else row
        invalid |= int32(value > 1) & int32(value != 255)
        places[i] += row
    return invalid
