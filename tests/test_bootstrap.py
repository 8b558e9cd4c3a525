"""Bootstrap intervals and per-image records: numbers by hand, the metrics themselves on resampled images, coverage."""

import numpy as np
import pytest
from test_metrics_localization import four_images, random_images

from wsol.metrics.bootstrap import box_replicates, draw, interval, intervals, pixel_replicates, right_replicates
from wsol.metrics.localization import BoxAccuracy
from wsol.metrics.pixels import PixelAveragePrecision
from wsol.metrics.records import BoxRecords, PixelRecords

COARSE = {"interval": 0.01, "iou_thresholds": (30, 70), "loc_threshold": 0.255, "resolution": 24}


def flat(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if key not in ("maxboxacc", "tau")} | {
        f"maxboxacc_{delta}": value for delta, value in metrics["maxboxacc"].items()
    }


def recorded(images, **settings) -> BoxAccuracy:
    metric = BoxAccuracy(record=True, **settings)
    maps, boxes, top1, top5 = images
    for start in range(0, len(maps), 4):  # batches, the last one smaller
        batch = slice(start, start + 4)
        metric.update(maps[batch], boxes[batch], top1[batch], top5[batch])
    return metric


# ------------------------------------------------------------------- records


def test_recording_changes_no_count_and_tells_which_images_are_right():
    maps, boxes, top1, top5 = random_images(9)
    metric, plain = recorded((maps, boxes, top1, top5), **COARSE), BoxAccuracy(**COARSE)
    plain.update(maps, boxes, top1, top5)
    assert metric.compute() == plain.compute() and plain.records is None
    outcomes = metric.records.outcomes()
    assert outcomes.num_columns < len(outcomes.taus) == 102
    for i in range(9):  # image by image the metric alone says the same
        alone = BoxAccuracy(**COARSE)
        alone.update(maps[i : i + 1], boxes[i : i + 1])
        for delta in (30, 70):
            expected = alone.curve()["maxboxacc"][delta] == 100
            assert [outcomes.right(tau, delta)[i] for tau in alone.taus] == expected.tolist()
        assert outcomes.right(0.255)[i] == (alone.compute()["gt_loc"] == 100) == (outcomes.iou[i] >= 0.5)


def test_records_are_joined_in_order_and_can_be_reordered():
    images = random_images(10)
    whole = recorded(images, **COARSE).records.outcomes()
    first, second = ([values[part] for values in images] for part in (slice(0, 7), slice(7, 10)))
    joined = recorded(second, **COARSE).merge(recorded(first, **COARSE)).records
    assert len(joined) == 10
    for field, found, expected in zip(whole._fields, joined.outcomes([*range(3, 10), 0, 1, 2]), whole, strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=field)
    with pytest.raises(ValueError, match="one shard keeps records"):
        recorded(first, **COARSE).merge(BoxAccuracy(**COARSE))
    with pytest.raises(ValueError, match="no image"):
        BoxAccuracy(record=True).records.outcomes()


def test_the_state_is_counts_alone():
    metric = recorded(random_images(6), **COARSE)
    other = BoxAccuracy(record=True, **COARSE)
    other.load_state(metric.state())
    assert other.compute() == metric.compute() and len(other.records) == 0
    assert all(count.dtype == np.int64 for count in metric.state().values())
    metric.reset()
    assert metric.num_images == len(metric.records) == 0


def test_an_image_takes_half_a_kilobyte():
    metric = recorded(four_images(), resolution=8)
    packed = sum(part.nbytes for parts in metric.records._parts.values() for part in parts)
    assert packed / 4 < 512  # 1,002 thresholds, three deltas and the single-contour mode


def test_pixel_histograms_beyond_the_limit_are_not_kept():
    records = PixelRecords(16, limit=5)
    records.add(np.ones((4, 2, 8), np.int64))
    assert records.histograms().shape == (4, 2, 8) and records.histograms().dtype == np.uint8
    records.add(np.ones((2, 2, 8), np.int64))
    records.add(np.ones((1, 2, 8), np.int64))
    assert not records.complete and records.histograms() is None


# ------------------------------------------------------------------- replicates


def test_weights_of_one_give_the_metrics_to_the_last_digit():
    images = random_images(11, seed=3)
    val = recorded(random_images(5, seed=4), **COARSE)
    metric = recorded(images, **COARSE)
    expected = metric.compute(val)
    val_taus = {key: expected["tau"][key] for key in ("gt_loc_val", "top1_loc_val")}
    found = box_replicates(metric.records.outcomes(), np.ones((1, 11), np.uint8), *images[2:], val_taus)
    assert {key: float(value[0]) for key, value in flat(found).items()} == flat(expected)
    assert set(found["maxboxacc"]) == set(expected["maxboxacc"])
    without = box_replicates(metric.records.outcomes(), np.ones((1, 11), np.uint8))
    assert set(without) == {key for key in expected if "top" not in key and "val" not in key} - {"tau"}


def test_replicates_are_the_metrics_of_resampled_images():
    """A plain loop with the same draws: each resample's images go through the metric anew."""
    maps, boxes, top1, top5 = random_images(12, seed=5)
    val = recorded(random_images(5, seed=6), **COARSE)
    metric = recorded((maps, boxes, top1, top5), **COARSE)
    outcomes = metric.records.outcomes()
    weights = draw(12, 8, seed=1)
    val_taus = {key: metric.compute(val)["tau"][key] for key in ("gt_loc_val", "top1_loc_val")}
    found = flat(box_replicates(outcomes, weights, top1, top5, val_taus))
    rng = np.random.default_rng(1)
    for r in range(8):
        chosen = rng.integers(12, size=12)
        resampled = BoxAccuracy(**COARSE)
        resampled.update(maps[chosen], [boxes[i] for i in chosen], top1[chosen], top5[chosen])
        assert {key: float(value[r]) for key, value in found.items()} == flat(resampled.compute(val))


def test_the_maximum_is_taken_inside_each_resample():
    """Two images, right at other thresholds: 50 % at any tau, but a resample of one image twice is all right."""
    maps, boxes, *_ = four_images()
    metric = BoxAccuracy(resolution=8, record=True)
    metric.update(maps[1:3], boxes[1:3])  # right above 127/255 only, below only
    weights = np.array([[1, 1], [2, 0], [0, 2]], np.uint8)
    found = box_replicates(metric.records.outcomes(), weights)
    assert found["gt_loc_best"].tolist() == [50, 100, 100]
    assert found["gt_loc"].tolist() == [50, 0, 100]  # at tau 0.2
    assert found["maxboxacc"][30].tolist() == [100, 100, 100] and found["maxboxacc"][70].tolist() == [0, 0, 0]
    assert found["maxboxacc_v2"] == pytest.approx([50, 200 / 3, 200 / 3])


def test_the_fixed_threshold_is_not_eligible_as_best():
    """Two images right at loc_threshold alone, off the grid 0, 0.5, 1; the first also at 0.5."""
    records = BoxRecords(np.array([0.0, 0.5, 1.0, 0.2]), (50,))
    right = np.array([[0, 1, 0, 1], [0, 0, 0, 1]], dtype=bool)
    records.add(right[:, None], right, np.array([0.6, 0.7]))
    found = box_replicates(records.outcomes(), np.ones((1, 2), np.uint8), top1=np.array([True, False]))
    assert {key: value[0] for key, value in found.items() if key != "maxboxacc"} == {
        "maxboxacc_v2": 50,
        "maxboxacc_v1": 50,
        "gt_loc": 100,
        "gt_loc_best": 50,
        "top1_loc": 50,
        "top1_loc_best": 50,
    }


def test_pixel_replicates_are_the_metric_of_resampled_images():
    rng = np.random.default_rng(0)
    maps = rng.random((7, 16, 16), dtype=np.float32)
    masks = rng.choice(np.array([0, 1, 255], np.uint8), (7, 16, 16), p=[0.6, 0.3, 0.1])
    metric = PixelAveragePrecision(interval=0.01, resolution=16, record=True)
    metric.update(maps[:5], masks[:5])
    metric.update(maps[5:], masks[5:])
    weights = draw(7, 6, seed=2)
    found = pixel_replicates(metric.records.histograms(), weights)
    rng = np.random.default_rng(2)
    for value in found:
        chosen = rng.integers(7, size=7)
        resampled = PixelAveragePrecision(interval=0.01, resolution=16)
        resampled.update(maps[chosen], masks[chosen])
        assert value == pytest.approx(resampled.compute()["pxap"], rel=1e-12)
    whole = pixel_replicates(metric.records.histograms(), np.ones((1, 7), np.uint8))
    assert whole[0] == pytest.approx(metric.compute()["pxap"], rel=1e-12)


def test_a_resample_without_foreground_has_no_precision():
    histograms = np.zeros((2, 2, 4), np.uint16)
    histograms[0, 0, 1] = histograms[0, 1, 0] = histograms[1, 1, 2] = 3
    found = pixel_replicates(histograms, np.array([[2, 0], [0, 2], [1, 1]], np.uint8))
    assert found[[0, 2]].tolist() == [100, 50] and np.isnan(found[1])  # 3 of 3 pixels; 3 of 6
    assert interval(found) == [51.25, 98.75]


def test_draw_is_seeded_and_draws_as_many_images_as_there_are():
    weights = draw(50, 20, seed=3)
    assert weights.dtype == np.uint8 and (weights.sum(axis=1) == 50).all()
    np.testing.assert_array_equal(weights, draw(50, 20, seed=3))
    assert (weights != draw(50, 20, seed=4)).any()
    np.testing.assert_array_equal(weights[:5], draw(50, 5, seed=3))  # fewer resamples: the first of the same
    with pytest.raises(ValueError, match="at least one image"):
        draw(0, 10, seed=0)


def test_lengths_that_do_not_fit():
    outcomes = recorded(random_images(6), **COARSE).records.outcomes()
    with pytest.raises(ValueError, match="different numbers of images"):
        box_replicates(outcomes, draw(5, 2, 0))
    with pytest.raises(ValueError, match="different numbers of images"):
        box_replicates(outcomes, draw(6, 2, 0), top1=np.ones(5, bool))
    with pytest.raises(ValueError, match="none of the recorded thresholds"):
        outcomes.right(0.1234)


def test_intervals_by_hand():
    assert interval(np.arange(101.0)) == [2.5, 97.5]
    assert interval(np.arange(101.0), confidence=80) == [10, 90]
    assert intervals({"a": {30: np.arange(101.0)}, "b": np.ones(9)}) == {"a": {30: [2.5, 97.5]}, "b": [1, 1]}


def test_coverage_and_width_on_a_binomial():
    """Of shares of right images among 200, the interval holds the true one in about 95 % of 400 data sets."""
    rng = np.random.default_rng(0)
    share, num_images, num_sets = 0.6, 200, 400
    weights = draw(num_images, 1000, seed=0)
    covered, widths = 0, []
    for _ in range(num_sets):
        low, high = interval(right_replicates(rng.random(num_images) < share, weights))
        covered += low <= 100 * share <= high
        widths.append(high - low)
    # 0.945 is what the percentile interval of this binomial reaches; 400 sets tell it to within 0.011.
    assert 0.91 < covered / num_sets < 0.98
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 100 * np.sqrt(share * (1 - share) / num_images), rel=0.03)
