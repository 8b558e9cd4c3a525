"""What each image did: whatever the order of updates, to the file and back, class by class, to the results."""

import io

import numpy as np
import pytest
import torch

from wsol.cam import ScoreMaps, Variant
from wsol.datasets.load import load_data
from wsol.datasets.masks import load_masks
from wsol.errors import InputError
from wsol.evaluation.ground_truth import load_ground_truth
from wsol.evaluation.per_image import FILE, PerImage
from wsol.evaluation.results import flatten
from wsol.evaluation.split import Evaluation
from wsol.metrics.pixels import PixelAveragePrecision
from wsol.run.folder import RunFolder

ROWS = [Variant("cam", "softmax"), Variant("cam", "sigmoid", clamped=True)]


def blobs(num, seed):
    """Smooth random maps (num, 224, 224) in [0, 1]."""
    coarse = torch.rand(num, 1, 5, 5, generator=torch.Generator().manual_seed(seed)) ** 2
    maps = torch.nn.functional.interpolate(coarse, (224, 224), mode="bilinear")[:, 0].numpy()
    return (maps - maps.min(axis=(1, 2), keepdims=True)) / np.ptp(maps, axis=(1, 2), keepdims=True)


def split_of(root, split):
    return load_data("Shapes", root / "dataset", root / "metadata", root / "dataset", splits=(split,)).splits[split]


def evaluated(root, batches, split="test", **settings):
    """An Evaluation of random maps and logits, which belong to the image, added in the given batches."""
    metadata = split_of(root, split)
    evaluation = Evaluation(metadata, ROWS, interval=0.02, **settings)
    maps = {row: blobs(len(metadata), seed) for seed, row in enumerate(ROWS)}
    logits = torch.randn(len(metadata), 3, generator=torch.Generator().manual_seed(7))
    for batch in batches:
        index = np.array(batch)
        evaluation.update(
            ScoreMaps(
                index,
                metadata.labels[index],
                logits[index],
                None,
                {row: of_row[index] for row, of_row in maps.items()},
                {row: np.zeros(len(index), bool) for row in ROWS},
            ),
            load_ground_truth(metadata, index),
        )
    return evaluation


IN_ORDER = [range(0, 5), range(5, 12)]
SHUFFLED = [(11, 3, 4), (7,), (0, 10, 2, 1, 5), (9, 8, 6)]


@pytest.fixture(params=["any", "first"])
def images(request, shapes):
    """(PerImage, what `compute` found) of the 12 test images, with thresholds of val."""
    two_boxes(shapes)
    val = evaluated(shapes, IN_ORDER, "val", gt_boxes=request.param)
    test = evaluated(shapes, SHUFFLED, gt_boxes=request.param, record=True)
    found = test.compute(val)
    return test.per_image("Shapes", found), found


def two_boxes(root):
    """Each image's box gets a larger one beside it, which is the first of every other image."""
    for split in ("val", "test"):
        path = root / "metadata" / "Shapes" / split / "localization.txt"
        lines = path.read_text().splitlines()
        pairs = [(line, f"{line.split(',')[0]},0,0,36,36") for line in lines]
        path.write_text("".join(f"{pair[i % 2]}\n{pair[1 - i % 2]}\n" for i, pair in enumerate(pairs)))


def test_replicates_of_ones_are_the_results(images):
    per_image, found = images
    ones = np.ones((1, 12), np.uint8)
    for row, expected in zip(per_image.rows.values(), found["rows"], strict=True):
        values = flatten(row.replicates(ones, per_image.correct))
        expected = flatten(
            {
                key: value
                for key, value in expected.items()
                if isinstance(value, (dict, float)) and key not in ("tau", "localization")
            }
        )
        assert {key: pytest.approx(value[0], rel=1e-12) for key, value in values.items()} == expected
        assert 0 < expected["gt_loc_best"] < 100
    assert {"gt_loc_val", "top1_loc_val", "maxboxacc_30", "pxap"} <= set(values)
    center = flatten(per_image.center.replicates(ones, {}))
    assert {key: value[0] for key, value in center.items()} == pytest.approx(
        flatten({key: value for key, value in found["center"].items() if key not in ("tau", "localization")})
    )


def test_the_order_of_updates_changes_nothing(shapes):
    """As when processes share the images: the same intervals to the last digit."""
    two_boxes(shapes)
    a, b = (evaluated(shapes, batches, record=True) for batches in (IN_ORDER, SHUFFLED))
    a, b = (evaluation.per_image("Shapes", evaluation.compute()) for evaluation in (a, b))
    assert a.intervals(200, seed=1) == b.intervals(200, seed=1) != b.intervals(200, seed=2)
    assert a.image_ids == b.image_ids == split_of(shapes, "test").image_ids
    np.testing.assert_array_equal(a.predictions, b.predictions)
    assert ((a.predictions == a.labels) == a.correct["top1"]).all() and 0 < a.correct["top1"].sum() < 12
    for row in a.intervals(200, seed=1)["rows"].values():
        assert set(row) == {"maxboxacc_v2", "pxap"}  # shares of images have another interval
        assert all(0 <= low < high <= 100 for low, high in row.values())


def test_file_and_back(images, tmp_path):
    per_image, _ = images
    run = RunFolder(str(tmp_path), "written")
    run.open({})
    path = per_image.write(run.path)
    assert path.name == FILE and {p.name for p in run.path.iterdir()} == {FILE, "config.yaml", ".lock"}
    again = PerImage.load(run.path)
    assert again.intervals(50, seed=0)["rows"] == per_image.intervals(50, seed=0)["rows"]
    assert (again.dataset, again.split, again.image_ids) == ("Shapes", "test", per_image.image_ids)
    np.testing.assert_array_equal(again.predictions, per_image.predictions)
    np.testing.assert_array_equal(again.rows["cam_softmax"].boxes.iou, per_image.rows["cam_softmax"].boxes.iou)


def test_a_file_that_cannot_be_read_is_one_line(images, tmp_path):
    with pytest.raises(InputError, match=r"per_image.npz is missing; evaluate the run again with --eval_only"):
        PerImage.load(tmp_path)
    run = RunFolder(str(tmp_path), "written")
    run.open({})
    whole = images[0].write(run.path).read_bytes()
    pickled = io.BytesIO()
    np.savez(pickled, settings=np.array([{"schema": 1}], dtype=object))
    for content in (whole[: len(whole) // 2], b"", b"text", pickled.getvalue()):
        run.write(FILE, content)
        with pytest.raises(InputError, match=r"per_image.npz cannot be read .*--eval_only"):
            PerImage.load(run.path)


def test_classes_average_to_the_split(images):
    per_image, found = images
    taus = {name: row["tau"] for name, row in zip(per_image.rows, found["rows"], strict=True)}
    lines = per_image.per_class(taus, ["red", "green", "blue", "never seen"])
    assert [(line["class"], line["name"], line["images"]) for line in lines[::2]] == [
        (0, "red", 4),
        (1, "green", 4),
        (2, "blue", 4),
        (3, "never seen", 0),
    ]
    assert set(lines[-1]) == {"class", "name", "images", "row"}
    for name, row in zip(per_image.rows, found["rows"], strict=True):
        of_row = [line for line in lines if line["row"] == name and line["images"]]
        for key in ("gt_loc", "top1_loc", "gt_loc_val", "top1_loc_val", "gt_loc_best", "top1_loc_best", "maxboxacc_v2"):
            assert np.mean([line[key] for line in of_row]) == pytest.approx(row[key]), key
        for delta, value in row["maxboxacc"].items():
            assert np.mean([line[f"maxboxacc_{delta}"] for line in of_row]) == pytest.approx(value)
    assert np.mean([line["top1"] for line in lines[:6:2]]) == pytest.approx(found["classification"]["top1"])


def test_pxap_of_a_class_is_that_of_its_images(shapes):
    evaluation = evaluated(shapes, IN_ORDER, record=True)
    found = evaluation.compute()
    lines = evaluation.per_image("Shapes", found).per_class(
        {str(row): entry["tau"] for row, entry in zip(ROWS, found["rows"], strict=True)}, ["a", "b", "c"]
    )
    metadata, alone = split_of(shapes, "test"), PixelAveragePrecision(interval=0.02)
    of_class = np.flatnonzero(metadata.labels == 1)
    alone.update(blobs(12, 0)[of_class], load_masks(metadata, of_class))
    assert lines[2]["row"] == "cam_softmax" and lines[2]["pxap"] == pytest.approx(alone.compute()["pxap"], rel=1e-12)


def test_the_branch_has_its_own_accuracy_beside_the_softmax_heads(shapes):
    metadata = split_of(shapes, "test")
    evaluation = Evaluation(metadata, ROWS, interval=0.1)
    logits, branch = (torch.randn(12, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for batch in IN_ORDER:
        index = np.array(batch)
        maps = {row: blobs(len(index), 0) for row in ROWS}
        whole = {row: np.zeros(len(index), bool) for row in ROWS}
        labels = metadata.labels[index]
        evaluation.update(
            ScoreMaps(index, labels, logits[index], branch[index], maps, whole), load_ground_truth(metadata, index)
        )
    found = evaluation.compute()
    for key, values in (("classification", logits), ("sigmoid_classification", branch)):
        right = sum(int(values[i].argmax()) == metadata.labels[i] for i in range(12))
        assert found[key] == {"top1": pytest.approx(100 * right / 12)}
    assert found["classification"] != found["sigmoid_classification"]
    total = Evaluation(metadata, ROWS, interval=0.1)
    total.merge(evaluation)
    assert total.compute()["sigmoid_classification"] == found["sigmoid_classification"]
