"""Localization metrics: numbers by hand, brute force from the definition, and sums over shards."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsol.metrics.box_metrics import middle_best
from wsol.metrics.boxes import thresholds
from wsol.metrics.localization import BoxAccuracy, center_gaussian
from wsol.metrics.pixels import PixelAveragePrecision, average_precision

KEYS = {"maxboxacc", "maxboxacc_v2", "maxboxacc_v1", "gt_loc", "gt_loc_best"}
TOP_KEYS = {"top1_loc", "top5_loc", "top1_loc_best"}


def square(y0, x0, y1, x1, value=1.0, size=8):
    """A map that is `value` on rows y0..y1 and columns x0..x1 and 0 elsewhere."""
    scoremap = np.zeros((size, size), np.float32)
    scoremap[y0 : y1 + 1, x0 : x1 + 1] = value
    return scoremap


def stairs(low, high):
    """A 4x8 band of `low` and in its left half a 4x4 square of `high`, on 8x8, touching left and right."""
    scoremap = square(0, 0, 3, 7, low)
    scoremap[0:4, 0:4] = high
    return scoremap


BAND, HALF = np.array([[0, 0, 7, 4]]), np.array([[0, 0, 4, 4]])  # their boxes: one pixel too large inwards


def brute_iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    intersection = max(w, 0) * max(h, 0)
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return intersection / (sum(areas) - intersection)


def brute_accuracy(scoremaps, boxes, taus, delta, multi, also=None):
    """Per cent of right images at each tau, straight from the definition."""
    right = [0] * len(taus)
    for image, scoremap in enumerate(scoremaps):
        height, width = scoremap.shape
        grey = (scoremap * 255).astype(np.uint8)
        for t, tau in enumerate(taus):
            binary = (grey > int(tau * grey.max())).astype(np.uint8) * 255
            contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            if contours and not multi:
                contours = [max(contours, key=cv2.contourArea)]
            rectangles = [cv2.boundingRect(contour) for contour in contours]
            found = [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in rectangles]
            ious = [brute_iou(a, b) for a in found or [(0, 0, 0, 0)] for b in boxes[image].tolist()]
            right[t] += max(ious) >= delta / 100 and (also is None or bool(also[image]))
    return [count * 100.0 / len(scoremaps) for count in right]


def random_images(num, size=24, seed=0):
    rng = np.random.default_rng(seed)
    maps, boxes = [], []
    for i in range(num):
        noise = rng.random((6, 6)).astype(np.float32) ** 2
        scoremap = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        maps.append((scoremap - scoremap.min()) / (scoremap.max() - scoremap.min()))
        corners = np.sort(rng.integers(0, size, (1 + i % 3, 2, 2)), axis=1)
        boxes.append(corners.reshape(-1, 4))
    return np.stack(maps), boxes, rng.random(num) < 0.5, rng.random(num) < 0.8


# -- BoxAccuracy ------------------------------------------------------------------------------------


def test_box_accuracy_equals_brute_force():
    scoremaps, boxes, top1, top5 = random_images(9)
    metric = BoxAccuracy(interval=0.01, iou_thresholds=(30, 70), loc_threshold=0.25, resolution=24)
    metric.update(scoremaps, boxes, top1, top5)
    found, taus = metric.compute(), thresholds(0.01)

    multi = {delta: brute_accuracy(scoremaps, boxes, taus, delta, multi=True) for delta in (30, 70)}
    single = brute_accuracy(scoremaps, boxes, taus, 50, multi=False)
    joint = brute_accuracy(scoremaps, boxes, taus, 50, multi=False, also=top1)
    assert found["maxboxacc"] == {delta: max(curve) for delta, curve in multi.items()}
    assert found["maxboxacc_v2"] == (max(multi[30]) + max(multi[70])) / 2
    assert found["maxboxacc_v1"] == found["gt_loc_best"] == max(single)
    assert found["top1_loc_best"] == max(joint)
    assert found["tau"]["maxboxacc"] == {delta: taus[curve.index(max(curve))] for delta, curve in multi.items()}
    assert found["tau"]["gt_loc_best"] == taus[single.index(max(single))]
    assert found["tau"]["top1_loc_best"] == taus[joint.index(max(joint))]
    for key, also in (("gt_loc", None), ("top1_loc", top1), ("top5_loc", top5)):
        assert [found[key]] == brute_accuracy(scoremaps, boxes, [0.25], 50, multi=False, also=also)
        assert found["tau"][key] == 0.25
    curve = metric.curve()
    np.testing.assert_array_equal(curve["tau"], taus)
    assert {delta: values.tolist() for delta, values in curve["maxboxacc"].items()} == multi


def four_images():
    """Band and half of the stairs at greys 127 and 255 (low 0.5): tau < 127/255 finds the band, above the half.

    Right at delta 50, single-contour: image 0 (truth: the half, 25 of 40 pixels of the band's box) everywhere,
    image 1 (truth: the corner 4x4, 16 of the half's 25) above only, image 2 (truth: the right half) below
    only, image 3 (truth: bottom rows) never.
    """
    maps = np.stack([stairs(0.5, 1.0)] * 4)
    truth = [HALF, np.array([[0, 0, 3, 3]]), np.array([[3, 0, 7, 4]]), np.array([[0, 6, 7, 7]])]
    top1 = np.array([True, False, True, True])
    top5 = np.array([True, True, True, True])
    return maps, truth, top1, top5


def test_keys_and_numbers_by_hand():
    metric = BoxAccuracy(resolution=8)
    metric.update(*four_images())
    found = metric.compute()
    assert set(found) == KEYS | TOP_KEYS | {"tau"}
    assert set(found["tau"]) == KEYS | TOP_KEYS
    # IoU of the band's box (40 pixels): 25/40, 16/40, 25/40, 0; of the half's (25): 1, 16/25, 10/40, 0.
    assert found["maxboxacc"] == {30: 75.0, 50: 50.0, 70: 25.0}
    assert found["maxboxacc_v2"] == 50.0
    half_from = 0.499  # the first tau with int(255 tau) >= 127: 0.498 gives 126, 0.499 gives 127
    assert found["tau"]["maxboxacc"] == found["tau"]["maxboxacc_v2"] == {30: 0.0, 50: 0.0, 70: half_from}
    assert found["maxboxacc_v1"] == found["gt_loc"] == found["gt_loc_best"] == 50.0
    assert found["top1_loc"] == found["top5_loc"] == 50.0  # images 0 and 2
    assert found["tau"]["gt_loc"] == found["tau"]["top1_loc"] == found["tau"]["top5_loc"] == 0.2
    assert found["tau"]["gt_loc_best"] == found["tau"]["top1_loc_best"] == 0.0

    above = BoxAccuracy(resolution=8, loc_threshold=0.6)
    above.update(*four_images())
    found = above.compute()
    assert found["gt_loc"] == 50.0  # images 0 and 1
    assert found["top1_loc"] == 25.0  # of these only image 0 is classified right
    assert found["top5_loc"] == 50.0
    assert found["top1_loc_best"] == 50.0


def test_of_equally_good_thresholds_on_val_the_middle_one_counts():
    """Whatever their gaps; of two middle ones the lower, so that it is always one of the best."""
    assert middle_best(np.array([0, 3, 3, 3, 1])) == 2
    assert middle_best(np.array([3, 0, 0, 3, 3, 1, 3])) == 3  # of 0, 3, 4, 6
    assert middle_best(np.array([1, 2, 0])) == 1


def test_threshold_of_the_val_split():
    """On val the half is right, so its threshold is above 127/255; on test the band would have been."""
    band = BoxAccuracy(resolution=8)
    band.update([stairs(0.5, 1.0)] * 3, [np.array([[3, 0, 7, 4]]), BAND, HALF], [True, True, False], [True] * 3)
    val = BoxAccuracy(resolution=8)
    val.update([stairs(0.5, 1.0)], [np.array([[0, 0, 3, 3]])])
    found = band.compute(val)
    assert set(found) == KEYS | TOP_KEYS | {"gt_loc_val", "tau"}  # top-1 is not known on val
    assert found["gt_loc_best"] == 100.0 and found["tau"]["gt_loc_best"] == 0.0
    # At the half: IoU 10/40, 25/40 and 1.
    # All of 0.499, ..., 1 are equally good on val: the middle one counts.
    assert found["gt_loc_val"] == 200 / 3 and found["tau"]["gt_loc_val"] == 0.749

    val = BoxAccuracy(resolution=8)
    # GT-Loc is best below on val (2 of 3), Top-1 Loc above: its own threshold counts.
    right_half, corner = np.array([[3, 0, 7, 4]]), np.array([[0, 0, 3, 3]])
    val.update([stairs(0.5, 1.0)] * 3, [right_half, right_half, corner], [False, False, True], [True] * 3)
    found = val.compute()
    assert found["gt_loc_best"] == 200 / 3 and found["tau"]["gt_loc_best"] == 0.0
    assert found["top1_loc_best"] == 100 / 3 and found["tau"]["top1_loc_best"] == 0.499
    found = band.compute(val)
    assert found["gt_loc_val"] == 100.0 and found["tau"]["gt_loc_val"] == 0.249  # the middle of 0, ..., 0.498
    assert found["top1_loc_val"] == 100 / 3 and found["tau"]["top1_loc_val"] == 0.749
    assert found["top1_loc_best"] == 200 / 3


def test_keys_without_classification():
    metric = BoxAccuracy(resolution=8)
    maps, truth, _, _ = four_images()
    metric.update(maps, truth)
    assert set(metric.compute()) == KEYS | {"tau"}
    assert metric.num_images == 4


def test_multi_contour_sees_the_smaller_blob_too():
    scoremap = np.maximum(square(0, 0, 3, 3), square(6, 6, 7, 7))
    metric = BoxAccuracy(resolution=8)
    metric.update([scoremap], [np.array([[6, 6, 7, 7]])])
    found = metric.compute()
    assert found["maxboxacc"] == {30: 100.0, 50: 100.0, 70: 100.0}
    assert found["maxboxacc_v1"] == 0.0


def test_all_zero_map_is_the_corner_pixel():
    metric = BoxAccuracy(resolution=8)
    metric.update(np.zeros((2, 8, 8)), [np.array([[0, 0, 0, 0]]), np.array([[0, 0, 1, 0]])])
    found = metric.compute()
    assert found["maxboxacc"] == {30: 100.0, 50: 100.0, 70: 50.0}  # IoU 1 and 1/2, equality counts


def test_iou_threshold_is_inclusive():
    metric = BoxAccuracy(iou_thresholds=(62.5,), resolution=8)
    metric.update([stairs(1.0, 1.0)], [HALF])  # 25 of 40 pixels
    assert metric.compute()["maxboxacc"] == {62.5: 100.0}


def test_loc_threshold_beside_the_grid():
    """The grid is 0 and 1 only: the band is there at 0 and 0.45, gone at 0.55, where the half is right."""
    for loc_threshold, expected in ((0.45, 0.0), (0.55, 100.0)):
        metric = BoxAccuracy(interval=1, loc_threshold=loc_threshold, resolution=8)
        metric.update([stairs(0.5, 1.0)], [np.array([[0, 0, 3, 3]])])
        found = metric.compute()
        assert found["gt_loc"] == expected and found["tau"]["gt_loc"] == loc_threshold
        assert found["gt_loc_best"] == found["maxboxacc_v1"] == 0.0  # best over the grid


@pytest.mark.parametrize("sizes", [(9,), (1, 8), (4, 0, 5), (1,) * 9])
def test_uneven_shards_sum_to_one_pass(sizes):
    scoremaps, boxes, top1, top5 = random_images(9)
    whole = BoxAccuracy(resolution=24)
    whole.update(scoremaps, boxes, top1, top5)
    merged, summed = BoxAccuracy(resolution=24), BoxAccuracy(resolution=24)
    states, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        shard = BoxAccuracy(resolution=24)
        shard.update(scoremaps[part], boxes[part], top1[part], top5[part])
        merged += shard
        states.append(shard.state())
        start += size
    summed.load_state({name: sum(state[name] for state in states) for name in states[0]})
    assert merged.compute() == summed.compute() == whole.compute()
    assert all(count.dtype == np.int64 for count in whole.state().values())
    for name, count in whole.state().items():
        np.testing.assert_array_equal(merged.state()[name], count)


def test_state_is_a_copy_and_merge_leaves_the_other():
    metric, other = BoxAccuracy(resolution=8), BoxAccuracy(resolution=8)
    other.update(*four_images())
    metric.merge(other).merge(other)
    metric.state()["images"][...] = 99
    assert metric.num_images == 8 and other.num_images == 4


def test_update_shared_equals_update():
    scoremaps, boxes, top1, top5 = random_images(5)
    shared, repeated = BoxAccuracy(resolution=24), BoxAccuracy(resolution=24)
    shared.update_shared(scoremaps[0], boxes, top1, top5)
    repeated.update([scoremaps[0]] * 5, boxes, top1, top5)
    assert shared.compute() == repeated.compute()


@settings(max_examples=20, deadline=None)
@given(st.lists(hnp.arrays(np.uint8, (6, 6)), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(greys, random):
    truth = [np.array([[i % 3, 0, 3 + i % 3, 4]]) for i in range(len(greys))]
    order = list(range(len(greys)))
    random.shuffle(order)
    results = []
    for indices in (range(len(greys)), order):
        metric = BoxAccuracy(interval=0.05, resolution=6)
        metric.update([greys[i] / 255 for i in indices], [truth[i] for i in indices])
        results.append(metric.compute())
    assert results[0] == results[1]
    found = results[0]
    assert found["maxboxacc"][30] >= found["maxboxacc"][50] >= found["maxboxacc"][70]
    assert found["maxboxacc"][50] >= found["maxboxacc_v1"] >= found["gt_loc"]  # 0.2 is on the grid


def bad_updates():
    maps, truth, top1, _ = four_images()
    nan = maps.copy()
    nan[3, 2, 2] = np.nan
    return [
        ((nan, truth), "NaN"),
        ((maps * 1.5, truth), r"\[0, 1\]"),
        ((maps[0], truth), r"\(B, 8, 8\)"),
        ((maps[:, :7], truth), r"\(B, 8, 8\)"),
        ((maps, truth[:3]), "4 score maps, but boxes of 3"),
        ((maps, [*truth[:3], np.zeros((0, 4), int)]), "at least one"),
        ((maps, [*truth[:3], np.array([[3, 0, 2, 1]])]), "x1 >= x0"),
        ((maps, [*truth[:3], np.array([0, 0, 2, 1])]), r"\(n, 4\)"),
        ((maps, truth, top1[:3]), r"top1 must be \(4,\) bool"),
        ((maps, truth, top1, [1, 0, 1, 1]), r"top5 must be \(4,\) bool"),
    ]


@pytest.mark.parametrize("arguments, message", bad_updates())
def test_bad_updates_count_nothing(arguments, message):
    metric = BoxAccuracy(resolution=8)
    with pytest.raises(ValueError, match=message):
        metric.update(*arguments)
    assert all(not count.any() for count in metric.state().values())


def test_bad_use():
    maps, truth, top1, _ = four_images()
    empty, metric = BoxAccuracy(resolution=8), BoxAccuracy(resolution=8)
    metric.update(maps, truth, top1)
    for call in (empty.compute, empty.curve):
        with pytest.raises(ValueError, match="no image"):
            call()
    with pytest.raises(ValueError, match="val split has no image"):
        metric.compute(empty)
    for other in (BoxAccuracy(interval=0.1, resolution=8), BoxAccuracy(0.001, (50,), resolution=8)):
        with pytest.raises(ValueError, match="settings"):
            metric.merge(other)
        with pytest.raises(ValueError, match="settings"):
            metric.compute(other)
    with pytest.raises(ValueError, match="settings"):
        metric.merge(PixelAveragePrecision(resolution=8))
    with pytest.raises(ValueError, match="counts"):
        metric.load_state({"images": 3})
    metric.update(maps, truth)
    with pytest.raises(ValueError, match="top1 is known for 4 of 8"):
        metric.compute()
    for arguments, message in (
        ({"iou_thresholds": ()}, "IoU thresholds"),
        ({"iou_thresholds": (0.0,)}, "IoU thresholds"),
        ({"loc_threshold": 1.2}, "loc_threshold"),
        ({"interval": 0}, "interval"),
    ):
        with pytest.raises(ValueError, match=message):
            BoxAccuracy(**arguments)


# -- PixelAveragePrecision --------------------------------------------------------------------------


def brute_pxap(scoremaps, masks, taus):
    """wsolevaluation's definition: histograms with edges tau, 1, 2, 3; precision and recall from the top."""
    edges = np.concatenate([taus[taus < 1], [1.0, 2.0, 3.0]])
    true = np.zeros(len(edges) - 1)
    false = np.zeros(len(edges) - 1)
    for scoremap, mask in zip(scoremaps, masks, strict=True):
        true += np.histogram(scoremap[mask == 1], bins=edges)[0]
        false += np.histogram(scoremap[mask == 0], bins=edges)[0]
    area, above_true, above_false = 0.0, 0.0, 0.0
    for t, f in zip(true[::-1], false[::-1], strict=True):
        above_true, above_false = above_true + t, above_false + f
        if above_true + above_false:
            area += above_true / (above_true + above_false) * t / true.sum()
    return 100 * area


def test_pxap_by_hand():
    scoremap = np.array([[1.0, 0.8], [0.8, 0.1]])
    mask = np.array([[1, 0], [1, 1]], np.uint8)
    metric = PixelAveragePrecision(resolution=2)
    metric.update(scoremap[None], mask[None])
    # From the top: recall 1/3 at precision 1, 2/3 at 2/3, 1 at 3/4.
    assert metric.compute() == {"pxap": pytest.approx(100 * (1 + 2 / 3 + 3 / 4) / 3, abs=1e-12)}


def test_ignored_pixels_are_left_out():
    scoremap = np.array([[1.0, 0.8], [0.8, 0.1]])
    mask = np.array([[1, 255], [1, 0]], np.uint8)
    metric = PixelAveragePrecision(resolution=2)
    metric.update(scoremap[None], mask[None])
    assert metric.compute() == {"pxap": 100.0}


def test_pxap_is_not_quantised_but_binned():
    """0.2004 and 0.2008 share grey 51 and bin 200; 0.2012 shares the grey, not the bin."""
    for background, expected in ((0.2004, 50.0), (0.2012, 50.0), (0.1999, 100.0)):
        metric = PixelAveragePrecision(resolution=2)
        metric.update([[[0.2008, 0.2008], [background] * 2]], [[[1, 255], [0, 255]]])
        assert metric.compute()["pxap"] == expected
    assert (np.array([0.2004, 0.2008, 0.2012]) * 255).astype(int).tolist() == [51, 51, 51]
    metric = PixelAveragePrecision(resolution=2)
    metric.update([[[0.2012, 0.2008], [0.2008, 0]]], [[[1, 0], [255, 255]]])
    assert metric.compute()["pxap"] == 100.0


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_map_gives_the_share_of_foreground(value):
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[0, :2] = 1
    metric = PixelAveragePrecision(resolution=8)
    metric.update(np.full((1, 8, 8), value), mask)
    assert metric.compute() == {"pxap": 25.0}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("interval", [0.001, 0.01, 0.3])
def test_pxap_equals_brute_force(interval, dtype):
    rng = np.random.default_rng(3)
    scoremaps = np.round(rng.random((5, 16, 16)), 3).astype(dtype)  # many values on the very edges of bins
    masks = rng.choice([0, 1, 255], (5, 16, 16), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    metric = PixelAveragePrecision(interval, resolution=16)
    metric.update(scoremaps, masks)
    assert metric.compute()["pxap"] == pytest.approx(brute_pxap(scoremaps, masks, thresholds(interval)), abs=1e-10)


def test_pxap_uneven_shards_sum_to_one_pass():
    rng = np.random.default_rng(4)
    scoremaps, masks = rng.random((7, 8, 8)), rng.choice([0, 1, 255], (7, 8, 8))
    whole, merged, summed = (PixelAveragePrecision(resolution=8) for _ in range(3))
    whole.update(scoremaps, masks)
    for part in (slice(0, 1), slice(1, 1), slice(1, 7)):
        shard = PixelAveragePrecision(resolution=8)
        shard.update(scoremaps[part], masks[part])
        merged += shard
        summed.load_state({name: count + shard.state()[name] for name, count in summed.state().items()})
    assert whole.compute() == merged.compute() == summed.compute()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_average_precision_properties(counts):
    foreground, background = np.array([*counts, (0, 0)]).T
    if foreground.sum() == 0:
        with pytest.raises(ValueError, match="foreground"):
            average_precision(foreground, background)
        return
    found = average_precision(foreground, background)
    assert 0 < found <= 1 + 1e-12
    assert average_precision(foreground, np.zeros_like(background)) == pytest.approx(1)
    # Doubling the data changes nothing.
    assert average_precision(2 * foreground, 2 * background) == pytest.approx(found)


def test_bad_pxap():
    metric = PixelAveragePrecision(resolution=4)
    with pytest.raises(ValueError, match="no foreground"):
        metric.compute()
    scoremaps, masks = np.zeros((1, 4, 4)), np.zeros((1, 4, 4), np.uint8)
    metric.update(scoremaps, masks)
    with pytest.raises(ValueError, match="no foreground"):
        metric.compute()
    for bad, message in (
        ((scoremaps + np.nan, masks), "NaN"),
        ((scoremaps + 1.1, masks), r"\[0, 1\]"),
        ((scoremaps, masks[:, :3]), "shape"),
        ((scoremaps, masks + 2), "mask values"),
        ((scoremaps[:, :3], masks), r"\(B, 4, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(*bad)


# -- the centre baseline ----------------------------------------------------------------------------


def test_center_gaussian():
    scoremap = center_gaussian()
    assert scoremap.shape == (224, 224) and scoremap.dtype == np.float32
    assert scoremap.max() == scoremap[112, 112] == 1 and scoremap.min() == scoremap[0, 0] == 0
    np.testing.assert_array_equal(scoremap, scoremap.T)
    np.testing.assert_array_equal(scoremap[1:, 1:], scoremap[:0:-1, :0:-1])  # around the pixel 112
    assert np.all(np.diff(scoremap[112, :113]) > 0)
    assert center_gaussian(32).shape == (32, 32)
    with pytest.raises(ValueError, match="2 x 2"):
        center_gaussian(1)


def test_center_baseline_finds_a_centred_box():
    metric = BoxAccuracy()
    metric.update_shared(center_gaussian(), [np.array([[60, 60, 165, 165]]), np.array([[0, 0, 20, 20]])])
    found = metric.compute()
    assert found["maxboxacc"] == {30: 50.0, 50: 50.0, 70: 50.0}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0.001, 0.01, 1 / 3, 0.3, 0.07, 1 / 7, 1.0]),
    st.integers(0, 2**32),
    st.sampled_from([np.float32, np.float64]),
)
def test_pixel_counts_equal_np_histogram(interval, seed, dtype):
    """Bins' edges are met to the last bit: scores on an edge, and the next ones above and below."""
    random = np.random.default_rng(seed)
    taus = thresholds(interval)
    scores = np.concatenate([random.choice(taus, 900), random.random(900), [0, 1]]).astype(dtype)
    near = np.nextafter(scores, random.choice([0, 0.5, 1], scores.shape).astype(dtype), dtype=dtype)
    scoremap = np.concatenate([scores, near])[:3600].reshape(1, 60, 60).clip(0, 1)
    masks = random.choice([0, 1, 255], scoremap.shape).astype(np.uint8)
    metric = PixelAveragePrecision(interval, resolution=60)
    metric.update(scoremap, masks)
    edges = np.append(taus, [2.0, 3.0])
    for name, value in (("foreground", 1), ("background", 0)):
        expected, _ = np.histogram(scoremap[masks == value], edges)
        np.testing.assert_array_equal(metric.state()[name], expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads):
    scoremaps, boxes, top1, top5 = random_images(9)
    masks = np.random.default_rng(1).choice([0, 1, 255], scoremaps.shape).astype(np.uint8)
    results = []
    for number in (None, threads):
        accuracy, pixels = (
            BoxAccuracy(resolution=24, threads=number),
            PixelAveragePrecision(resolution=24, threads=number),
        )
        accuracy.update(scoremaps, boxes, top1, top5)
        pixels.update(scoremaps, masks)
        results.append((accuracy.compute(), pixels.compute()))
        with pytest.raises(ValueError, match="NaN"):
            accuracy.update(scoremaps * np.nan, boxes, top1, top5)
        assert accuracy.num_images == 9
    assert results[0] == results[1]
    with pytest.raises(ValueError, match="threads must be at least 1"):
        BoxAccuracy(threads=0)
