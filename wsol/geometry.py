"""Boxes at the resolution of the evaluation: scaling, overlap and checks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# Side of evaluated maps and of the scaled ground truth, whatever the network's input size is.
RESOLUTION = 224


def resize_boxes(boxes: ArrayLike, image_size_wh: tuple[float, float], size: float = RESOLUTION) -> np.ndarray:
    """Boxes (n, 4) of an image scaled to size x size and truncated: (n, 4) int64.

    `image_size_wh` is the image's (width, height) in pixels. Boxes are not clipped: those that reach beyond their image
    (as some of Stanford Cars do) still do. Raises ValueError for another shape, x1 < x0 or y1 < y0, or an empty image.
    """
    boxes = check_boxes(boxes)
    width, height = image_size_wh
    if width <= 0 or height <= 0:
        raise ValueError(f"the image size must be positive, got {width} x {height}")
    # Multiply, then divide, as wsolevaluation does: the order decides on which side of an integer float64 lands.
    return (boxes.astype(np.float64) * size / np.array([width, height, width, height])).astype(np.int64)


def box_iou(boxes_a: ArrayLike, boxes_b: ArrayLike) -> np.ndarray:
    """Intersection over union of all pairs, in inclusive pixels: (n, 4), (m, 4) int -> (n, m) float64.

    An empty box (x1 < x0 or y1 < y0) has no pixels and overlaps nothing, not even itself.
    Raises ValueError for boxes that are not (n, 4) integers.
    """
    a = check_boxes(boxes_a, integer=True, ordered=False)[:, None]  # (n, 1, 4)
    b = check_boxes(boxes_b, integer=True, ordered=False)[None]  # (1, m, 4)
    intersection = _num_pixels(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    union = _num_pixels(a[..., :2], a[..., 2:]) + _num_pixels(b[..., :2], b[..., 2:]) - intersection
    return intersection / np.maximum(union, 1)  # the union is 0 only where the intersection is


def _num_pixels(upper_left: np.ndarray, lower_right: np.ndarray) -> np.ndarray:
    """Number of pixels between two inclusive corners (..., 2), 0 where they are in the wrong order."""
    sides = np.maximum(lower_right - upper_left + 1, 0)
    return sides[..., 0] * sides[..., 1]


def check_boxes(boxes: ArrayLike, integer: bool = False, ordered: bool = True) -> np.ndarray:
    """Boxes as an array (n, 4), int64 with `integer`.

    Raises ValueError for another shape, with `integer` for another type, with `ordered` for x1 < x0 or y1 < y0.
    """
    boxes = np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (n, 4) as x0, y0, x1, y1, got shape {boxes.shape}")
    if integer and boxes.dtype.kind not in "iu":
        raise ValueError(f"boxes must be integers (pixels at {RESOLUTION} x {RESOLUTION}), got {boxes.dtype}")
    if integer:
        boxes = boxes.astype(np.int64, copy=False)  # unsigned differences would wrap around
    if ordered and not np.all(boxes[:, 2:] >= boxes[:, :2]):  # also False for NaN
        wrong = boxes[~np.all(boxes[:, 2:] >= boxes[:, :2], axis=1)][0]
        raise ValueError(f"boxes must have x1 >= x0 and y1 >= y0, got {wrong.tolist()}")
    return boxes
