"""Bootstrap over images: how far would a number move had the test split been drawn again?

    weights = draw(num_images, 1000, seed=0)                     # how often each image is in each resample
    replicates = box_replicates(metric.records.outcomes(), weights)
    intervals(replicates)["maxboxacc_v2"]                        # [low, high], 95 % percentile interval

A resample is as many images, drawn with replacement (Efron 1979; percentile intervals: Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13). Every metric is made anew from each resample, its choice of the
best threshold included: the maximum over tau is taken inside. Pure functions of arrays; chance comes from the seed.

One resample of box accuracy is a product of weights and right answers, and only thresholds that differ are
multiplied: (R, N) @ (N, C). Integers below 2^24 are exact in float32, and so is their sum in any order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

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
    weights = np.empty((num_resamples, num_images), dtype=np.uint8)  # 256 draws of one image: never (1 / 256!)
    for resample in weights:
        resample[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return weights


def right_replicates(right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of right images (N,) bool in each resample: (R,) per cent."""
    _check_lengths(len(right), weights)
    return _per_cent(sum(_exact(weights[:, rows]) @ _exact(right[rows]) for rows in _slices(len(right))), weights)


def box_replicates(
    outcomes: BoxOutcomes,
    weights: np.ndarray,
    top1: np.ndarray | None = None,
    top5: np.ndarray | None = None,
    val_taus: Mapping[str, float] | None = None,
) -> dict:
    """The metrics of `BoxAccuracy.compute` in each resample, in per cent.

    Args:
        outcomes: of N images.
        weights: (R, N) uint8, see `draw`; a line of ones gives the metrics themselves.
        top1, top5: (N,) bool, whether the class is right, None where it is not known.
        val_taus: {"gt_loc_val": tau, "top1_loc_val": tau}, those that there are: the thresholds chosen on val, which
            no resampling of test images changes.

    Returns:
        Keys as in `compute`, each with (R,) float64; `maxboxacc` {delta: (R,)}.

    Raises:
        ValueError: lengths that do not fit.
    """
    _check_lengths(len(outcomes.single), weights, top1, top5)
    num_deltas, columns = len(outcomes.deltas), outcomes.num_columns
    # Block after block of `columns`: each delta's multi-contour answers, single-contour ones, and those with top-1.
    totals = np.zeros((len(weights), (num_deltas + 2) * columns + 1))
    for rows in _slices(len(outcomes.single)):
        multi = np.unpackbits(outcomes.multi[rows], axis=-1, count=columns)
        single = np.unpackbits(outcomes.single[rows], axis=-1, count=columns)
        blocks = [
            multi.reshape(len(multi), -1),
            single,
            single * (0 if top1 is None else top1[rows, None]),
            single[:, outcomes.column[-1:]] * (0 if top5 is None else top5[rows, None]),
        ]
        totals += _exact(weights[:, rows]) @ _exact(np.concatenate(blocks, axis=1))
    *multi, single, top1_loc = (_per_cent(block, weights) for block in np.split(totals[:, :-1], num_deltas + 2, axis=1))
    top5_loc = _per_cent(totals[:, -1:], weights)

    grid = np.unique(outcomes.column[:-1])  # loc_threshold is not eligible as best
    maxboxacc = {_plain(delta): curve[:, grid].max(axis=1) for delta, curve in zip(outcomes.deltas, multi, strict=True)}
    best = single[:, grid].max(axis=1)
    found = {
        "maxboxacc": maxboxacc,
        "maxboxacc_v2": np.mean(list(maxboxacc.values()), axis=0),
        "maxboxacc_v1": best,
        "gt_loc": single[:, outcomes.column[-1]],
        "gt_loc_best": best,
    }
    if top1 is not None:
        found |= {"top1_loc": top1_loc[:, outcomes.column[-1]], "top1_loc_best": top1_loc[:, grid].max(axis=1)}
    if top5 is not None:
        found["top5_loc"] = top5_loc[:, 0]
    for key, tau in (val_taus or {}).items():
        found[key] = {"gt_loc_val": single, "top1_loc_val": top1_loc}[key][:, outcomes.column_at(tau)]
    return found


def pixel_replicates(histograms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """PxAP in each resample: (R,) per cent, from the images' own histograms (N, 2, bins), see PixelRecords.

    NaN for a resample without any foreground, of which the average precision is not defined.
    Raises ValueError for lengths that do not fit.
    """
    _check_lengths(len(histograms), weights)
    num_bins = histograms.shape[-1]
    totals = np.zeros((len(weights), 2 * num_bins))
    for rows in _slices(len(histograms), _CHUNK // 4):
        # Counts of pixels pass 2^24: float64, which is exact to 2^53.
        totals += weights[:, rows].astype(np.float64) @ histograms[rows].reshape(-1, 2 * num_bins).astype(np.float64)
    foreground, background = totals[:, :num_bins], totals[:, num_bins:]
    true_positives = np.cumsum(foreground[:, ::-1], axis=1)
    positives = true_positives + np.cumsum(background[:, ::-1], axis=1)
    gained = np.diff(true_positives, axis=1)  # as in `average_precision` the topmost bin adds no term
    area = (true_positives / np.maximum(positives, 1))[:, 1:] * gained
    all_foreground = true_positives[:, -1]
    return np.where(all_foreground > 0, 100 * area.sum(axis=1) / np.maximum(all_foreground, 1), np.nan)


def interval(replicates: np.ndarray, confidence: float = 95.0) -> list[float]:
    """The percentile interval [low, high] of replicates (R,); NaN among them are left out."""
    tail = (100 - confidence) / 2
    return [float(bound) for bound in np.nanpercentile(replicates, [tail, 100 - tail])]


def intervals(replicates: Mapping) -> dict:
    """`interval` of each value of a dict, at any depth."""
    return {
        key: intervals(value) if isinstance(value, Mapping) else interval(value) for key, value in replicates.items()
    }


def _exact(integers: np.ndarray) -> np.ndarray:
    return integers.astype(np.float32)


def _per_cent(totals: np.ndarray, weights: np.ndarray) -> np.ndarray:
    sizes = weights.sum(axis=1, dtype=np.int64)
    # Multiply first, as BoxAccuracy does: the same last digit.
    return totals.astype(np.float64) * 100.0 / sizes.reshape(-1, *[1] * (totals.ndim - 1))


def _slices(num_images: int, size: int = _CHUNK):
    return (slice(start, start + size) for start in range(0, num_images, size))


def _plain(delta: float) -> float:
    """30.0 → 30, the key it had in --iou_threshold_list."""
    return int(delta) if float(delta).is_integer() else float(delta)


def _check_lengths(num_images: int, weights: np.ndarray, *more: np.ndarray | None) -> None:
    lengths = {num_images, weights.shape[1], *(len(values) for values in more if values is not None)}
    if len(lengths) > 1:
        raise ValueError(f"records, weights and classification are of different numbers of images: {sorted(lengths)}")
