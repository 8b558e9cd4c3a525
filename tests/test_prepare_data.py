"""scripts/prepare_data.sh: says where data sets are, links what was downloaded, deletes nothing."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, write_dataset


def run(tmp_path, *argv):
    return subprocess.run(
        [str(ROOT / "scripts/prepare_data.sh"), *map(str, argv)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable},
    )


def test_it_explains_and_writes_nothing(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0 and all(name in done.stdout for name in ("ILSVRC", "CUBv2", "OpenImages30k", "Cars"))
    assert "image-net.org" in run(tmp_path, "ILSVRC").stdout
    assert run(tmp_path, "--help").stdout.startswith("Where each data set")
    for argv in (["NABirds"], ["CUB", "nowhere"], ["ILSVRC", "."]):
        done = run(tmp_path, *argv)
        assert done.returncode == 2 and "prepare_data.sh: error: " in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ILSVRC", "CARS", "CUB", "OpenImages"])
def test_it_links_and_checks(tmp_path, name):
    """Two downloads (images of two splits each) become one data set whose files are all found."""
    downloads = []
    for number, splits in enumerate((("train", "test"), ("val",))):
        for split in splits:
            folder = f"cars_{split}" if name == "CARS" else ""
            write_dataset(tmp_path / f"d{number}", name, splits=(split,), folder=folder, images=1)
        downloads.append(tmp_path / f"d{number}/dataset" / name)
    if name == "ILSVRC":  # whose val split is in val2/, and whose test split is val/
        (downloads[0] / "test").rename(downloads[0] / "val")
        (downloads[1] / "val").rename(downloads[1] / "val2")
    for path in [p for d in downloads for p in d.rglob("*.png")]:
        path.rename(path.with_suffix(".jpg"))
    before = {p: p.read_bytes() for d in downloads for p in d.rglob("*.jpg")}
    done = run(tmp_path, name, *downloads)
    assert done.returncode == 0, done.stderr
    assert f"metadata has no metadata of {name} yet" in done.stdout
    linked_files = [file for _, _, files in os.walk(tmp_path / "dataset" / name, followlinks=True) for file in files]
    assert len(linked_files) == len(before) - (6 if name == "CARS" else 0)  # CARS has no val split
    assert run(tmp_path, name, *downloads).returncode == 0  # again: nothing changes
    assert {p: p.read_bytes() for d in downloads for p in d.rglob("*.jpg")} == before
    (tmp_path / "metadata").mkdir()
    (tmp_path / "d0/metadata" / name).rename(tmp_path / "metadata" / name)
    done = run(tmp_path, name, *downloads)
    assert (
        done.returncode == 1 and "wrong: train: " in done.stdout
    )  # the check runs: these are not the real 200 classes
