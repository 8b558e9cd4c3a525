"""Decoded images in a file: the same tensors and results, found again, never half there."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import arguments

import main as program
from data_loaders import ImageDataset
from wsol import files
from wsol.datasets import images
from wsol.datasets.load import load_data
from wsol.errors import InputError
from wsol.image_cache import cached_images
from wsol.workers import EpochIndex


def split(root):
    return load_data("Shapes", root / "dataset", root / "metadata", root / "dataset", splits=("train",)).splits["train"]


@pytest.mark.parametrize("augment, side", [("none", 48), ("crop_flip", 56)])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_tensors_are_the_same(shapes, augment, side, workers):
    metadata = split(shapes)
    settings = dict(crop_size=48, mean=(0.5,) * 3, std=(0.2,) * 3, augment=augment, resize_size=56, seed=3)
    plain = ImageDataset(metadata, **settings)
    decoded = cached_images(metadata, side, shapes / "cache", workers)
    cached = pickle.loads(pickle.dumps(ImageDataset(metadata, **settings, decoded=decoded)))
    for index in range(len(metadata)):
        index = EpochIndex(index, (1, 2))
        assert torch.equal(cached[index][0], plain[index][0]) and cached[index][1:] == plain[index][1:]
    assert len(list((shapes / "cache").glob("*.npy"))) == 1 and not list((shapes / "cache").glob(".*.tmp"))


def test_a_run_is_the_same_and_decodes_once(shapes, monkeypatch):
    flags = ["--augment", "crop_flip", "--methods", "cam", "--model_structure", "vanilla", "--unfreeze_layer", "all"]
    plain = program.main(arguments(shapes, *flags, name="plain"))
    cached = program.main(arguments(shapes, *flags, "--image_cache", name="cached"))
    assert cached["rows"] == plain["rows"]
    assert len(list((shapes / "runs/image_cache").glob("*.npy"))) == 3  # of each split
    monkeypatch.setattr("data_loaders.load_image", lambda path: pytest.fail(f"{path} is read again"))
    assert program.main(arguments(shapes, *flags, "--image_cache", name="again"))["rows"] == plain["rows"]


def test_another_image_is_another_file(shapes):
    before = cached_images(split(shapes), 16, shapes / "cache", 0).path
    (shapes / "dataset/Shapes/train/0/1.png").write_bytes((shapes / "dataset/Shapes/train/1/1.png").read_bytes())
    after = cached_images(split(shapes), 16, shapes / "cache", 0)
    assert after.path != before and np.array_equal(after[1], cached_images(split(shapes), 16, shapes / "cache", 0)[5])


def test_what_goes_wrong_is_named(shapes, monkeypatch):
    metadata, folder = split(shapes), shapes / "cache"
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"--image_cache: 12 images take 9.0 KiB, and .* has 1,000 bytes; make room"):
        cached_images(metadata, 16, folder, 0)
    monkeypatch.undo()
    real = images.load_image
    monkeypatch.setattr("wsol.image_cache.load_image", lambda path: real(path.with_name("missing.png")))
    with pytest.raises(InputError, match="missing.png"):
        cached_images(metadata, 16, folder, 0)
    monkeypatch.undo()
    assert not list(folder.glob("*.npy")) and not list(folder.glob(".*.tmp"))
    path = cached_images(metadata, 16, folder, 0).path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="are damaged .*; remove that file"):
        cached_images(metadata, 16, folder, 0)
