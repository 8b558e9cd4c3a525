"""--gt_boxes first: which numbers change, and that they are those of a data set with each image's first box alone."""

import numpy as np
import pytest
import torch
from conftest import arguments

import main as program
from wsol.cam import ScoreMaps, Variant
from wsol.datasets.reader import SplitMetadata
from wsol.evaluation.ground_truth import load_ground_truth
from wsol.evaluation.split import Evaluation

ROW = Variant("cam", "softmax")
OF_FIRST = {"gt_loc", "gt_loc_best", "gt_loc_val", "top1_loc", "top1_loc_best", "top1_loc_val", "top5_loc"}


def split_of(boxes, tmp_path) -> SplitMetadata:
    count = len(boxes)
    return SplitMetadata(
        "test",
        [f"{i}.png" for i in range(count)],
        np.arange(count) % 6,
        tmp_path,
        tmp_path,
        np.full((count, 2), 224),
        boxes,
    )


def measured(metadata: SplitMetadata, maps: np.ndarray, logits: torch.Tensor, gt_boxes: str) -> Evaluation:
    found = Evaluation(metadata, [ROW], interval=0.05, gt_boxes=gt_boxes)
    indices = np.arange(len(maps))
    degenerate = {ROW: np.zeros(len(maps), bool)}
    found.update(
        ScoreMaps(indices, metadata.labels, logits, None, {ROW: maps}, degenerate), load_ground_truth(metadata, indices)
    )
    return found


def square(x0: int, y0: int, side: int = 60) -> np.ndarray:
    scoremap = np.zeros((224, 224), np.float32)
    scoremap[y0 : y0 + side, x0 : x0 + side] = 1
    return scoremap


def test_by_hand(tmp_path):
    second = split_of([np.array([[10, 10, 69, 69], [100, 100, 159, 159]])], tmp_path)
    for gt_boxes, expected in (("any", 100), ("first", 0)):
        row = measured(second, square(100, 100)[None], torch.eye(6)[:1], gt_boxes).compute()["rows"][0]
        assert row["gt_loc"] == row["gt_loc_best"] == row["top1_loc"] == row["top5_loc"] == expected
        assert row["maxboxacc_v2"] == row["maxboxacc_v1"] == 100


def test_first_is_a_data_set_of_first_boxes_for_its_keys_and_any_for_all_others(tmp_path):
    random = np.random.default_rng(0)
    corners = random.integers(0, 120, (30, 3, 2))
    boxes = [
        np.concatenate([c, c + random.integers(50, 100, (3, 2))], axis=1)[: 1 + i % 3] for i, c in enumerate(corners)
    ]
    maps = np.stack(
        [
            square(*of_image[-1, :2], side=70) * random.uniform(0.2, 1, (224, 224)).astype(np.float32)
            for of_image in boxes
        ]
    )
    logits = torch.randn(30, 6)
    every, trimmed = split_of(boxes, tmp_path), split_of([of_image[:1] for of_image in boxes], tmp_path)
    computed = []
    for metadata, gt_boxes in ((every, "any"), (every, "first"), (trimmed, "any")):
        val = measured(metadata.subset(range(9)), maps[:9], logits[:9], gt_boxes)
        computed.append(measured(metadata, maps, logits, gt_boxes).compute(val))
    for blocks in ([found["rows"][0] for found in computed], [found["center"] for found in computed]):
        for of_any, of_first, of_trimmed in (blocks, [block["tau"] for block in blocks]):
            assert set(of_first) == set(of_any)
            for key in set(of_first) - {"tau"}:
                assert of_first[key] == (of_trimmed if key in OF_FIRST else of_any)[key], key
    of_any, of_first = computed[0]["rows"][0], computed[1]["rows"][0]
    assert of_any["gt_loc"] > of_first["gt_loc"] > 0 and OF_FIRST <= set(of_first)


@pytest.mark.parametrize("gt_boxes, expected", [([], "any"), (["--gt_boxes", "first"], "first")])
def test_the_flag_reaches_the_evaluation(shapes, monkeypatch, gt_boxes, expected):
    seen = []
    original = Evaluation.__init__

    def watched(self, *args, **more):
        seen.append(more["gt_boxes"])
        original(self, *args, **more)

    monkeypatch.setattr(Evaluation, "__init__", watched)
    results = program.main(arguments(shapes, "--methods", "cam", "--heads", "softmax", "--epochs", "0", *gt_boxes))
    assert set(seen) == {expected} and results["config"]["gt_boxes"] == expected
