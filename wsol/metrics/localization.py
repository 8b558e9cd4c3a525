"""Localization metrics over a data set: box accuracy, pixel average precision and the centre baseline.

    metric = BoxAccuracy()
    for scoremaps, boxes, top1 in batches:
        metric.update(scoremaps, boxes, top1)
    metric.compute()["maxboxacc_v2"]

The state of a metric is a dict of int64 counts, so several processes (or shards) are joined by adding
them, and 1 and N processes agree to the last digit. As with torchmetrics each process updates with its
own images; where torch.distributed is initialised `compute` sums over the processes, so all have to call
it, and leaves each one's own counts as they are. Sources: Choe et al., "Evaluating Weakly Supervised
Object Localization Methods Right" (CVPR 2020; TPAMI 2022: MaxBoxAcc, MaxBoxAccV2, PxAP) and its code,
clovaai/wsolevaluation; GT-known and Top-1 localization as in Zhou et al., "Learning Deep Features for
Discriminative Localization" (CVPR 2016).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from wsol import distributed
from wsol.geometry import RESOLUTION
from wsol.metrics.boxes import BestIoU, best_iou, match_contours, thresholds, trace_contours
from wsol.metrics.records import BoxRecords, PixelRecords

_V1_IOU = 50  # per cent: the IoU threshold of MaxBoxAcc, GT-Loc, Top-1 Loc and Top-5 Loc
# Which contours a key of `BoxAccuracy.compute` looks at: all of them, or the largest alone.
CONTOURS = dict.fromkeys(("maxboxacc", "maxboxacc_v2"), "multi") | dict.fromkeys(
    ("maxboxacc_v1", "gt_loc", "top1_loc", "top5_loc", "gt_loc_best", "top1_loc_best", "gt_loc_val", "top1_loc_val"),
    "single",
)
# Keys whose ground truth may be an image's first box alone (--gt_boxes), as in Dual-CAM's code.
OF_GT_BOXES = ("gt_loc", "gt_loc_best", "gt_loc_val", "top1_loc", "top1_loc_best", "top1_loc_val", "top5_loc")


def center_gaussian(size: int = RESOLUTION) -> np.ndarray:
    """The baseline without a model: a centred Gaussian, stretched to [0, 1], (size, size) float32.

    Choe et al., CVPR 2020. Its foregrounds are centred discs whatever the deviation is, which
    only says how finely the thresholds sample their radii; here it is half the side. The peak is one pixel,
    size // 2: with it MaxBoxAcc (delta 50) comes out as published, 59.7 on CUB's test split, and 52.5 on
    ILSVRC's if only the first box of each image counts. Raises ValueError for a size below 2.
    """
    if size < 2:
        raise ValueError(f"a Gaussian needs at least 2 x 2 pixels, got {size}")
    offset = (np.arange(size) - size // 2) / (size / 2)  # in half sides, the deviation being 1
    gaussian = np.exp(-(offset[:, None] ** 2 + offset**2) / 2)
    low, high = gaussian.min(), gaussian.max()
    return ((gaussian - low) / (high - low)).astype(np.float32)


def average_precision(foreground: np.ndarray, background: np.ndarray) -> float:
    """Area under the precision-recall curve, in [0, 1].

    `foreground` and `background` are pixel counts per score bin, (bins,) each, lowest bin first.
    AP = sum over bins from the top of precision * (recall - recall of the bins above), Choe et al., CVPR
    2020 (PxAP). As in wsolevaluation the topmost bin adds no term, so it has to be empty.
    Raises ValueError without any foreground.
    """
    if foreground.sum() == 0:
        raise ValueError("average precision needs foreground pixels, the masks held none")
    true_positives = np.cumsum(foreground[::-1])
    positives = true_positives + np.cumsum(background[::-1])
    precision = true_positives / np.maximum(positives, 1)
    recall = true_positives / true_positives[-1]
    # Bins above the highest score add zeros; summing without them gives wsolevaluation's last digit too.
    return float((precision[1:] * np.diff(recall))[positives[1:] > 0].sum())


class _CountingMetric:
    """A metric whose state is a dict of int64 count arrays, added only where `settings` agree.

    `threads` share the images of an update; None takes as many as torch (`torch.get_num_threads`).

    `records` are kept beside the counts where asked for, see wsol/metrics/records.py. They are no part of the state,
    which is summed over processes: `merge` joins those of shards, and `load_state` leaves them as they are.
    """

    def __init__(
        self,
        settings: tuple,
        counts: dict[str, np.ndarray],
        threads: int | None = None,
        records: BoxRecords | PixelRecords | None = None,
    ):
        if threads is not None and threads < 1:
            raise ValueError(f"at least one thread has to count, got {threads}")
        self._settings = settings
        self._counts = counts
        self.threads = threads
        self.records = records

    def reset(self) -> None:
        """Start again without any image."""
        self._counts = {name: np.zeros_like(count) for name, count in self._counts.items()}
        if self.records is not None:
            self.records.reset()

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the counts, int64; add them over processes, then `load_state` the sums."""
        return {name: count.copy() for name, count in self._counts.items()}

    def load_state(self, state: Mapping[str, ArrayLike]) -> None:
        """Replace the counts. Raises ValueError unless names and shapes are those of `state()`."""
        arrays = {name: np.array(count, dtype=np.int64) for name, count in state.items()}
        expected = {name: count.shape for name, count in self._counts.items()}
        if {name: count.shape for name, count in arrays.items()} != expected:
            raise ValueError(f"counts of another metric or other settings; expected {expected}")
        self._counts = arrays

    def merge(self, other: Self) -> Self:
        """Add the counts of another shard to these, in place. Raises ValueError if its settings differ."""
        self._check_same_settings(other)
        if (self.records is None) != (other.records is None):
            raise ValueError("one shard keeps records of its images and the other does not")
        if self.records is not None:
            self.records.merge(other.records)
        for name, count in other._counts.items():
            self._counts[name] += count  # in place, so that 0-d counts stay arrays
        return self

    __iadd__ = merge

    def over_processes(self) -> Self:
        """The metric of all processes' images; this very one where there is one process. All have to call it."""
        if distributed.world_size() == 1:
            return self
        total = copy.copy(self)
        total._counts = distributed.sum_counts(self._counts)
        total.records = None  # those of this process are not those of all images
        return total

    def _map(self, function: Callable, *arguments: Iterable) -> list[Any]:
        """`list(map(function, *arguments))`, by threads."""
        threads = self.threads or torch.get_num_threads()
        if threads == 1:
            return list(map(function, *arguments))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, *arguments))

    def _shares(self, count: int) -> list[slice]:
        """0..count cut into as many contiguous shares as there are threads."""
        threads = self.threads or torch.get_num_threads()
        ends = [count * i // threads for i in range(threads + 1)]
        return [slice(start, end) for start, end in itertools.pairwise(ends) if start < end]

    def _check_same_settings(self, other: _CountingMetric) -> None:
        if type(self) is not type(other) or self._settings != other._settings:
            raise ValueError(f"{type(other).__name__} has other settings than this {type(self).__name__}")


class BoxAccuracy(_CountingMetric):
    """Share of images whose box meets the ground truth, over thresholds and in both contour modes.

    An image is right at (tau, delta) if its best IoU over contours and ground-truth boxes is >= delta / 100.

    Args:
        interval: step of the thresholds tau.
        iou_thresholds: delta in per cent, for MaxBoxAcc and its mean, MaxBoxAccV2.
        loc_threshold: the fixed tau of GT-Loc, Top-1 Loc and Top-5 Loc. It is evaluated as it stands,
            on the grid of tau or not.
        resolution: side of the score maps; ground truth must be at the same scale.
        threads: how many share the images of an update; None: as many as torch computes with.
        record: keep in `records` which images are right.
    """

    def __init__(
        self,
        interval: float = 0.001,
        iou_thresholds: Sequence[float] = (30, 50, 70),
        loc_threshold: float = 0.2,
        resolution: int = RESOLUTION,
        threads: int | None = None,
        record: bool = False,
    ):
        if not 0 <= loc_threshold <= 1:
            raise ValueError(f"loc_threshold must lie in [0, 1], got {loc_threshold}")
        if len(iou_thresholds) == 0 or not all(0 < delta <= 100 for delta in iou_thresholds):
            raise ValueError(f"IoU thresholds are per cents in (0, 100], got {tuple(iou_thresholds)}")
        self.iou_thresholds = tuple(iou_thresholds)
        self.loc_threshold = float(loc_threshold)
        self.resolution = resolution
        self.taus = thresholds(interval)  # (T,)
        # The fixed threshold is one more column behind the grid.
        self._columns = np.append(self.taus, self.loc_threshold)  # (T + 1,)
        self._deltas = tuple(sorted({*self.iou_thresholds, _V1_IOU}))  # (D,), rows
        columns = self._columns.shape
        super().__init__(
            settings=(interval, self.iou_thresholds, self.loc_threshold, resolution),
            counts={
                "multi": np.zeros((len(self._deltas), *columns), np.int64),
                "single": np.zeros((len(self._deltas), *columns), np.int64),
                "top1": np.zeros(columns, np.int64),  # single-contour at 50, and the class in the top 1
                "top5": np.zeros(columns, np.int64),
                "images": np.zeros((), np.int64),
                "images_top1": np.zeros((), np.int64),  # those with known classification
                "images_top5": np.zeros((), np.int64),
            },
            threads=threads,
            records=BoxRecords(self._columns, self.iou_thresholds) if record else None,
        )

    @property
    def num_images(self) -> int:
        return int(self._counts["images"])

    def update(
        self,
        scoremaps: ArrayLike,
        boxes: Sequence[ArrayLike],
        top1: ArrayLike | None = None,
        top5: ArrayLike | None = None,
    ) -> None:
        """Count a batch of images; nothing is counted if it raises.

        Args:
            scoremaps: (B, resolution, resolution) floats in [0, 1].
            boxes: B arrays (n_i, 4) of int, n_i >= 1: ground truth at the maps' scale (`resize_boxes`).
            top1, top5: (B,) bool, whether the true class is the first of the scores (among the first
                five), or None where classification is not known.

        Raises:
            ValueError: shapes or lengths that do not fit, values outside [0, 1] or NaN, an image
                without boxes, boxes with x1 < x0.
        """
        scoremaps = _check_maps(scoremaps, self.resolution)
        if len(boxes) != len(scoremaps):
            raise ValueError(f"{len(scoremaps)} score maps, but boxes of {len(boxes)} images")
        ious = self._map(lambda scoremap, gt: best_iou(scoremap, gt, self._columns), scoremaps, boxes)
        self._count(ious, _check_correct(top1, len(boxes), "top1"), _check_correct(top5, len(boxes), "top5"))

    def update_shared(
        self,
        scoremap: ArrayLike,
        boxes: Sequence[ArrayLike],
        top1: ArrayLike | None = None,
        top5: ArrayLike | None = None,
    ) -> None:
        """Count B images that share one score map (resolution, resolution), the centre baseline: traced once.

        The other arguments, and what raises ValueError, are those of `update`.
        """
        contours = trace_contours(_check_maps(np.asarray(scoremap)[None], self.resolution)[0])
        ious = [match_contours(contours, gt, self._columns) for gt in boxes]
        self._count(ious, _check_correct(top1, len(boxes), "top1"), _check_correct(top5, len(boxes), "top5"))

    def compute(self, val: BoxAccuracy | None = None) -> dict:
        """The metrics of all images counted, in per cent, and the threshold that each was read at.

        Args:
            val: the same metric, updated on the val split, whose best thresholds are then applied here.

        Returns:
            `maxboxacc` {delta: max over tau, multi-contour}, `maxboxacc_v2` their mean, `maxboxacc_v1`
            (single-contour, delta 50), `gt_loc` (the same at loc_threshold), `gt_loc_best` (at its best
            tau: equal to `maxboxacc_v1`), with `val` `gt_loc_val`; where classification is known
            `top1_loc`, `top5_loc` (right box and right class, at loc_threshold), `top1_loc_best`, and
            `top1_loc_val` if it is known on val too. `tau` holds the threshold under each of these keys;
            for `maxboxacc` and `maxboxacc_v2` one per delta. The best tau of a metric is its own, the
            lowest on ties. What does not apply is absent.

        Raises:
            ValueError: nothing was added here or to `val`, its settings differ, or classification is
                known for only some of the images.
        """
        total = self.over_processes()
        if val is not None:
            self._check_same_settings(val)
            val = val.over_processes()
            val._check_not_empty("the val split")
        multi = {delta: total._curve("multi", self._deltas.index(delta)) for delta in self.iou_thresholds}
        gt_loc, top1_loc, top5_loc = total._single_curves()
        gt_loc_val, top1_loc_val, _ = val._single_curves() if val is not None else (None, None, None)

        best = {delta: _best(curve) for delta, curve in multi.items()}
        maxboxacc = {delta: float(curve[best[delta]]) for delta, curve in multi.items()}
        tau_per_delta = {delta: float(self.taus[index]) for delta, index in best.items()}
        metrics = {"maxboxacc": maxboxacc, "maxboxacc_v2": float(np.mean(list(maxboxacc.values())))}
        tau = {"maxboxacc": tau_per_delta, "maxboxacc_v2": dict(tau_per_delta)}

        fixed = len(self.taus)  # the column of loc_threshold
        for key, curve, index in (
            ("maxboxacc_v1", gt_loc, _best(gt_loc)),
            ("gt_loc", gt_loc, fixed),
            ("top1_loc", top1_loc, fixed),
            ("top5_loc", top5_loc, fixed),
            ("gt_loc_best", gt_loc, _best(gt_loc)),
            ("top1_loc_best", top1_loc, _best(top1_loc)),
            ("gt_loc_val", gt_loc, _best(gt_loc_val)),
            ("top1_loc_val", top1_loc, _best(top1_loc_val)),
        ):
            if curve is not None and index is not None:
                metrics[key], tau[key] = float(curve[index]), float(self._columns[index])
        return metrics | {"tau": tau}

    def curve(self, contours: str = "multi") -> dict:
        """Box accuracy over threshold: `tau` (T,) and `maxboxacc` {delta: (T,) per cent}.

        `contours`: "multi", the best box of all contours, or "single", the largest contour's.
        Raises ValueError when nothing was added.
        """
        total = self.over_processes()
        rows = {delta: total._curve(contours, self._deltas.index(delta))[:-1] for delta in self.iou_thresholds}
        return {"tau": self.taus.copy(), "maxboxacc": rows}

    def _count(self, ious: Sequence[BestIoU], top1: np.ndarray | None, top5: np.ndarray | None) -> None:
        fractions = np.array(self._deltas)[:, None] / 100  # (D, 1)
        v1_row = self._deltas.index(_V1_IOU)
        shape = self._counts["multi"].shape  # (D, T + 1)
        multi = np.array([iou.multi >= fractions for iou in ious], dtype=bool).reshape(-1, *shape)  # of no images too
        single = np.array([iou.single >= fractions for iou in ious], dtype=bool).reshape(-1, *shape)
        self._counts["multi"] += multi.sum(axis=0)
        self._counts["single"] += single.sum(axis=0)
        self._counts["images"] += len(ious)
        for name, correct in (("top1", top1), ("top5", top5)):
            if correct is not None:
                self._counts[name] += single[correct, v1_row].sum(axis=0)
                self._counts[f"images_{name}"] += len(correct)
        if self.records is not None:
            of_deltas = [self._deltas.index(delta) for delta in self.iou_thresholds]
            self.records.add(multi[:, of_deltas], single[:, v1_row], np.array([iou.single[-1] for iou in ious]))

    def _single_curves(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Single-contour accuracy at 50: GT-known, Top-1 and Top-5, (T + 1,) per cent, None if not known."""
        gt_known = self._curve("single", self._deltas.index(_V1_IOU))
        return gt_known, self._curve_if_known("top1"), self._curve_if_known("top5")

    def _curve(self, name: str, row: int | None = None) -> np.ndarray:
        """Per cent of the images over the columns: (T + 1,)."""
        self._check_not_empty("the metric")
        counts = self._counts[name] if row is None else self._counts[name][row]
        return counts * 100.0 / self.num_images  # multiply first, as wsolevaluation does

    def _curve_if_known(self, name: str) -> np.ndarray | None:
        known = int(self._counts[f"images_{name}"])
        if known not in (0, self.num_images):
            raise ValueError(f"{name} is known for {known} of {self.num_images} images, not for all or none")
        return self._curve(name) if known else None

    def _check_not_empty(self, what: str) -> None:
        if self.num_images == 0:
            raise ValueError(f"{what} holds no image: call update before compute")


class PixelAveragePrecision(_CountingMetric):
    """PxAP: average precision of pixels as foreground, over all pixels of the data set.

    Scores are counted unquantised, in the bins [tau_i, tau_i+1) and [1, 2).

    Args:
        interval: step of the thresholds tau, the width of a bin.
        resolution: side of maps and masks.
        threads: how many share the images of an update; None: as many as torch computes with.
        record: keep in `records` the counts of each image.
    """

    def __init__(
        self, interval: float = 0.001, resolution: int = RESOLUTION, threads: int | None = None, record: bool = False
    ):
        self.resolution = resolution
        self._interval = interval
        # [2, 3) stays empty: `average_precision` leaves the topmost bin out, so that one may be.
        bins = len(thresholds(interval)) + 1
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
        scoremaps = _check_maps(scoremaps, self.resolution)
        masks = np.asarray(masks)
        if masks.shape != scoremaps.shape:
            raise ValueError(f"masks have shape {masks.shape}, score maps {scoremaps.shape}")
        if masks.dtype != np.uint8:
            if not np.isin(masks, (0, 1, 255)).all():
                raise ValueError("mask values must be 1 (foreground), 0 (background) or 255 (ignored)")
            masks = masks.astype(np.uint8)
        from wsol.metrics.pixel_counts import count_pixels  # here: importing its compiler takes half a second

        bins = len(self._counts["foreground"])
        parts = self._map(
            lambda part: count_pixels(scoremaps[part], masks[part], self._interval, bins - 2),
            self._shares(len(scoremaps)),
        )
        for counts in parts:
            self._counts["foreground"] += counts[:, 0].sum(axis=0, dtype=np.int64)
            self._counts["background"] += counts[:, 1].sum(axis=0, dtype=np.int64)
            if self.records is not None:
                self.records.add(counts)

    @property
    def has_foreground(self) -> bool:
        """Is there a foreground pixel to be found? Without one the metric is not defined. Sums over processes, too."""
        return bool(self.over_processes()._counts["foreground"].any())

    def compute(self) -> dict[str, float]:
        """`pxap` in per cent. Raises ValueError when no foreground pixel was counted."""
        total = self.over_processes()._counts
        if not total["foreground"].any():
            raise ValueError("PxAP is not defined: no foreground pixel in any mask")
        return {"pxap": 100 * average_precision(total["foreground"], total["background"])}


def _best(curve: np.ndarray | None) -> int | None:
    """Index of the best grid threshold, the lowest on ties; the fixed threshold's column is not eligible."""
    return None if curve is None else int(np.argmax(curve[:-1]))


def _check_maps(scoremaps: ArrayLike, resolution: int) -> np.ndarray:
    scoremaps = np.asarray(scoremaps)
    if scoremaps.ndim != 3 or scoremaps.shape[1:] != (resolution, resolution):
        raise ValueError(f"score maps must be (B, {resolution}, {resolution}), got {scoremaps.shape}")
    return scoremaps


def _check_correct(correct: ArrayLike | None, num_images: int, name: str) -> np.ndarray | None:
    if correct is None:
        return None
    correct = np.asarray(correct)
    if correct.shape != (num_images,) or (correct.dtype != bool and num_images > 0):
        raise ValueError(f"{name} must be ({num_images},) bool, got {correct.shape} {correct.dtype}")
    return correct.astype(bool)
