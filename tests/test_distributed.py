"""The same images over 1, 2 and 4 processes, unevenly: the same numbers to the last digit, on every process."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from wsol import distributed
from wsol.metrics import BoxAccuracy, PixelAveragePrecision

# torch is imported once, the loops are compiled once, and the processes of both groups are forked from there.
GROUPS = """
import json, sys
import torch.multiprocessing
from torch import distributed as dist
sys.path[:0] = sys.argv[2:4]
import test_distributed


def work(rank, sizes, folder):
    size = len(sizes)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group{size}", rank=rank, world_size=size)
    start = sum(sizes[:rank])
    found = test_distributed.measure(range(start, start + sizes[rank]))
    found["shard"] = list(test_distributed.distributed.shard(11))
    found["main"] = test_distributed.distributed.is_main()
    with open(f"{folder}/{size}-{rank}.json", "w") as file:
        json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    test_distributed.measure(range(1))
    for sizes in ([8, 3], [6, 0, 1, 4]):
        torch.multiprocessing.start_processes(work, (sizes, sys.argv[1]), len(sizes), start_method="fork")
"""


def images():
    random = np.random.default_rng(0)
    maps = random.random((11, 12, 12)).astype(np.float32) ** 3
    boxes = [np.sort(random.integers(0, 12, (1 + i % 2, 2, 2)), axis=1).reshape(-1, 4) for i in range(11)]
    masks = random.choice([0, 1, 255], (11, 12, 12)).astype(np.uint8)
    masks[1:8] *= masks[1:8] != 1  # a process may see no foreground
    return maps, boxes, masks, random.random(11) < 0.5


def measure(part):
    """What the metrics of all images give, of which this process sees `part`, and how many images that are."""
    maps, boxes, masks, top1 = images()
    part = slice(part.start, part.stop)
    accuracy, val = BoxAccuracy(0.01, resolution=12, threads=1), BoxAccuracy(0.01, resolution=12, threads=1)
    accuracy.update(maps[part], boxes[part], top1[part])
    val.update(maps[part] ** 2, boxes[part])
    pixels = PixelAveragePrecision(0.01, resolution=12, threads=1)
    pixels.update(maps[part], masks[part])
    totals = accuracy.over_processes(), val.over_processes(), pixels.over_processes()
    results = [
        totals[0].compute(totals[1]),
        totals[2].compute(),
        totals[2].has_foreground,
        {key: value.tolist() for key, value in totals[0].curve()["maxboxacc"].items()},
    ]
    return {"results": json.loads(json.dumps(results)), "images": accuracy.num_images}


def test_processes_agree_to_the_last_digit(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GROUPS, str(tmp_path), str(ROOT), str(ROOT / "tests")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone = measure(range(11))
    assert alone["results"][0]["maxboxacc_v2"] > 0 and alone["results"][1]["pxap"] > 0
    for sizes in ([8, 3], [6, 0, 1, 4]):
        found = [json.loads((tmp_path / f"{len(sizes)}-{rank}.json").read_text()) for rank in range(len(sizes))]
        assert [one["results"] for one in found] == [alone["results"]] * len(sizes)
        assert [one["images"] for one in found] == sizes
        assert sorted(index for one in found for index in one["shard"]) == list(range(11))  # each once
        assert [one["main"] for one in found] == [True] + [False] * (len(sizes) - 1)


def test_one_process():
    assert not distributed.is_initialized() and distributed.is_main()
    assert (distributed.rank(), distributed.world_size(), list(distributed.shard(3))) == (0, 1, [0, 1, 2])
    counts = {"a": np.arange(3), "b": np.array(7)}
    summed = distributed.sum_counts(counts)
    assert summed["a"].tolist() == [0, 1, 2] and summed["b"] == 7 and summed["a"] is not counts["a"]
    with pytest.raises(TypeError, match="share is float64"):
        distributed.sum_counts({"share": np.array([0.5])})


def test_reset():
    maps, boxes, masks, top1 = images()
    accuracy, pixels = BoxAccuracy(resolution=12), PixelAveragePrecision(resolution=12)
    for _ in range(2):
        accuracy.update(maps, boxes, top1)
        pixels.update(maps, masks)
        accuracy.reset()
        pixels.reset()
    assert accuracy.num_images == 0 and not pixels.has_foreground
    assert all(not count.any() and count.dtype == np.int64 for count in accuracy.state().values())
