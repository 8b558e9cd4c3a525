"""Boxes from score maps and their overlap with ground truth: pure functions on numpy arrays.

A score map (H, W) in [0, 1] becomes boxes by thresholding and tracing contours, as in Choe et al.,
"Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020; TPAMI 2022;
clovaai/wsolevaluation):

    q = floor(255 s)
    foreground(tau) = q > int(tau * max q)
    boxes(tau) = bounding boxes of the foreground's contours

Boxes are (x0, y0, x1, y1) in pixels, both ends inclusive, at `RESOLUTION` x `RESOLUTION`.

The same numbers can be computed in two ways. `scoremap_boxes` follows the definition: it asks OpenCV for the contours
of every foreground and returns all boxes. `best_iou`, which the metrics use, needs one pass (component_tree.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

from wsol.geometry import box_iou, check_boxes

if TYPE_CHECKING:
    from wsol.metrics.component_tree import Contours


Rectangle = Sequence[int]  # OpenCV's x, y, width, height


class LevelBoxes(NamedTuple):
    """Contour boxes of one score map at T thresholds, of which only L <= 256 give different foregrounds."""

    boxes: np.ndarray  # (N, 4) int64, the boxes of all contours, foreground after foreground
    start: np.ndarray  # (L,) int64, the row of `boxes` where each foreground begins
    largest: np.ndarray  # (L,) int64, the row of each foreground's largest contour
    foreground: np.ndarray  # (T,) int64, the foreground in 0..L-1 that each threshold gives


class BestIoU(NamedTuple):
    """Best overlap of one score map with any ground-truth box, at each of T thresholds."""

    multi: np.ndarray  # (T,) float64, best over all contours
    single: np.ndarray  # (T,) float64, of the largest contour's box


def thresholds(interval: float = 0.001) -> np.ndarray:
    """Thresholds tau = 0, interval, 2 interval, ..., 1: (T,) float64.

    The values are those of wsolevaluation's `np.arange(0, 1, interval)`, that is i * interval in float64, and 1. The
    last one changes no result: it leaves no foreground, so its box is the corner pixel (0, 0, 0, 0), which reaches an
    IoU of 0.3 only with ground truth of at most three pixels.
    Raises ValueError unless 0 < interval <= 1.
    """
    if not 0 < interval <= 1:
        raise ValueError(f"the threshold interval must lie in (0, 1], got {interval}")
    below_one = np.arange(0, 1, interval, dtype=np.float64)
    # Float error can make arange end at 1 or a rounding step below it, a second last threshold.
    return np.append(below_one[below_one < 1 - 1e-9], 1.0)


def quantize(scoremap: ArrayLike) -> np.ndarray:
    """floor(255 s) of a score map (H, W) in [0, 1]: (H, W) uint8.

    The product has the map's own precision, as in wsolevaluation. For a float32 map this makes no difference (no
    float32 below i/255 is so close that the product rounds up to i), but a float64 map can gain a grey value by
    becoming float32 first: 0.2 - 1e-12 gives 50, as float32 51. Maps of other types (float16, integers) are read as
    float32. Raises ValueError for a map that is not 2-D, is empty, contains NaN or has values outside [0, 1].
    """
    scoremap = np.asarray(scoremap)
    if scoremap.ndim != 2 or scoremap.size == 0:
        raise ValueError(f"a score map must be a non-empty (H, W) array, got shape {scoremap.shape}")
    low, high = scoremap.min(), scoremap.max()
    if np.isnan(low):  # min and max both propagate NaN
        raise ValueError("the score map contains NaN")
    if low < 0 or high > 1:
        raise ValueError(f"score map values must lie in [0, 1], got [{low}, {high}]")
    if scoremap.dtype not in (np.float32, np.float64):
        scoremap = scoremap.astype(np.float32)
    return (scoremap * 255).astype(np.uint8)


def contour_boxes(foreground: np.ndarray) -> tuple[np.ndarray, int]:
    """Boxes of all contours of a binary image (H, W): (n, 4) int64, and the index of the largest contour.

    Contours and their order are OpenCV's (RETR_TREE, CHAIN_APPROX_SIMPLE), including those of holes. The largest one
    has the largest contourArea, the first on ties. As in wsolevaluation a box is (x, y, x + w, y + h), one pixel too
    large except where it is cut off at the image's right and bottom border. Without any contour the only box is
    (0, 0, 0, 0).
    """
    rectangles, largest = _trace(foreground)
    return _to_corners(rectangles, foreground.shape), largest


def scoremap_boxes(scoremap: ArrayLike, taus: ArrayLike) -> LevelBoxes:
    """Contour boxes of a score map (H, W) in [0, 1] at each threshold of `taus` (T,).

    Foregrounds that several thresholds share are traced once. Raises ValueError as `quantize` does, or
    for taus that are not a (T,) array in [0, 1].
    """
    quantized = quantize(scoremap)
    levels, foreground = np.unique(_distinct_levels(quantized, _check_taus(taus)), return_inverse=True)
    return LevelBoxes(*_trace_levels(quantized, levels), foreground)


def match_boxes(level_boxes: LevelBoxes, gt_boxes: ArrayLike) -> BestIoU:
    """Best IoU of contour boxes with any of the ground-truth boxes (m, 4) int, m >= 1, at each threshold.

    Raises ValueError for no ground-truth box, another shape or type, x1 < x0 or y1 < y0.
    """
    iou = box_iou(level_boxes.boxes, _check_ground_truth(gt_boxes)).max(axis=1)
    multi, single = np.maximum.reduceat(iou, level_boxes.start), iou[level_boxes.largest]
    return BestIoU(multi[level_boxes.foreground], single[level_boxes.foreground])


def trace_contours(scoremap: ArrayLike) -> Contours:
    """All contours of a score map (H, W) in [0, 1] at all levels, in one pass, for `match_contours`.

    Raises ValueError as `quantize` does.
    """
    from wsol.metrics.component_tree import trace  # here: importing its compiler takes half a second

    return trace(quantize(scoremap))


def match_contours(contours: Contours, gt_boxes: ArrayLike, taus: ArrayLike) -> BestIoU:
    """Best IoU of a map's contours with any of the ground-truth boxes (m, 4) int, m >= 1, at each of `taus` (T,).

    Raises ValueError as `match_boxes` does, or for taus that are not a (T,) array in [0, 1].
    """
    from wsol.metrics.component_tree import match

    return BestIoU(*match(contours, _check_ground_truth(gt_boxes), _check_taus(taus)))


def best_iou(scoremap: ArrayLike, gt_boxes: ArrayLike, taus: ArrayLike) -> BestIoU:
    """Best IoU of a score map (H, W) with ground truth (m, 4) int at each threshold of `taus` (T,).

    Equal to `match_boxes(scoremap_boxes(scoremap, taus), gt_boxes)`, in a hundredth of the time.
    Raises ValueError as `trace_contours` and `match_contours` do.
    """
    return match_contours(trace_contours(scoremap), gt_boxes, taus)


def box_at(scoremap: ArrayLike, tau: float) -> np.ndarray:
    """The single-contour box of a score map (H, W) at one threshold: (4,) int64.

    Raises ValueError as `scoremap_boxes` does.
    """
    level_boxes = scoremap_boxes(scoremap, [tau])
    return level_boxes.boxes[level_boxes.largest[0]]


def _distinct_levels(quantized: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """The highest level with the same foreground `quantized > level` as each threshold: (T,) in 0..255."""
    levels = (taus * int(quantized.max())).astype(np.int64)  # truncates, as int() does
    greys = np.flatnonzero(np.bincount(quantized.ravel(), minlength=256))
    lowest_foreground_grey = np.append(greys, 256)[np.searchsorted(greys, levels, side="right")]
    return lowest_foreground_grey - 1


def _trace_levels(quantized: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`boxes`, `start` and `largest` of LevelBoxes for the foregrounds `quantized > level`, levels (L,)."""
    rectangles: list[Rectangle] = []
    start, largest = [], []
    for level in levels.tolist():
        level_rectangles, level_largest = _trace(quantized > level)
        start.append(len(rectangles))
        largest.append(len(rectangles) + level_largest)
        rectangles += level_rectangles
    return _to_corners(rectangles, quantized.shape), np.array(start), np.array(largest)


def _trace(foreground: np.ndarray) -> tuple[list[Rectangle], int]:
    """Bounding rectangles (x, y, w, h) of all contours, and the index of the largest contour."""
    binary = np.ascontiguousarray(foreground, dtype=bool).view(np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return [(0, 0, 0, 0)], 0
    areas = [cv2.contourArea(contour) for contour in contours]
    return [cv2.boundingRect(contour) for contour in contours], areas.index(max(areas))


def _to_corners(rectangles: list[Rectangle], shape: tuple[int, ...]) -> np.ndarray:
    """Rectangles (x, y, w, h) as boxes (x, y, x + w, y + h) cut off at the border of (H, W): (n, 4) int64."""
    boxes = np.array(rectangles, dtype=np.int64)
    boxes[:, 2:] += boxes[:, :2]
    np.minimum(boxes[:, 2:], (shape[1] - 1, shape[0] - 1), out=boxes[:, 2:])
    return boxes


def _check_taus(taus: ArrayLike) -> np.ndarray:
    taus = np.asarray(taus, dtype=np.float64)
    if taus.ndim != 1 or not np.all((taus >= 0) & (taus <= 1)):
        raise ValueError(f"thresholds must be a (T,) array in [0, 1], got shape {taus.shape}")
    return taus


def _check_ground_truth(gt_boxes: ArrayLike) -> np.ndarray:
    gt_boxes = check_boxes(gt_boxes, integer=True)
    if len(gt_boxes) == 0:
        raise ValueError("an image needs at least one ground-truth box")
    return gt_boxes
