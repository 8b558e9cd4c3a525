"""From counts of right images to box metrics: one table of the metrics, one function for all images or for groups.

The same metrics are asked of all images (`BoxAccuracy.compute`), of each bootstrap resample (`box_replicates`) and of
each class (`PerImage.per_class`). All three count right images, and `reduce_boxes` does the rest over a leading axis of
L groups.

Sources: MaxBoxAcc and MaxBoxAccV2: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR
2020; TPAMI 2022); GT-known and Top-1 localization: Zhou et al., "Learning Deep Features for Discriminative
Localization" (CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

V1_IOU = 50  # per cent: the IoU threshold of every single-contour metric (MaxBoxAcc, GT-Loc, Top-1 and Top-5 Loc)


class BoxMetric(NamedTuple):
    """Which images a metric counts as right, and at which threshold tau it is read."""

    counts: Literal["multi", "single", "top1", "top5"]  # a field of BoxCounts
    tau: Literal["best", "fixed", "val"]  # the best on these images; --loc_threshold; the best on the val split
    uses_gt_boxes: bool = True  # with --gt_boxes first only an image's first ground-truth box counts, as in Dual-CAM

    @property
    def contours(self) -> str:
        """Which boxes count: those of all contours ("multi") or that of the largest one ("single")."""
        return "multi" if self.counts == "multi" else "single"


# Key in results.json → metric, in the order of the results.
BOX_METRICS = {
    "maxboxacc": BoxMetric("multi", "best", uses_gt_boxes=False),  # for each IoU threshold delta
    "maxboxacc_v2": BoxMetric("multi", "best", uses_gt_boxes=False),  # the mean over all delta
    "maxboxacc_v1": BoxMetric("single", "best", uses_gt_boxes=False),
    "gt_loc": BoxMetric("single", "fixed"),
    "top1_loc": BoxMetric("top1", "fixed"),
    "top5_loc": BoxMetric("top5", "fixed"),
    "gt_loc_best": BoxMetric("single", "best"),
    "top1_loc_best": BoxMetric("top1", "best"),
    "gt_loc_val": BoxMetric("single", "val"),
    "top1_loc_val": BoxMetric("top1", "val"),
}
# What `--multi_contour_eval` and `--multi_iou_eval` make of box accuracy: (all contours, mean over IoU thresholds; else
# the largest contour, at IoU 50) → the name of the figure that a run is judged by; and how tables call it.
HEADLINES = {
    (True, True): "maxboxacc_v2",
    (False, False): "maxboxacc_v1",
    (True, False): "maxboxacc_50",
    (False, True): "maxboxacc_single",
}
HEADLINE_TITLES = {
    "maxboxacc_v2": "MaxBoxAccV2",
    "maxboxacc_v1": "MaxBoxAcc",
    "maxboxacc_50": "MaxBoxAcc (all contours)",
    "maxboxacc_single": "MaxBoxAccV2 (largest contour)",
    "pxap": "PxAP",
}
CONTOURS = {key: metric.contours for key, metric in BOX_METRICS.items()}
GT_BOXES_KEYS = tuple(key for key, metric in BOX_METRICS.items() if metric.uses_gt_boxes)
# Shares of right images. The rest, maxboxacc_v2, is a mean of several shares, of which an image may have a part.
SHARE_KEYS = tuple(key for key in BOX_METRICS if key != "maxboxacc_v2")
FIXED_KEYS = tuple(key for key, metric in BOX_METRICS.items() if metric.tau == "fixed")
# Key → the metric whose best threshold on the val split it is read at.
VAL_KEYS = {"gt_loc_val": "gt_loc_best", "top1_loc_val": "top1_loc_best"}


def headline(has_boxes: bool, multi_contour_eval: bool, multi_iou_eval: bool) -> str:
    """The name of the figure that a run on such data is judged by; where there are masks alone, PxAP."""
    return HEADLINES[multi_contour_eval, multi_iou_eval] if has_boxes else "pxap"


class BoxCounts(NamedTuple):
    """How many images of each of L groups are right, at C thresholds tau and D IoU thresholds delta."""

    images: np.ndarray  # (L,) size of each group
    multi: np.ndarray  # (L, D, C) right at each delta, all contours
    single: np.ndarray  # (L, C) right at IoU 50, largest contour
    top1: np.ndarray | None  # (L, C) of these: also classified right; None where classification is not known
    top5: np.ndarray | None  # (L,) the same in the top 5, at the fixed threshold, the only one that it is read at


def per_cent(counts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Counts (L, ...) as percentages of the groups' images (L,), NaN for an empty group."""
    with np.errstate(invalid="ignore"):
        # Multiply first, as wsolevaluation does: the order decides about the last digit.
        return counts * 100.0 / images.reshape(-1, *[1] * (counts.ndim - 1))


def reduce_boxes(
    counts: BoxCounts, deltas: Sequence[float], grid: np.ndarray, columns: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of `BOX_METRICS` in each group, in per cent.

    Args:
        counts: of L groups at C thresholds.
        deltas: (D,) IoU thresholds in per cent, the keys of `maxboxacc`.
        grid: (G,) the columns that can be best, lowest tau first.
        columns: key → the one of C columns at which a metric is read, for `maxboxacc` {delta: column}. Needed for fixed
            and val's thresholds (without one the metric is left out); for the others it replaces the best one.

    Returns:
        The metrics, key → (L,) float64, `maxboxacc` {delta: (L,)}; and in the same form the columns where they were
        read, (L,) int64, `maxboxacc_v2` those of `maxboxacc`. Of several best columns the first counts. What does not
        apply is absent.
    """

    def read(curve: np.ndarray, column: int | None) -> tuple[np.ndarray, np.ndarray]:
        """A curve (L, C) at one column, or at each group's own best."""
        at = grid[curve[:, grid].argmax(axis=1)] if column is None else np.full(len(curve), column)
        return curve[np.arange(len(curve)), at], at

    multi = per_cent(counts.multi, counts.images)
    given = columns.get("maxboxacc", {})
    per_delta = {delta: read(multi[:, d], given.get(delta)) for d, delta in enumerate(deltas)}
    maxboxacc = {delta: values for delta, (values, _) in per_delta.items()}
    delta_columns = {delta: column for delta, (_, column) in per_delta.items()}
    metrics: dict[str, Any] = {"maxboxacc": maxboxacc, "maxboxacc_v2": np.mean(list(maxboxacc.values()), axis=0)}
    read_at: dict[str, Any] = {"maxboxacc": delta_columns, "maxboxacc_v2": dict(delta_columns)}
    for key, metric in BOX_METRICS.items():
        right = getattr(counts, metric.counts)
        if metric.counts == "multi" or right is None or (metric.tau != "best" and key not in columns):
            continue
        shares = per_cent(right, counts.images)
        if metric.counts == "top5":
            metrics[key], read_at[key] = shares, np.full(len(shares), columns[key])
        else:
            metrics[key], read_at[key] = read(shares, columns.get(key))
    return metrics, read_at


def middle_best(curve: np.ndarray) -> int:
    """The place of the largest value of a curve (T,); of several the middle one, the lower of two middle ones.

    For a threshold that is chosen on few images and used on others: 20 images leave hundreds of thresholds equally
    good, and those in the middle are least likely to be good by chance (measured in docs/lab_book.md).
    """
    best = np.flatnonzero(curve == curve.max())
    return int(best[(len(best) - 1) // 2])


def with_gt_boxes(metrics: Mapping[str, Any], first_box: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metrics over any ground-truth box, where those of `GT_BOXES_KEYS` come from the first box alone, if given."""
    return {key: first_box[key] if first_box and key in GT_BOXES_KEYS else value for key, value in metrics.items()}
