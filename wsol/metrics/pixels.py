"""PxAP, the average precision of pixels as foreground over a data set, and the counting of pixels behind it.

    metric = PixelAveragePrecision()
    for scoremaps, masks in batches:
        metric.update(scoremaps, masks)
    metric.compute()["pxap"]

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020; TPAMI 2022), and its
code, clovaai/wsolevaluation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from wsol.geometry import RESOLUTION
from wsol.metrics.boxes import thresholds
from wsol.metrics.counting import CountingMetric, check_scoremaps
from wsol.metrics.records import PixelRecords


def average_precision(foreground: np.ndarray, background: np.ndarray) -> float:
    """Area under the precision-recall curve, in [0, 1].

    `foreground` and `background` are pixel counts per score bin, (bins,) each, lowest bin first; see
    `average_precisions`. Raises ValueError without any foreground.
    """
    if foreground.sum() == 0:
        raise ValueError("average precision needs foreground pixels, and the masks have none")
    return float(average_precisions(foreground[None], background[None])[0])


def average_precisions(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """`average_precision` of L groups: pixel counts (L, bins) each → (L,) float64, NaN for a group without foreground.

    AP = sum over bins from the top of precision * (recall - recall of the bins above), Choe et al., CVPR 2020 (PxAP).
    As in wsolevaluation the topmost bin adds no term, so it has to be empty.
    """
    true_positives = np.cumsum(foreground[:, ::-1], axis=1)
    positives = true_positives + np.cumsum(background[:, ::-1], axis=1)
    precision = true_positives / np.maximum(positives, 1)
    all_foreground = true_positives[:, -1:]
    recall = true_positives / np.where(all_foreground > 0, all_foreground, 1)
    terms = precision[:, 1:] * np.diff(recall, axis=1)
    # Bins above the highest score add zeros; summing without them gives wsolevaluation's last digit too.
    areas = [terms_of_group[counted].sum() for terms_of_group, counted in zip(terms, positives[:, 1:] > 0, strict=True)]
    return np.where(all_foreground[:, 0] > 0, areas, np.nan)


def count_pixels(scoremap: np.ndarray, mask: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """Pixels per score bin of one map, (2, T + 1) int64: foreground and background.

    Args:
        scoremap: (H, W) floats in [0, 1]; they are compared with the thresholds in float64.
        mask: (H, W) uint8, 1 foreground, 0 background, 255 ignored.
        taus: (T,) thresholds 0, interval, 2 interval, ..., 1. The bins are [tau_i, tau_i+1), then [1, 2), and an empty
            one because `average_precisions` leaves the topmost out.

    Raises:
        ValueError: a score outside [0, 1] or NaN, ignored or not, or another mask value.
    """
    if not (scoremap.min() >= 0 and scoremap.max() <= 1):  # also False for NaN
        raise ValueError("score map values must lie in [0, 1], without NaN")
    foreground, background = mask == 1, mask == 0
    if not (foreground | background | (mask == 255)).all():
        raise ValueError("mask values must be 1 (foreground), 0 (background) or 255 (ignored)")
    return np.stack([_histogram(scoremap[pixels], taus) for pixels in (foreground, background)])


def _histogram(scores: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """np.histogram(scores, [*taus, 2, 3])[0] of scores (n,) in [0, 1], in less time: the bins are equally wide."""
    scores = scores.astype(np.float64)
    # A guess by multiplying: shrunk by more than rounding can add, it is never too high and at most one too low.
    bins = (scores * ((1 - 1e-14) / taus[1])).astype(np.intp)
    np.minimum(bins, len(taus) - 2, out=bins)  # the last bin below 1 can be narrower
    bins += scores >= taus[1:].take(bins)
    return np.bincount(bins, minlength=len(taus) + 1)


class PixelAveragePrecision(CountingMetric):
    """PxAP: average precision of pixels as foreground, over all pixels of the data set.

    Scores are counted unquantised, in the bins [tau_i, tau_i+1) and [1, 2).

    Args:
        interval: step of the thresholds tau, the width of a bin.
        resolution: side of maps and masks.
        threads: number of threads that share the images of an update; None: as many as torch uses.
        record: keep in `records` the counts of each image.
    """

    records: PixelRecords | None

    def __init__(
        self, interval: float = 0.001, resolution: int = RESOLUTION, threads: int | None = None, record: bool = False
    ):
        self.resolution = resolution
        self.taus = thresholds(interval)
        bins = len(self.taus) + 1
        super().__init__(
            settings=(interval, resolution),
            counts={"foreground": np.zeros(bins, np.int64), "background": np.zeros(bins, np.int64)},
            threads=threads,
            records=PixelRecords(resolution**2) if record else None,
        )

    def update(self, scoremaps: ArrayLike, masks: ArrayLike) -> None:
        """Count the pixels of a batch; nothing is counted if it raises.

        Args:
            scoremaps: (B, resolution, resolution) floats in [0, 1].
            masks: (B, resolution, resolution) uint8, 1 foreground, 0 background, 255 ignored.

        Raises:
            ValueError: shapes that do not fit, scores outside [0, 1] or NaN, other mask values.
        """
        scoremaps = check_scoremaps(scoremaps, self.resolution)
        masks = np.asarray(masks)
        if masks.shape != scoremaps.shape:
            raise ValueError(f"masks have shape {masks.shape}, score maps {scoremaps.shape}")
        if masks.dtype != np.uint8:
            if not np.isin(masks, (0, 1, 255)).all():
                raise ValueError("mask values must be 1 (foreground), 0 (background) or 255 (ignored)")
            masks = masks.astype(np.uint8)
        counts = self._map_threaded(lambda scoremap, mask: count_pixels(scoremap, mask, self.taus), scoremaps, masks)
        histograms = np.array(counts, np.int64).reshape(-1, 2, len(self.taus) + 1)  # also where B is 0
        foreground, background = histograms.sum(axis=0)
        self._counts["foreground"] += foreground
        self._counts["background"] += background
        if self.records is not None:
            self.records.add(histograms)

    @property
    def has_foreground(self) -> bool:
        """Whether any mask has foreground, without which the metric is not defined."""
        return bool(self._counts["foreground"].any())

    def compute(self) -> dict[str, float]:
        """`pxap` in per cent. Raises ValueError when no foreground pixel was counted."""
        if not self.has_foreground:
            raise ValueError("PxAP is not defined: no foreground pixel in any mask")
        return {"pxap": 100 * average_precision(self._counts["foreground"], self._counts["background"])}
