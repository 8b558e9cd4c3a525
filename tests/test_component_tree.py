"""The one pass over a map against OpenCV, level by level: equality, in both contour modes, on maps of any size."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsol.metrics.boxes import best_iou, contour_boxes, match_boxes, quantize, scoremap_boxes, thresholds
from wsol.metrics.component_tree import match, trace

EVERY_LEVEL = np.arange(256) / 255  # on a map whose largest grey is 255


def overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    intersection = max(w, 0) * max(h, 0)
    return intersection / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - intersection)


def opencv_best_iou(greys, gt_boxes):
    """(multi, single) at each level 0..255: OpenCV's contours, every pair of boxes, and Python's own division."""
    height, width = greys.shape
    multi, single = [], []
    levels = np.union1d(greys, [0]).tolist()  # at others the foreground is that of the next lower one
    for level in levels:
        contours = cv2.findContours((greys > level).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        rectangles = map(cv2.boundingRect, contours)
        boxes = [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in rectangles]
        ious = [max(overlap(box, gt) for gt in gt_boxes.tolist()) for box in boxes or [(0, 0, 0, 0)]]
        areas = [cv2.contourArea(contour) for contour in contours] or [0]
        multi.append(max(ious))
        single.append(ious[areas.index(max(areas))])
    lasting = np.diff([*levels, 256])
    return np.repeat(multi, lasting), np.repeat(single, lasting)


def at_every_level(greys, gt_boxes):
    """(multi, single) at each level 0..255 from the one pass, whatever the largest grey is."""
    contours = trace(greys)
    return match(contours._replace(brightest=255), gt_boxes, EVERY_LEVEL)


def assert_equals_opencv(greys, gt_boxes):
    expected, found = opencv_best_iou(greys, gt_boxes), at_every_level(greys, gt_boxes)
    brightest = int(greys.max())  # without foreground the corner pixel counts, which `match` knows by the largest grey
    np.testing.assert_array_equal(found[0][:brightest], expected[0][:brightest])
    np.testing.assert_array_equal(found[1], expected[1])
    assert np.all(expected[0][brightest:] == expected[1][brightest:])


SHAPES = st.tuples(st.integers(1, 14), st.integers(1, 14))


@st.composite
def greys(draw):
    """Maps (H, W) uint8 of the kinds that break tracing."""
    height, width = shape = draw(SHAPES)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, columns = np.indices(shape)
    kind = draw(
        st.sampled_from(
            [
                "anything",
                "noise",
                "few greys",
                "binary",
                "smooth",
                "plateaus",
                "checkers",
                "lattice",
                "frames",
                "blots",
                "pixel",
                "constant",
            ]
        )
    )
    if kind == "anything":
        return draw(hnp.arrays(np.uint8, shape))
    if kind == "noise":
        return random.integers(0, 256, shape, dtype=np.uint8)
    if kind == "few greys":
        return (random.integers(0, 4, shape) * 85).astype(np.uint8)
    if kind == "binary":
        return np.where(random.random(shape) < random.random(), 255, 0).astype(np.uint8)
    if kind in ("smooth", "plateaus"):
        coarse = random.integers(0, 256, (4, 4), dtype=np.uint8)
        wave = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(shape)
        return wave if kind == "smooth" else wave // 64 * 64
    if kind == "checkers":
        return np.where((rows + columns) % 2, random.integers(0, 256, shape), random.integers(256)).astype(np.uint8)
    if kind == "lattice":  # one pixel in four is a hole, each as deep as it likes
        return np.where(rows % 2 * (columns % 2), random.integers(0, 256, shape), 200).astype(np.uint8)
    if kind == "frames":  # holes in holes, one pixel wide, with gaps
        ring = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
        frames = random.choice([0, 90, 180, 255], 8)[ring]
        return np.where(random.random(shape) < 0.1, random.integers(0, 256, shape), frames).astype(np.uint8)
    if kind == "blots":
        drawn = np.zeros(shape, np.uint8)
        for _ in range(random.integers(1, 8)):
            y, x = random.integers(0, height), random.integers(0, width)
            drawn[y : y + random.integers(1, height + 1), x : x + random.integers(1, width + 1)] = random.integers(
                0, 256
            )
        return drawn
    drawn = np.full(shape, random.integers(256) if kind == "constant" else 0, np.uint8)
    drawn[random.integers(height), random.integers(width)] = random.integers(256) if kind == "pixel" else drawn[0, 0]
    return drawn


# Ground truth may reach beyond the map, as some of Stanford Cars does.
CORNERS = st.tuples(*[st.integers(-3, 16)] * 4).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])]
)
GROUND_TRUTH = st.lists(CORNERS, min_size=1, max_size=4).map(np.array)


@settings(max_examples=250, deadline=None)
@given(greys(), GROUND_TRUTH)
def test_any_map_equals_opencv_at_every_level(greys, gt_boxes):
    assert_equals_opencv(greys, gt_boxes)


@settings(max_examples=60, deadline=None)
@given(greys(), GROUND_TRUTH, st.sampled_from([0.01, 0.1, 0.3]), st.sampled_from([np.float32, np.float64]))
def test_best_iou_equals_the_definition(greys, gt_boxes, interval, dtype):
    scoremap, taus = (greys / 255).astype(dtype), thresholds(interval)
    found, expected = best_iou(scoremap, gt_boxes, taus), match_boxes(scoremap_boxes(scoremap, taus), gt_boxes)
    np.testing.assert_array_equal(found.multi, expected.multi)
    np.testing.assert_array_equal(found.single, expected.single)


def smooth(size, cells, seed=0):
    noise = np.random.default_rng(seed).random((cells, cells)).astype(np.float32)
    scoremap = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return quantize((scoremap - scoremap.min()) / (scoremap.max() - scoremap.min()))


@pytest.mark.parametrize("name", ["14 x 14", "7 x 7", "wide", "tall", "noise"])
def test_larger_maps_equal_opencv(name):
    greys = {
        "14 x 14": lambda: smooth(224, 14),
        "7 x 7": lambda: smooth(224, 7, seed=1),
        "wide": lambda: smooth(224, 40, seed=2)[:3],
        "tall": lambda: smooth(300, 60, seed=3)[:, 100:105],
        "noise": lambda: np.random.default_rng(4).integers(0, 256, (50, 70), dtype=np.uint8),
    }[name]()
    assert_equals_opencv(greys, np.array([[3, 1, 40, 44], [100, 90, 180, 200], [10, 0, 60, 2]]))


def test_contours_are_those_of_each_level():
    """Not only the best box: the boxes that a level has are OpenCV's, all of them."""
    greys = np.random.default_rng(5).integers(0, 256, (23, 31), dtype=np.uint8)
    contours = trace(greys)
    for level in range(0, int(greys.max()), 7):
        boxes, largest = contour_boxes(greys > level)
        alive = (contours.boxes[:, 4] <= level) & (level < contours.boxes[:, 5])
        assert {tuple(box) for box in contours.boxes[alive, :4].tolist()} == {tuple(box) for box in boxes.tolist()}
        assert contours.largest[level].tolist() == boxes[largest].tolist()


def test_ties_by_hand():
    """Two squares of area 1: the lower one counts, until the upper one's hole is filled in and makes it larger."""
    greys = np.zeros((9, 9), np.uint8)
    greys[1:3, 1:3] = greys[6:8, 6:8] = 200
    assert trace(greys).largest[0].tolist() == [6, 6, 8, 8]
    greys[0:4, 0:4] = 100
    assert trace(greys).largest[[99, 100]].tolist() == [[0, 0, 4, 4], [6, 6, 8, 8]]
    # The contour of a one-pixel hole encloses as much as that of the four pixels around it: the outer one counts.
    diamond = np.zeros((7, 7), np.uint8)
    diamond[[2, 3, 3, 4], [3, 2, 4, 3]] = 50
    assert trace(diamond).largest[0].tolist() == [2, 2, 5, 5]
    assert sorted(trace(diamond).boxes[:, :4].tolist()) == [[2, 2, 5, 5], [2, 2, 5, 5]]


def test_read_only_and_strided_maps():
    greys = np.random.default_rng(6).integers(0, 256, (12, 20), dtype=np.uint8)
    view = greys[::2, ::-1]
    view.flags.writeable = False
    gt = np.array([[1, 1, 5, 4]], np.int32)
    gt.flags.writeable = False
    views, copies = (match(trace(greys), gt, EVERY_LEVEL) for greys in (view, view.copy()))
    for found, expected in zip(views, copies, strict=True):
        np.testing.assert_array_equal(found, expected)


# Two processes at once, and a folder that nobody can write to: __pycache__ is a file there, and so is the user's cache.
LOOP = """
from wsol.metrics.compiled import cached, inlined


@inlined
def add(a, b):
    return a + b


@cached
def total(numbers):
    result = 0
    for number in numbers:
        result = add(result, number)
    return result
"""
COMPILE = "import numpy as np; from wsol.metrics.loop import total; print(total(np.arange(5)))"


@pytest.mark.parametrize("writable", [True, False])
def test_machine_code_is_kept_where_it_can_be(tmp_path, writable):
    package = tmp_path / "wsol" / "metrics"
    package.mkdir(parents=True)
    (tmp_path / "wsol" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "compiled.py").write_text((ROOT / "wsol" / "metrics" / "compiled.py").read_text())
    (package / "loop.py").write_text(LOOP)
    if not writable:
        (package / "__pycache__").touch()
        (tmp_path / "cache").touch()
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {
        "PYTHONPATH": str(tmp_path),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMPILE],
            env=environment,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2 if writable else 1)
    ]
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert out == "10\n" and process.returncode == 0, error
    assert bool(list(tmp_path.rglob("*.nbi"))) == writable
