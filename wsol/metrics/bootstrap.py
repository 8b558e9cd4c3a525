"""Bootstrap over images: how far would a number move had the test split been drawn again?

    weights = draw(num_images, 1000, seed=0)                     # how often each image is in each resample
    replicates = box_replicates(metric.records.outcomes(), weights)
    intervals(replicates)["maxboxacc_v2"]                        # [low, high], 95 % percentile interval

A resample is as many images, drawn with replacement (Efron 1979; percentile intervals: Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13). Every metric is computed anew from each resample, its choice of the
best threshold included: the maximum over tau is taken inside. These are pure functions of arrays and a seed.

Counting right images over R resamples is one matrix product of weights and right answers over the C thresholds that
differ: (R, N) @ (N, C). Integers below 2^24 are exact in float32, and so is their sum in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wsol.metrics.box_metrics import FIXED_KEYS, BoxCounts, per_cent, reduce_boxes
from wsol.metrics.pixels import average_precisions
from wsol.metrics.records import BoxOutcomes

_CHUNK = 4096  # images multiplied at a time: some 10 MB of right answers


def draw(num_images: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each image is in each resample: (R, N) uint8.

    Resample after resample `num_images` images are drawn by `np.random.default_rng(seed).integers`. Raises ValueError
    for less than one image.
    """
    if num_images < 1:
        raise ValueError("a bootstrap needs at least one image")
    rng = np.random.default_rng(seed)
    weights = np.empty((num_resamples, num_images), dtype=np.uint8)  # 256 draws of one image: chance 1 / 256!
    for resample in weights:
        resample[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return weights


def right_replicates(right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of right images (N,) bool in each resample: (R,) per cent. Raises ValueError for lengths that differ."""
    _check_lengths(len(right), weights)
    totals = np.zeros(len(weights))
    for rows in _slices(len(right), _CHUNK):
        totals += _exact(weights[:, rows]) @ _exact(right[rows])
    return per_cent(totals, _sizes(weights))


def box_replicates(
    outcomes: BoxOutcomes,
    weights: np.ndarray,
    top1: np.ndarray | None = None,
    top5: np.ndarray | None = None,
    val_taus: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The metrics of `BoxAccuracy.compute` in each resample, in per cent.

    Args:
        outcomes: of N images.
        weights: (R, N) uint8, see `draw`; a row of ones gives the metrics themselves.
        top1: (N,) bool, whether the class is right; None where it is not known.
        top5: the same for the five highest scores.
        val_taus: {"gt_loc_val": tau, "top1_loc_val": tau}, as far as known: the thresholds chosen on val, which no
            resampling of test images changes.

    Returns:
        Keys as in `compute`, each with (R,) float64; `maxboxacc` {delta: (R,)}.

    Raises:
        ValueError: lengths that differ.
    """
    _check_lengths(len(outcomes.single), weights, top1, top5)
    num_deltas, num_columns = len(outcomes.deltas), outcomes.num_columns
    fixed = int(outcomes.column[-1])
    # Blocks of C columns: right at each delta (multi-contour), right (single-contour), and these with the class in the
    # top 1; then one column, with the class in the top 5.
    totals = np.zeros((len(weights), (num_deltas + 2) * num_columns + 1))
    for rows in _slices(len(outcomes.single), _CHUNK):
        multi = np.unpackbits(outcomes.multi[rows], axis=-1, count=num_columns)
        single = np.unpackbits(outcomes.single[rows], axis=-1, count=num_columns)
        blocks = [
            multi.reshape(len(multi), -1),
            single,
            single * (0 if top1 is None else top1[rows, None]),
            single[:, [fixed]] * (0 if top5 is None else top5[rows, None]),
        ]
        totals += _exact(weights[:, rows]) @ _exact(np.concatenate(blocks, axis=1))
    blocks_of_totals = totals[:, :-1].reshape(len(weights), num_deltas + 2, num_columns)
    counts = BoxCounts(
        images=_sizes(weights),
        multi=blocks_of_totals[:, :-2],
        single=blocks_of_totals[:, -2],
        top1=None if top1 is None else blocks_of_totals[:, -1],
        top5=None if top5 is None else totals[:, -1],
    )
    columns = dict.fromkeys(FIXED_KEYS, fixed)
    columns |= {key: outcomes.column_at(tau) for key, tau in (val_taus or {}).items()}
    deltas = [int(delta) if delta.is_integer() else delta for delta in outcomes.deltas.tolist()]  # 30.0 → 30
    metrics, _ = reduce_boxes(counts, deltas, outcomes.grid, columns)
    return metrics


def pixel_replicates(histograms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """PxAP in each resample: (R,) per cent, from the images' own histograms (N, 2, bins), see PixelRecords.

    NaN for a resample without any foreground, whose average precision is not defined.
    Raises ValueError for lengths that differ.
    """
    _check_lengths(len(histograms), weights)
    num_bins = histograms.shape[-1]
    totals = np.zeros((len(weights), 2 * num_bins))
    for rows in _slices(len(histograms), _CHUNK // 4):
        # Counts of pixels exceed 2^24: float64, which is exact to 2^53.
        totals += weights[:, rows].astype(np.float64) @ histograms[rows].reshape(-1, 2 * num_bins).astype(np.float64)
    return 100 * average_precisions(totals[:, :num_bins], totals[:, num_bins:])


def interval(replicates: np.ndarray, confidence: float = 95.0) -> list[float]:
    """The percentile interval [low, high] of replicates (R,), without those that are NaN."""
    tail = (100 - confidence) / 2
    return [float(bound) for bound in np.nanpercentile(replicates, [tail, 100 - tail])]


def intervals(replicates: Mapping[Any, Any]) -> dict[Any, Any]:
    """`interval` of each value of a dict, at any depth."""
    return {
        key: intervals(value) if isinstance(value, Mapping) else interval(value) for key, value in replicates.items()
    }


def _exact(integers: np.ndarray) -> np.ndarray:
    return integers.astype(np.float32)


def _sizes(weights: np.ndarray) -> np.ndarray:
    """Images in each resample: (R,)."""
    return weights.sum(axis=1, dtype=np.int64)


def _slices(num_images: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num_images, size))


def _check_lengths(num_images: int, weights: np.ndarray, *more: np.ndarray | None) -> None:
    lengths = {num_images, weights.shape[1], *(len(values) for values in more if values is not None)}
    if len(lengths) > 1:
        raise ValueError(f"records, weights and classification are of different numbers of images: {sorted(lengths)}")
