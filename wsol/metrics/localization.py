"""Box accuracy over a data set (MaxBoxAcc, GT-Loc, Top-1 Loc), and the centre baseline.

    metric = BoxAccuracy()
    for scoremaps, boxes, top1 in batches:
        metric.update(scoremaps, boxes, top1)
    metric.compute()["maxboxacc_v2"]

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020; TPAMI 2022), and its
code, clovaai/wsolevaluation. wsol/metrics/box_metrics.py defines the single metrics, wsol/metrics/pixels.py has PxAP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wsol.geometry import RESOLUTION
from wsol.metrics.box_metrics import (
    BOX_METRICS,
    FIXED_KEYS,
    V1_IOU,
    VAL_KEYS,
    BoxCounts,
    middle_best,
    per_cent,
    reduce_boxes,
)
from wsol.metrics.boxes import BestIoU, best_iou, match_contours, thresholds, trace_contours
from wsol.metrics.counting import CountingMetric, check_scoremaps
from wsol.metrics.records import BoxRecords


def center_gaussian(size: int = RESOLUTION) -> np.ndarray:
    """The baseline without a model: a centred Gaussian, stretched to [0, 1], (size, size) float32.

    Choe et al., CVPR 2020. Its foregrounds are centred discs whatever the deviation is, which only says how finely the
    thresholds sample their radii; here it is half the side. The peak is one pixel, size // 2: with it MaxBoxAcc (delta
    50) comes out as published, 59.7 on CUB's test split, and 52.5 on ILSVRC's if only the first box of each image
    counts. Raises ValueError for a size below 2.
    """
    if size < 2:
        raise ValueError(f"a Gaussian needs at least 2 x 2 pixels, got {size}")
    offset = (np.arange(size) - size // 2) / (size / 2)  # in half sides, so the deviation is 1
    gaussian = np.exp(-(offset[:, None] ** 2 + offset**2) / 2)
    low, high = gaussian.min(), gaussian.max()
    return ((gaussian - low) / (high - low)).astype(np.float32)


class BoxAccuracy(CountingMetric):
    """Share of images whose box meets the ground truth, over thresholds and in both contour modes.

    An image is right at (tau, delta) if its best IoU over contours and ground-truth boxes is >= delta / 100.

    Args:
        interval: step of the thresholds tau.
        iou_thresholds: delta in per cent, for MaxBoxAcc and its mean, MaxBoxAccV2.
        loc_threshold: the fixed tau of GT-Loc, Top-1 Loc and Top-5 Loc. It is used as given, on the grid of tau or not.
        resolution: side of the score maps; ground truth must be at the same scale.
        threads: number of threads that share the images of an update; None: as many as torch uses.
        record: keep in `records` which images are right.
    """

    records: BoxRecords | None

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
            raise ValueError(f"IoU thresholds are percentages in (0, 100], got {tuple(iou_thresholds)}")
        self.iou_thresholds = tuple(iou_thresholds)
        self.loc_threshold = float(loc_threshold)
        self.resolution = resolution
        self.taus = thresholds(interval)  # (T,)
        # The fixed threshold is one more column behind the grid.
        self._columns = np.append(self.taus, self.loc_threshold)  # (T + 1,)
        self._deltas = tuple(sorted({*self.iou_thresholds, V1_IOU}))  # (D,), rows of the counts
        columns = self._columns.shape
        super().__init__(
            settings=(interval, self.iou_thresholds, self.loc_threshold, resolution),
            counts={
                "multi": np.zeros((len(self._deltas), *columns), np.int64),
                "single": np.zeros((len(self._deltas), *columns), np.int64),
                "top1": np.zeros(columns, np.int64),  # single-contour at 50, and the class in the top 1
                "top5": np.zeros(columns, np.int64),
                "images": np.zeros((), np.int64),
                "images_top1": np.zeros((), np.int64),  # images with known classification
                "images_top5": np.zeros((), np.int64),
            },
            threads=threads,
            records=BoxRecords(self._columns, self.iou_thresholds) if record else None,
        )

    @property
    def num_images(self) -> int:
        """Images counted so far, in this process."""
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
            top1: (B,) bool, whether the true class has the highest score; None where classification is not known.
            top5: the same for the five highest scores.

        Raises:
            ValueError: shapes or lengths that do not fit, values outside [0, 1] or NaN, an image without boxes, boxes
                with x1 < x0.
        """
        scoremaps = check_scoremaps(scoremaps, self.resolution)
        if len(boxes) != len(scoremaps):
            raise ValueError(f"{len(scoremaps)} score maps, but boxes of {len(boxes)} images")
        ious = self._map_threaded(lambda scoremap, gt: best_iou(scoremap, gt, self._columns), scoremaps, boxes)
        self._count(ious, _check_correct(top1, len(boxes), "top1"), _check_correct(top5, len(boxes), "top5"))

    def update_shared(
        self,
        scoremap: ArrayLike,
        boxes: Sequence[ArrayLike],
        top1: ArrayLike | None = None,
        top5: ArrayLike | None = None,
    ) -> None:
        """Count B images that share one score map (resolution, resolution), which is traced once: the centre baseline.

        The other arguments, and what raises ValueError, are those of `update`.
        """
        contours = trace_contours(check_scoremaps(np.asarray(scoremap)[None], self.resolution)[0])
        ious = [match_contours(contours, gt, self._columns) for gt in boxes]
        self._count(ious, _check_correct(top1, len(boxes), "top1"), _check_correct(top5, len(boxes), "top5"))

    def compute(self, val: BoxAccuracy | None = None) -> dict[str, Any]:
        """The metrics of all images counted, in per cent, and the threshold that each was read at.

        Args:
            val: the same metric, updated on the val split, whose best thresholds are then applied here.

        Returns:
            `maxboxacc` {delta: max over tau, multi-contour}, `maxboxacc_v2` their mean, `maxboxacc_v1` (single-contour,
            delta 50), `gt_loc` (the same at loc_threshold), `gt_loc_best` (at its best tau: equal to `maxboxacc_v1`),
            with `val` `gt_loc_val`; where classification is known `top1_loc`, `top5_loc` (right box and right class, at
            loc_threshold), `top1_loc_best`, and `top1_loc_val` if it is known on val too. `tau` has the threshold under
            each of these keys; for `maxboxacc` and `maxboxacc_v2` one per delta. The best tau of a metric is its own,
            the lowest on ties. What does not apply is absent.

        Raises:
            ValueError: nothing was added here or to `val`, its settings differ, or classification is known for only
                some of the images.
        """
        val_columns = {}
        if val is not None:
            self._check_same_settings(val)
            val._check_not_empty("the val split")
            val_columns = val._best_columns()
        metrics, columns = self._reduce(val_columns)
        tau = _map_leaves(lambda column: float(self._columns[column[0]]), columns)
        return _map_leaves(lambda values: float(values[0]), metrics) | {"tau": tau}

    def curve(self, contours: str = "multi", iou_thresholds: Sequence[float] | None = None) -> dict[str, Any]:
        """Box accuracy over threshold: `tau` (T,) and `maxboxacc` {delta: (T,) per cent}.

        `contours`: "multi", the best box of all contours, or "single", the largest contour's. `iou_thresholds`: the
        delta, of the metric's own (the default) and 50.
        Raises ValueError when nothing was added.
        """
        self._check_not_empty("the metric")
        shares = per_cent(self._counts[contours][None, :, :-1], self._counts["images"][None])[0]  # (D, T)
        return {
            "tau": self.taus.copy(),
            "maxboxacc": {delta: shares[self._deltas.index(delta)] for delta in iou_thresholds or self.iou_thresholds},
        }

    def _count(self, ious: Sequence[BestIoU], top1: np.ndarray | None, top5: np.ndarray | None) -> None:
        fractions = np.array(self._deltas)[:, None] / 100  # (D, 1)
        v1_row = self._deltas.index(V1_IOU)
        shape = self._counts["multi"].shape  # (D, T + 1)
        # (B, D, T + 1), also where B is 0
        multi = np.array([iou.multi >= fractions for iou in ious], dtype=bool).reshape(-1, *shape)
        single = np.array([iou.single >= fractions for iou in ious], dtype=bool).reshape(-1, *shape)
        self._counts["multi"] += multi.sum(axis=0)
        self._counts["single"] += single.sum(axis=0)
        self._counts["images"] += len(ious)
        for name, correct in (("top1", top1), ("top5", top5)):
            if correct is not None:
                self._counts[name] += single[correct, v1_row].sum(axis=0)
                self._counts[f"images_{name}"] += len(correct)
        if self.records is not None:
            fixed_iou = np.array([iou.single[-1] for iou in ious])
            self.records.add(multi[:, self._delta_rows()], single[:, v1_row], fixed_iou)

    def _reduce(self, val_columns: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """`reduce_boxes` of all images: metrics and columns, (1,) each."""
        num_taus = len(self.taus)
        columns = dict.fromkeys(FIXED_KEYS, num_taus) | val_columns  # the fixed threshold's column is the last
        return reduce_boxes(self._box_counts(), self.iou_thresholds, np.arange(num_taus), columns)

    def _best_columns(self) -> dict[str, int]:
        """Key of VAL_KEYS → the column of the threshold that is best on these images."""
        counts = self._box_counts()
        curves = {key: getattr(counts, BOX_METRICS[best_key].counts) for key, best_key in VAL_KEYS.items()}
        return {key: middle_best(curve[0, : len(self.taus)]) for key, curve in curves.items() if curve is not None}

    def _box_counts(self) -> BoxCounts:
        """Of all images, as one group."""
        self._check_not_empty("the metric")
        top1, top5 = (self._counts_if_known(name) for name in ("top1", "top5"))
        return BoxCounts(
            images=self._counts["images"][None],
            multi=self._counts["multi"][None, self._delta_rows()],
            single=self._counts["single"][None, self._deltas.index(V1_IOU)],
            top1=None if top1 is None else top1[None],
            top5=None if top5 is None else top5[-1:],
        )

    def _delta_rows(self) -> list[int]:
        """The rows of the counts that belong to `iou_thresholds`."""
        return [self._deltas.index(delta) for delta in self.iou_thresholds]

    def _counts_if_known(self, name: str) -> np.ndarray | None:
        known = int(self._counts[f"images_{name}"])
        if known not in (0, self.num_images):
            raise ValueError(f"{name} is known for {known} of {self.num_images} images, not for all or none")
        return self._counts[name] if known else None

    def _check_not_empty(self, what: str) -> None:
        if self.num_images == 0:
            raise ValueError(f"{what} has no image: call update before compute")


def _map_leaves(function: Callable[[np.ndarray], float], tree: dict[Any, Any]) -> dict[Any, Any]:
    """The same dict of dicts with each array replaced by `function` of it."""
    return {
        key: _map_leaves(function, value) if isinstance(value, dict) else function(value) for key, value in tree.items()
    }


def _check_correct(correct: ArrayLike | None, num_images: int, name: str) -> np.ndarray | None:
    if correct is None:
        return None
    correct = np.asarray(correct)
    if correct.shape != (num_images,) or (correct.dtype != bool and num_images > 0):
        raise ValueError(f"{name} must be ({num_images},) bool, got {correct.shape} {correct.dtype}")
    return correct.astype(bool)
