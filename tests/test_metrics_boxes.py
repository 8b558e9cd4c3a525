"""Boxes from score maps against a brute-force implementation written from the definition, threshold by threshold."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsol.geometry import box_iou, resize_boxes
from wsol.metrics.boxes import best_iou, box_at, contour_boxes, quantize, scoremap_boxes, thresholds

TAUS = thresholds()


def brute_boxes(scoremap, tau):
    """All contour boxes at one threshold, and the position of the single-contour box among them."""
    height, width = scoremap.shape
    grey = (scoremap * 255).astype(np.uint8)
    level = int(tau * grey.max())
    binary = np.where(grey > level, 255, 0).astype(np.uint8)
    contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if len(contours) == 0:
        return [(0, 0, 0, 0)], 0
    boxes, largest = [], 0
    for i, contour in enumerate(contours):
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append((x, y, min(x + w, width - 1), min(y + h, height - 1)))
        if cv2.contourArea(contour) > cv2.contourArea(contours[largest]):
            largest = i
    return boxes, largest


def brute_iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    intersection = max(w, 0) * max(h, 0)
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return intersection / (area_a + area_b - intersection)


def brute_best_iou(scoremap, gt_boxes, taus):
    multi, single = [], []
    for tau in taus:
        boxes, largest = brute_boxes(scoremap, tau)
        per_box = [max(brute_iou(box, gt.tolist()) for gt in gt_boxes) for box in boxes]
        multi.append(max(per_box))
        single.append(per_box[largest])
    return np.array(multi), np.array(single)


def minmax(scoremap):
    scoremap = np.asarray(scoremap, dtype=np.float32)
    return (scoremap - scoremap.min()) / (scoremap.max() - scoremap.min())


def smooth(size, cells, seed=0, power=1):
    noise = np.random.default_rng(seed).random((cells, cells)).astype(np.float32) ** power
    return minmax(cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC))


def nested_squares(size, rings):
    """Holes in holes: square rings that alternate between 1 and 0.3, inside a border of 0."""
    scoremap = np.zeros((size, size))
    for ring in range(rings):
        edge = 1 + 2 * ring
        scoremap[edge : size - edge, edge : size - edge] = 1 if ring % 2 == 0 else 0.3 if ring % 4 == 1 else 0
    return scoremap


def random_map(size, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).random((size, size)).astype(dtype)


def single_pixel(size, y, x):
    scoremap = np.zeros((size, size), np.float32)
    scoremap[y, x] = 1
    return scoremap


MAPS = {
    "random": random_map(12),
    "random float64": random_map(11, seed=1, dtype=np.float64),
    "low maximum": random_map(12, seed=2) * np.float32(250 / 255),
    "smooth 7x7": smooth(28, 7),
    "peaked": smooth(28, 5, seed=3, power=4),
    "plateaus": np.round(smooth(20, 5, seed=4) * 4) / 4,
    "checkerboard": np.indices((9, 9)).sum(axis=0) % 2 * np.float32(1),
    "checkerboard of two greys": 0.5 + 0.5 * (np.indices((8, 8)).sum(axis=0) % 2),
    "holes in holes": nested_squares(19, 5),
    "hole touching the border": np.pad(np.zeros((3, 4)), ((1, 1), (0, 1)), constant_values=1.0),
    "single pixel": single_pixel(9, 4, 5),
    "corner pixel": single_pixel(9, 8, 8),
    "border row": np.pad(np.ones((1, 8)), ((0, 7), (0, 0))),
    "not square": smooth(24, 6, seed=5)[:9],
    "constant": np.full((7, 7), 0.4),
    "ones": np.ones((7, 7)),
    "zeros": np.zeros((7, 7)),
}


@pytest.mark.parametrize("name", MAPS)
def test_best_iou_equals_brute_force(name):
    scoremap = MAPS[name]
    height, width = scoremap.shape
    rng = np.random.default_rng(len(name))
    gt = np.sort(rng.integers(0, min(height, width), (3, 2, 2)), axis=1).reshape(3, 4)
    gt = np.concatenate([gt, [[0, 0, width - 1, height - 1]], [[1, 1, 1, 1]]])
    for boxes in (gt[:1], gt[1:3], gt):
        multi, single = brute_best_iou(scoremap, boxes, TAUS)
        found = best_iou(scoremap, boxes, TAUS)
        np.testing.assert_array_equal(found.multi, multi)
        np.testing.assert_array_equal(found.single, single)
        assert found.multi.dtype == found.single.dtype == np.float64


def test_best_iou_equals_brute_force_at_full_size():
    scoremap, gt, taus = smooth(224, 7), np.array([[30, 40, 150, 180], [5, 5, 60, 60]]), thresholds(0.1)
    multi, single = brute_best_iou(scoremap, gt, taus)
    np.testing.assert_array_equal(best_iou(scoremap, gt, taus).multi, multi)
    np.testing.assert_array_equal(best_iou(scoremap, gt, taus).single, single)


@settings(max_examples=60, deadline=None)
@given(
    greys=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)),
    gt=st.tuples(*[st.integers(0, 8)] * 4),
    interval=st.sampled_from([0.05, 0.1, 0.3, 1.0]),
)
def test_any_map_equals_brute_force(greys, gt, interval):
    scoremap = greys / 255
    gt = np.array([[min(gt[0], gt[2]), min(gt[1], gt[3]), max(gt[0], gt[2]), max(gt[1], gt[3])]])
    found = best_iou(scoremap, gt, thresholds(interval))
    multi, single = brute_best_iou(scoremap, gt, thresholds(interval))
    np.testing.assert_array_equal(found.multi, multi)
    np.testing.assert_array_equal(found.single, single)
    assert np.all((found.single <= found.multi) & (found.multi <= 1) & (found.single >= 0))


def test_by_hand():
    """An 8x8 map with a 3x3 square of 1 and a 2x1 bar of 0.5."""
    scoremap = np.zeros((8, 8), np.float32)
    scoremap[1:4, 1:4] = 1.0
    scoremap[6, 5:7] = 0.5  # grey 127
    boxes, largest = contour_boxes(quantize(scoremap) > 0)
    # One pixel too large: x + w is the first column behind the box.
    assert {tuple(box) for box in boxes.tolist()} == {(1, 1, 4, 4), (5, 6, 7, 7)}
    assert boxes[largest].tolist() == [1, 1, 4, 4]
    assert box_at(scoremap, 0.2).tolist() == [1, 1, 4, 4]

    taus = np.array([0.0, 0.49, 0.5, 1.0])  # levels 0, 124, 127, 255
    found = best_iou(scoremap, np.array([[5, 6, 6, 6]]), taus)
    # Box of the bar: 3 x 2 = 6 pixels, the ground truth's 2 inside; the square's box misses it.
    assert found.multi.tolist() == [2 / 6, 2 / 6, 0, 0]
    assert found.single.tolist() == [0, 0, 0, 0]
    found = best_iou(scoremap, np.array([[5, 6, 6, 6], [0, 0, 3, 3]]), taus)
    # (1, 1, 4, 4) and (0, 0, 3, 3): 9 shared pixels of 16 + 16 - 9; at tau = 1 the box (0, 0, 0, 0): 1 of 16.
    assert found.multi.tolist() == [9 / 23, 9 / 23, 9 / 23, 1 / 16]
    assert found.single.tolist() == [9 / 23, 9 / 23, 9 / 23, 1 / 16]


def test_holes_are_contours_and_their_boxes_are_one_pixel_larger():
    scoremap = np.zeros((8, 8))
    scoremap[1:7, 1:7] = 1
    scoremap[3:5, 3:5] = 0
    boxes, largest = contour_boxes(scoremap > 0)
    # The hole's contour runs on the foreground around it, columns 2..5, and x + w adds one more.
    assert boxes.tolist() == [[1, 1, 7, 7], [2, 2, 6, 6]]
    assert largest == 0


def test_boxes_at_the_right_and_bottom_border_are_exact():
    assert contour_boxes(np.ones((8, 8), bool))[0].tolist() == [[0, 0, 7, 7]]
    assert contour_boxes(np.pad(np.ones((2, 3)), ((4, 0), (5, 0))) > 0)[0].tolist() == [[5, 4, 7, 5]]


def test_no_foreground_gives_the_corner_pixel():
    boxes, largest = contour_boxes(np.zeros((8, 8), bool))
    assert boxes.tolist() == [[0, 0, 0, 0]] and largest == 0
    for tau in (0, 0.5, 1):
        assert box_at(np.zeros((8, 8)), tau).tolist() == [0, 0, 0, 0]
    assert box_at(np.ones((8, 8)), 1).tolist() == [0, 0, 0, 0]


def test_first_contour_wins_ties():
    """Two single pixels have area 0 both; OpenCV lists siblings from the bottom upwards."""
    foreground = np.zeros((8, 8), bool)
    foreground[1, 1] = foreground[6, 6] = True
    boxes, largest = contour_boxes(foreground)
    assert largest == 0 and boxes[0].tolist() == [6, 6, 7, 7]


def test_every_foreground_is_traced_once():
    found = scoremap_boxes(np.round(smooth(20, 5) * 4) / 4, TAUS)
    assert len(found.start) == len(found.largest) == 5  # greys 0, 63, 127, 191, 255; and none
    assert len(found.foreground) == len(TAUS)
    assert np.all(found.start <= found.largest)


def test_box_at_is_the_single_contour_box():
    scoremap = smooth(28, 7, seed=9)
    for tau in (0.0, 0.2, 0.5, 0.999):
        boxes, largest = brute_boxes(scoremap, tau)
        assert tuple(box_at(scoremap, tau).tolist()) == boxes[largest]


# -- thresholds and grey values ---------------------------------------------------------------------


def test_thresholds():
    assert len(TAUS) == 1001 and TAUS[-1] == 1
    np.testing.assert_array_equal(TAUS[:-1], np.arange(0, 1, 0.001))
    assert thresholds(1).tolist() == [0, 1]
    assert thresholds(0.4).tolist() == [0, 0.4, 0.8, 1]


@given(st.integers(1, 3000))
def test_thresholds_rise_and_end_once_at_one(steps):
    taus = thresholds(1 / steps)
    assert len(taus) == steps + 1 and taus[0] == 0 and taus[-1] == 1
    assert np.all(np.diff(taus) > 0.5 / steps)


@pytest.mark.parametrize("interval", [0, -0.1, 1.5, float("nan")])
def test_thresholds_refuse(interval):
    with pytest.raises(ValueError, match="interval"):
        thresholds(interval)


def test_quantize_by_hand():
    greys = quantize(np.array([[0.0, 0.5, 1.0], [0.2, 0.999, 0.00392]]))
    assert greys.dtype == np.uint8
    assert greys.tolist() == [[0, 127, 255], [51, 254, 0]]


def test_quantize_in_the_maps_own_precision():
    assert quantize(np.array([[0.2 - 1e-12]])).item() == 50
    assert quantize(np.array([[0.2 - 1e-12]], np.float32)).item() == 51
    # For float32 values the precision of the product is no matter, not even next to a grey value's edge.
    edges = (np.arange(1, 256) / 255).astype(np.float32)
    near = np.stack([np.nextafter(edges, np.float32(0)), edges, np.minimum(np.nextafter(edges, np.float32(2)), 1)])
    np.testing.assert_array_equal(quantize(near), quantize(near.astype(np.float64)))
    assert quantize(np.array([[0.5]], np.float16)).item() == 127
    assert quantize(np.array([[True, False]])).tolist() == [[255, 0]]


@pytest.mark.parametrize(
    "scoremap, message",
    [
        (np.array([[0, np.nan]]), "NaN"),
        (np.array([[0, 1.001]]), r"\[0, 1\]"),
        (np.array([[-0.001, 1]]), r"\[0, 1\]"),
        (np.array([[np.inf, 0]]), r"\[0, 1\]"),
        (np.zeros(4), r"\(H, W\)"),
        (np.zeros((1, 4, 4)), r"\(H, W\)"),
        (np.zeros((0, 4)), "non-empty"),
    ],
)
def test_bad_scoremaps(scoremap, message):
    for call in (
        lambda: quantize(scoremap),
        lambda: best_iou(scoremap, np.array([[0, 0, 1, 1]]), TAUS),
        lambda: box_at(scoremap, 0.2),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("taus", [[[0.5]], [1.1], [-0.1], [float("nan")]])
def test_bad_thresholds(taus):
    with pytest.raises(ValueError, match="thresholds"):
        best_iou(np.zeros((4, 4)), np.array([[0, 0, 1, 1]]), taus)


# -- boxes ------------------------------------------------------------------------------------------


def test_box_iou_by_hand():
    a = np.array([[1, 2, 5, 6], [0, 0, 0, 0], [4, 4, 5, 5]])
    b = np.array([[3, 1, 4, 5], [0, 0, 9, 9]])
    # (1,2,5,6) and (3,1,4,5): columns 3..4, rows 2..5 = 8 of 25 + 10 - 8.
    assert box_iou(a, b).tolist() == [[8 / 27, 25 / 100], [0, 1 / 100], [2 / 12, 4 / 100]]
    assert box_iou(a, a).diagonal().tolist() == [1, 1, 1]
    assert box_iou(a, np.zeros((0, 4), int)).shape == (3, 0)


def test_degenerate_boxes_overlap_nothing():
    empty = np.array([[5, 0, 3, 9], [2, 2, 1, 1]])
    assert box_iou(empty, empty).tolist() == [[0, 0], [0, 0]]
    assert box_iou(empty, np.array([[0, 0, 9, 9]])).tolist() == [[0], [0]]


BOX = st.tuples(*[st.integers(0, 20)] * 4).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])]
)


@given(st.lists(BOX, min_size=1, max_size=4), st.lists(BOX, min_size=1, max_size=4))
def test_box_iou_properties(a, b):
    iou = box_iou(np.array(a), np.array(b))
    np.testing.assert_array_equal(iou, box_iou(np.array(b), np.array(a)).T)
    np.testing.assert_array_equal(iou, [[brute_iou(box_a, box_b) for box_b in b] for box_a in a])
    np.testing.assert_array_equal(iou == 1, [[box_a == box_b for box_b in b] for box_a in a])


def test_box_iou_of_unsigned_boxes():
    assert box_iou(np.array([[7, 7, 8, 8]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8)).tolist() == [[0]]


def test_resize_boxes_by_hand():
    assert resize_boxes([[1, 2, 4, 3]], (10, 20), size=35).tolist() == [[3, 3, 14, 5]]  # 3.5, 3.5, 14, 5.25
    # The first line of CUB's test split, an image of 500 x 335.
    assert resize_boxes([[60, 27, 385, 331]], (500, 335)).tolist() == [[26, 18, 172, 221]]
    assert resize_boxes(np.zeros((0, 4), int), (5, 5)).shape == (0, 4)
    assert resize_boxes([[0, 0, 10, 10]], (10, 10)).tolist() == [[0, 0, 224, 224]]  # not cut off


@given(BOX, st.integers(21, 3000), st.integers(21, 3000))
def test_resize_boxes_truncates_the_scaled_numbers(box, width, height):
    expected = [int(v * 224.0 / s) for v, s in zip(box, (width, height) * 2, strict=True)]
    assert resize_boxes([box], (width, height))[0].tolist() == expected


@pytest.mark.parametrize(
    "boxes, message",
    [
        (np.zeros(4, int), r"\(n, 4\)"),
        (np.zeros((2, 3), int), r"\(n, 4\)"),
        (np.array([[0, 0, 1, 1], [5, 0, 4, 1]]), r"x1 >= x0.*\[5, 0, 4, 1\]"),
        (np.array([[0, 5, 1, 4]]), "y1 >= y0"),
    ],
)
def test_bad_boxes(boxes, message):
    with pytest.raises(ValueError, match=message):
        resize_boxes(boxes, (10, 10))
    with pytest.raises(ValueError, match=message):
        best_iou(np.zeros((8, 8)), boxes, TAUS)


def test_more_bad_boxes():
    with pytest.raises(ValueError, match="at least one"):
        best_iou(np.zeros((8, 8)), np.zeros((0, 4), int), TAUS)
    with pytest.raises(ValueError, match="integers"):
        best_iou(np.zeros((8, 8)), np.array([[0.5, 0, 1, 1]]), TAUS)
    with pytest.raises(ValueError, match="image size"):
        resize_boxes([[0, 0, 1, 1]], (0, 10))
    with pytest.raises(ValueError, match=r"\(n, 4\)"):
        box_iou(np.zeros((1, 5), int), np.zeros((1, 4), int))
