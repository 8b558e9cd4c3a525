"""wsolevaluation's names in evaluation.py and data_loaders.py: its values, against plain loops, and its errors."""

import cv2
import numpy as np
import pytest
from conftest import REAL, write_dataset
from PIL import Image
from sklearn.metrics import average_precision_score

import data_loaders
import evaluation
from data_loaders import configure_metadata, get_class_labels, get_image_ids, get_image_sizes, get_mask_paths
from evaluation import (
    BoxEvaluator,
    MaskEvaluator,
    calculate_multiple_iou,
    check_box_convention,
    check_scoremap_validity,
    compute_bboxes_from_scoremaps,
    evaluate_wsol,
    get_mask,
    load_mask_image,
    resize_bbox,
)

TAUS = list(np.arange(0, 1, 0.05))


def boxes_by_opencv(scoremap: np.ndarray, tau: float, multi: bool) -> list[list[int]]:
    """The definition, threshold by threshold."""
    quantized = (scoremap * 255).astype(np.uint8)
    foreground = (quantized > int(tau * quantized.max())).astype(np.uint8)
    contours = cv2.findContours(foreground, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not multi and contours:
        contours = [max(contours, key=cv2.contourArea)]
    height, width = scoremap.shape
    rectangles = [cv2.boundingRect(contour) for contour in contours]
    return [[x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in rectangles] or [[0, 0, 0, 0]]


def iou_by_pixels(a, b, side: int = 224) -> float:
    canvas = np.zeros((2, side + 1, side + 1), bool)
    for plane, (x0, y0, x1, y1) in zip(canvas, (a, b), strict=True):
        plane[y0 : y1 + 1, x0 : x1 + 1] = True
    return (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum()


def smooth_map(seed: int, side: int = 224, dtype=np.float64) -> np.ndarray:
    large = cv2.resize(np.random.default_rng(seed).random((6, 6)), (side, side), interpolation=cv2.INTER_LINEAR)
    return ((large - large.min()) / (large.max() - large.min())).astype(dtype)


def make_evaluator(kind, folder, **more):
    settings = {
        "dataset_name": "Shapes",
        "split": "test",
        "cam_threshold_list": TAUS,
        "iou_threshold_list": [30, 50, 70],
        "mask_root": str(folder),
        "multi_contour_eval": False,
    } | more
    return kind(metadata=configure_metadata(str(folder)), **settings)


@pytest.fixture
def boxes_folder(tmp_path):
    """Two images, one of them with two boxes, and a third that image_ids.txt leaves out."""
    folder = tmp_path / "boxes"
    folder.mkdir()
    (folder / "image_ids.txt").write_text("a/1.jpg\nb/2.jpg")
    (folder / "image_ids_proxy.txt").write_text("b/2.jpg\n")
    (folder / "class_labels.txt").write_text("a/1.jpg,3\nb/2.jpg,0\nc/3.jpg,1\n")
    (folder / "image_sizes.txt").write_text("a/1.jpg,448,112\nb/2.jpg,224,224\nc/3.jpg,10,20\n")
    (folder / "localization.txt").write_text(
        "a/1.jpg,20,10,401,99\nb/2.jpg,5,5,100,180\nb/2.jpg,90,20,219,200\nc/3.jpg,0,0,9,19"
    )
    return folder


@pytest.fixture
def masks_folder(tmp_path):
    """Three images: two masks and an ignore mask, a mask without one, and a mask of nothing."""
    folder = tmp_path / "masks"
    folder.mkdir()
    random = np.random.default_rng(3)

    def save(name, array):
        Image.fromarray(array.astype(np.uint8) * 255).save(folder / name)

    y, x = np.mgrid[:300, :200]
    save("a1.png", (x - 60) ** 2 + (y - 90) ** 2 < 2500)
    save("a2.png", (x > 120) & (y > 200))
    save("ai.png", random.random((300, 200)) < 0.1)
    save("b1.png", np.ones((50, 40)))
    save("c1.png", np.zeros((224, 224)))
    (folder / "image_ids.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")
    (folder / "localization.txt").write_text("a.jpg,a1.png,ai.png\na.jpg,a2.png,\nb.jpg,b1.png,\nc.jpg,c1.png,\n")
    return folder


# --------------------------------------------------------------------------- data_loaders


def test_metadata_readers(boxes_folder, masks_folder):
    metadata = configure_metadata(str(boxes_folder))
    assert metadata.image_ids == metadata["image_ids"] == str(boxes_folder / "image_ids.txt")
    assert get_image_ids(metadata) == ["a/1.jpg", "b/2.jpg"] and get_image_ids(metadata, proxy=True) == ["b/2.jpg"]
    assert get_class_labels(metadata) == {"a/1.jpg": 3, "b/2.jpg": 0, "c/3.jpg": 1}
    assert get_image_sizes(metadata) == {"a/1.jpg": (448, 112), "b/2.jpg": (224, 224), "c/3.jpg": (10, 20)}
    boxes = data_loaders.get_bounding_boxes(metadata)
    assert boxes["b/2.jpg"] == [(5, 5, 100, 180), (90, 20, 219, 200)] and boxes["c/3.jpg"] == [(0, 0, 9, 19)]
    assert all(type(v) is int for image_boxes in boxes.values() for box in image_boxes for v in box)
    assert get_mask_paths(configure_metadata(str(masks_folder))) == (
        {"a.jpg": ["a1.png", "a2.png"], "b.jpg": ["b1.png"], "c.jpg": ["c1.png"]},
        {"a.jpg": "ai.png", "b.jpg": "", "c.jpg": ""},
    )
    with pytest.raises(ValueError, match="localization.txt:1"):
        get_mask_paths(metadata) and data_loaders.get_bounding_boxes(configure_metadata(str(masks_folder)))


def test_empty_files_are_no_boxes(tmp_path):
    for name in ("localization", "image_sizes"):
        (tmp_path / f"{name}.txt").touch()
    metadata = configure_metadata(str(tmp_path))
    assert data_loaders.get_bounding_boxes(metadata) == get_image_sizes(metadata) == {}
    assert get_mask_paths(metadata) == ({}, {})


@pytest.mark.skipif(not REAL.is_dir(), reason="no real metadata here")
@pytest.mark.parametrize(
    "name, split, boxes, sizes",
    [
        (
            "CUB",
            "val",
            [[(176, 136, 459, 291)], [(44, 183, 426, 254)], [(437, 42, 834, 422)]],
            [(560, 419), (576, 432), (999, 587)],
        ),
        (
            "CUB",
            "test",
            [[(60, 27, 385, 331)], [(14, 112, 402, 298)], [(33, 53, 284, 448)]],
            [(500, 335), (500, 347), (500, 470)],
        ),
        ("ILSVRC", "val", [[(156, 163, 318, 230)], [(143, 142, 394, 248)], [(28, 94, 485, 303)]], [(500, 375)] * 3),
        (
            "ILSVRC",
            "test",
            [[(111, 108, 441, 193)], [(45, 49, 499, 162), (2, 69, 437, 207)], [(38, 19, 385, 373)]],
            [(500, 375)] * 3,
        ),
    ],
)
def test_real_boxes(name, split, boxes, sizes):
    evaluator = make_evaluator(BoxEvaluator, REAL / name / split, dataset_name=name, split=split, mask_root=None)
    first = evaluator.image_ids[:3]
    assert [evaluator.original_bboxes[i] for i in first] == boxes and [evaluator.image_sizes[i] for i in first] == sizes
    assert (
        len(evaluator.gt_bboxes)
        == len(evaluator.image_ids)
        == {"CUBval": 1000, "CUBtest": 5794, "ILSVRCval": 10000, "ILSVRCtest": 50000}[name + split]
    )
    for image_id, image_boxes in evaluator.original_bboxes.items():
        width, height = evaluator.image_sizes[image_id]
        assert all(0 <= x0 <= x1 < width and 0 <= y0 <= y1 < height for x0, y0, x1, y1 in image_boxes)


# --------------------------------------------------------------------------- pure functions


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize(
    "scoremap",
    [
        np.zeros((3, 3)),
        smooth_map(1, 60),
        smooth_map(2, 41, np.float32),
        np.kron(np.random.default_rng(5).random((9, 7)), np.ones((3, 5))),
        np.random.default_rng(6).random((25, 31)),
    ],
)
def test_boxes_of_a_map_are_opencvs(scoremap, multi):
    boxes, counts = compute_bboxes_from_scoremaps(scoremap, TAUS, multi_contour_eval=multi)
    assert [tau_boxes.tolist() for tau_boxes in boxes] == [boxes_by_opencv(scoremap, tau, multi) for tau in TAUS]
    assert counts == [len(tau_boxes) for tau_boxes in boxes] and isinstance(boxes, list) and isinstance(counts[0], int)
    boxes[0][0, 0] = 99  # each threshold's boxes are its own
    assert boxes[1][0, 0] != 99


def test_single_contour_is_the_default():
    boxes, counts = compute_bboxes_from_scoremaps(smooth_map(3, 50), np.arange(0, 1, 0.2))
    assert counts == [1] * 5 and all(tau_boxes.shape == (1, 4) for tau_boxes in boxes)


@pytest.mark.parametrize(
    "scoremap, error",
    [
        (np.full((3, 3), np.nan), ValueError),
        (np.full((3, 3), 1.1), ValueError),
        (np.full((3, 3), -0.1), ValueError),
        (np.zeros((3, 3, 1)), ValueError),
        (np.zeros(9), ValueError),
        (np.zeros((3, 3), int), TypeError),
        (np.zeros((3, 3), np.float16), TypeError),
        ([[0.0]], TypeError),
        (None, TypeError),
    ],
)
def test_bad_maps(scoremap, error, boxes_folder, masks_folder):
    for function in (
        check_scoremap_validity,
        lambda s: compute_bboxes_from_scoremaps(s, TAUS),
        lambda s: make_evaluator(BoxEvaluator, boxes_folder).accumulate(s, "a/1.jpg"),
        lambda s: make_evaluator(MaskEvaluator, masks_folder).accumulate(s, "a.jpg"),
    ):
        with pytest.raises(error):
            function(scoremap)


def test_iou():
    random = np.random.default_rng(0)
    a, b = (
        np.concatenate([c, c + random.integers(0, 90, c.shape)], axis=1)
        for c in (random.integers(0, 130, (7, 2)), random.integers(0, 130, (5, 2)))
    )
    iou = calculate_multiple_iou(a, b)
    assert iou.dtype == np.float64 and iou.tolist() == [[iou_by_pixels(x, y) for y in b] for x in a]
    assert calculate_multiple_iou(a.astype(float), b.astype(np.uint8)).tolist() == iou.tolist()
    assert (calculate_multiple_iou(np.zeros((3, 4), int), np.zeros((5, 4), int)) == np.ones((3, 5))).all()


@pytest.mark.parametrize(
    "box, convention, error",
    [
        ([1, 1, 0, 0], "x0y0x1y1", RuntimeError),
        ([-1, 0, 2, 2], "x0y0x1y1", RuntimeError),
        ([0, 0, -1, 2], "xywh", RuntimeError),
        ([0, 0, 1], "xywh", RuntimeError),
        ([[[0, 0, 1, 1]]], "xywh", RuntimeError),
        ([0, 0, 1, 1], "yxyx", ValueError),
    ],
)
def test_box_conventions(box, convention, error):
    with pytest.raises(error):
        check_box_convention(np.array(box), convention)
    check_box_convention(np.array([5, 5, 1, 1]), "xywh")
    check_box_convention(np.array([[0, 0, 0, 0], [1, 2, 3, 4]]), "x0y0x1y1")


def test_boxes_in_the_wrong_order_are_runtime_errors(boxes_folder):
    wrong, right = np.array([[5, 0, 4, 1]]), np.array([[1, 1, 2, 2]])
    for pair in ((wrong, right), (right, wrong)):
        with pytest.raises(RuntimeError):
            calculate_multiple_iou(*pair)
    with pytest.raises(RuntimeError):
        resize_bbox((4, 4, 1, 5), (10, 10), (20, 20))
    text = (boxes_folder / "localization.txt").read_text().replace("5,5,100,180", "100,5,5,180")
    (boxes_folder / "localization.txt").write_text(text)
    with pytest.raises(RuntimeError):
        make_evaluator(BoxEvaluator, boxes_folder)


def test_resize_bbox():
    assert resize_bbox((1, 2, 4, 3), (10, 20), (35, 10)) == (3, 1, 14, 1)
    assert resize_bbox([1, 2, 1, 2], (3, 3), (3, 3)) == (1, 2, 1, 2)


# --------------------------------------------------------------------------- evaluators


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("multi", [False, True])
def test_box_evaluator_counts_what_a_plain_loop_counts(boxes_folder, multi, dtype):
    evaluator = make_evaluator(BoxEvaluator, boxes_folder, multi_contour_eval=multi)
    assert evaluator.gt_bboxes == {"a/1.jpg": [(10, 20, 200, 198)], "b/2.jpg": [(5, 5, 100, 180), (90, 20, 219, 200)]}
    expected = {delta: np.zeros(len(TAUS)) for delta in (30, 50, 70)}
    for seed in range(6):
        image_id, scoremap = ("a/1.jpg", "b/2.jpg")[seed % 2], smooth_map(seed, dtype=dtype)
        evaluator.accumulate(scoremap, image_id)
        for column, tau in enumerate(TAUS):
            best = max(
                iou_by_pixels(box, gt)
                for box in boxes_by_opencv(scoremap, tau, multi)
                for gt in evaluator.gt_bboxes[image_id]
            )
            for delta, counts in expected.items():
                counts[column] += best >= delta / 100
    assert evaluator.cnt == 6 and {delta: c.tolist() for delta, c in evaluator.num_correct.items()} == {
        delta: c.tolist() for delta, c in expected.items()
    }
    assert evaluator.compute() == [100 * c.max() / 6 for c in expected.values()] and 0 < sum(evaluator.compute()) < 300
    with pytest.raises(KeyError):
        evaluator.accumulate(smooth_map(0), "c/3.jpg")  # image_ids.txt leaves it out


def test_an_overlap_that_is_just_enough_counts(boxes_folder):
    (boxes_folder / "localization.txt").write_text("a/1.jpg,0,0,19,4\nb/2.jpg,0,0,9,9\n")
    evaluator = make_evaluator(BoxEvaluator, boxes_folder, cam_threshold_list=[0.5])
    scoremap = np.zeros((224, 224))
    scoremap[:4, :9] = 1  # OpenCV's box and a pixel more: (0, 0, 9, 4), half of both ground-truth boxes
    for image_id in ("a/1.jpg", "b/2.jpg"):
        evaluator.accumulate(scoremap, image_id)
    assert evaluator.gt_bboxes["a/1.jpg"] == [(0, 0, 9, 8)] and evaluator.compute() == [100, 100, 0]


def test_masks(masks_folder):
    mask = get_mask(str(masks_folder), ["a1.png", "a2.png"], "ai.png")
    either = (
        np.maximum(
            load_mask_image(str(masks_folder / "a1.png"), (224, 224)),
            load_mask_image(str(masks_folder / "a2.png"), (224, 224)),
        )
        > 0.5
    )
    ignored = cv2.resize(cv2.imread(str(masks_folder / "ai.png"), 0), (224, 224), interpolation=cv2.INTER_NEAREST) > 0
    assert mask.shape == (224, 224) and mask.dtype == np.uint8
    assert ((mask == 1) == either).all() and ((mask == 255) == (ignored & ~either)).all()
    image = load_mask_image(str(masks_folder / "a1.png"), (20, 30))
    assert image.shape == (30, 20) and image.dtype == np.float32 and set(np.unique(image)) == {0, 255}


def test_mask_evaluator(masks_folder):
    def measured(*scoremaps):
        evaluator = make_evaluator(MaskEvaluator, masks_folder, cam_threshold_list=list(np.arange(0, 1, 0.01)))
        for image_id, scoremap in scoremaps:
            evaluator.accumulate(scoremap, image_id)
        return evaluator.compute()

    mask = get_mask(str(masks_folder), ["a1.png", "a2.png"], "ai.png")
    for ignored_score in (0, 1):
        assert measured(("a.jpg", np.where(mask == 255, ignored_score, mask == 1).astype(float))) == 100
    share = (mask == 1).sum() / (mask != 255).sum()
    for value in (0, 0.5, 1):
        assert measured(("a.jpg", np.full((224, 224), float(value)))) == pytest.approx(100 * share)
        assert measured(("b.jpg", np.full((224, 224), float(value)))) == 100
        with pytest.raises(RuntimeError):
            measured(("c.jpg", np.full((224, 224), float(value))))
    scores = [np.floor(smooth_map(seed) * 100) / 100 + 0.005 for seed in range(2)]
    scores = [np.minimum(s, 1) for s in scores]
    truth = [mask[mask != 255] == 1, np.zeros(224 * 224, bool)]
    expected = average_precision_score(
        np.concatenate(truth), np.concatenate([scores[0][mask != 255], scores[1].ravel()])
    )
    assert measured(("a.jpg", scores[0]), ("c.jpg", scores[1].astype(np.float32))) == pytest.approx(100 * expected)


@pytest.mark.parametrize("name", ["CUB", "ILSVRC"])
def test_data_sets_of_boxes_have_no_mask_evaluator(masks_folder, name):
    with pytest.raises(ValueError, match="no masks"):
        make_evaluator(MaskEvaluator, masks_folder, dataset_name=name)


@pytest.mark.parametrize("form", ["boxes", "masks"])
def test_evaluate_wsol_is_the_evaluators(tmp_path, form):
    write_dataset(tmp_path, "Shapes", form=form, splits=("val",), images=2)
    folder = tmp_path / "metadata/Shapes/val"
    evaluators = {
        multi: make_evaluator(
            {"boxes": BoxEvaluator, "masks": MaskEvaluator}[form],
            folder,
            multi_contour_eval=multi,
            mask_root=tmp_path / "dataset/Shapes",
        )
        for multi in (False, True)
    }
    for seed, image_id in enumerate(get_image_ids(configure_metadata(folder))):
        path = tmp_path / "maps" / f"{image_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, smooth_map(seed))
        for one in evaluators.values():
            one.accumulate(smooth_map(seed), image_id)
    for multi in (False, True):
        for multi_iou in (False, True):
            number = evaluate_wsol(
                tmp_path / "maps",
                tmp_path / "metadata",
                tmp_path / "dataset",
                "Shapes",
                "val",
                multi,
                multi_iou,
                [30, 50, 70],
                cam_curve_interval=0.05,
                workers=0,
            )
            expected = evaluators[multi].compute()
            assert number == (expected if form == "masks" else np.average(expected) if multi_iou else expected[1])


def test_the_names_are_where_they_were():
    for name in (
        "configure_metadata",
        "get_image_ids",
        "get_bounding_boxes",
        "get_image_sizes",
        "get_mask_paths",
        "LocalizationEvaluator",
    ):
        assert hasattr(evaluation, name)
    assert hasattr(data_loaders, "get_class_labels")
