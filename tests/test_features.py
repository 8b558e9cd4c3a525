"""Features of a frozen trunk, kept in memory or on disk, in one view or several; and a val split's activations."""

import errno
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import TinyNet, arguments, checkpoint_content, killed_after, metrics_without_times, write_dataset
from torch import nn
from torch.utils.data import DataLoader

import main as program
import wsol.features as features
from data_loaders import ImageDataset, make_loader
from wsol import dualize
from wsol.classifier import Classifier
from wsol.datasets.load import load_data
from wsol.errors import InputError
from wsol.features import FeatureCache, KeptActivations, cache_features
from wsol.workers import EpochIndex

CPU = torch.device("cpu")
SETTINGS = dict(crop_size=48, mean=(0.5,) * 3, std=(0.25,) * 3, resize_size=56)


@pytest.fixture
def images(tmp_path):
    """The training images of a data set, as they are or augmented."""
    write_dataset(tmp_path, "Shapes", images=5)
    data = load_data("Shapes", *[tmp_path / name for name in ("dataset", "metadata", "dataset")], splits=("train",))

    def dataset(augment="none", seed=3):
        return ImageDataset(data.splits["train"], augment=augment, seed=seed, **SETTINGS)

    return dataset


def trained_dual():
    dual = dualize(TinyNet(3), target_layer="features.6")
    nn.init.normal_(dual.sigmoid_head.weight)
    return dual


def computed(dual, dataset, cache, workers=0):
    return cache_features(dual, make_loader(dataset, 4, workers, 0), CPU, None, cache)


def expected_features(dual, dataset, view):
    batch = torch.stack([dataset[EpochIndex(i, (features._VIEWS, view + 1))][0] for i in range(len(dataset))])
    with torch.no_grad():
        return dual.eval().head_input(batch)


@pytest.mark.parametrize("mode", ["ram", "disk", "auto"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_sees_the_next_view(images, tmp_path, mode, half, workers):
    dual, dataset = trained_dual(), images("crop_flip")
    found = computed(dual, dataset, FeatureCache(mode, tmp_path / "cache", views=3, half=half), workers)
    assert found.parts[0].shape == (3, 15, 16) and found.parts[0].dtype == (np.float16 if half else np.float32)
    for epoch in range(1, 6):
        batch, labels, indices = found.__getitems__([EpochIndex(i, (7, epoch)) for i in (4, 0, 14)])
        expected = expected_features(dual, dataset, (epoch - 1) % 3)[[4, 0, 14]]
        assert batch.dtype == torch.float32 and torch.allclose(batch, expected, atol=2e-3 if half else 1e-6)
        assert labels.tolist() == dataset.metadata.labels[[4, 0, 14]].tolist() and indices.tolist() == [4, 0, 14]
    views = [expected_features(dual, dataset, view) for view in range(3)]
    assert not torch.allclose(views[0], views[1], atol=1e-3)


def test_files_are_found_again_only_for_the_same_features(images, tmp_path, monkeypatch):
    dual, cache = trained_dual(), FeatureCache("disk", tmp_path / "cache", views=2)
    first = computed(dual, images("crop_flip"), cache)
    passes = []
    dual.network.features[0].register_forward_hook(lambda *_: passes.append(1))
    again = computed(dual, images("crop_flip"), cache)
    assert not passes and all(np.array_equal(a, b) for a, b in zip(first.parts, again.parts, strict=True))
    nn.init.normal_(dual.network.fc.weight)  # the head's weights do not matter to its input
    computed(dual, images("crop_flip"), cache)
    assert not passes
    others = {
        "settings": lambda: computed(dual, images("crop_flip", seed=4), cache),
        "no augmentation": lambda: computed(dual, images(), cache),
        "views": lambda: computed(dual, images("crop_flip"), FeatureCache("disk", tmp_path / "cache", views=1)),
        "half": lambda: computed(dual, images("crop_flip"), FeatureCache("disk", tmp_path / "cache", 2, True)),
    }
    for what, compute in others.items():
        passes.clear()
        compute()
        assert passes, what
    passes.clear()
    os.utime(images().metadata.image_path(3), (1, 1))  # replaced by another file
    computed(dual, images("crop_flip"), cache)
    assert passes
    passes.clear()
    with torch.no_grad():
        dual.network.features[0].weight.mul_(2)
    computed(dual, images("crop_flip"), cache)
    assert passes
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1 + len(others) + 2


def test_a_pass_that_was_cut_off_leaves_no_features(images, tmp_path, monkeypatch):
    dual, cache = trained_dual(), FeatureCache("disk", tmp_path / "cache")
    real, calls = dual.head_input, []

    def fails_later(batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(batch)

    monkeypatch.setattr(dual, "head_input", fails_later)
    with pytest.raises(KeyboardInterrupt):
        computed(dual, images(), cache)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    monkeypatch.undo()
    killed = tmp_path / "cache" / f".{features._key(dual, images(), None, 1, cache, None)}.tmp"
    killed.mkdir()  # as kill -9 leaves it
    (killed / "part0.npy").write_bytes(b"half of it")
    found = computed(dual, images(), cache)
    assert not killed.exists() and np.allclose(found.parts[0][0], expected_features(dual, images(), 0), atol=1e-6)


def test_a_full_disk(images, tmp_path, monkeypatch, capsys):
    dual, folder = trained_dual(), tmp_path / "cache"

    class Full:
        def write(self, _content):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = features._OnDisk.add
    monkeypatch.setattr(
        features._OnDisk, "add", lambda self, parts: setattr(self, "_files", [Full()]) or real(self, parts)
    )
    monkeypatch.setattr(Full, "close", lambda self: None, raising=False)
    with pytest.raises(InputError, match="cannot write features to .*: No space left on device; make room"):
        computed(dual, images(), FeatureCache("disk", folder))
    monkeypatch.undo()
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="--feature_cache disk: the features take 960 bytes, and .* has 10 bytes"):
        computed(dual, images(), FeatureCache("disk", folder))
    monkeypatch.setattr(features, "RAM_BYTES", 100)
    assert computed(dual, images(), FeatureCache("auto", folder)) is None
    monkeypatch.setattr(features.os, "sysconf", lambda _name: 1)
    with pytest.raises(InputError, match="--feature_cache ram: the features take 960 bytes, and 1 bytes of memory"):
        computed(dual, images(), FeatureCache("ram", folder))


def test_damaged_files_are_named(images, tmp_path):
    dual, cache = trained_dual(), FeatureCache("disk", tmp_path / "cache")
    computed(dual, images(), cache)
    (file,) = (tmp_path / "cache").rglob("part0.npy")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="are damaged .*; remove that folder"):
        computed(dual, images(), cache)


# ------------------------------------------------------------------- runs

VIEWS = ("--augment", "crop_flip", "--feature_views", "2", "--methods", "gradcam", "--epochs", "3")


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_a_run_on_views_killed_and_resumed(shapes, monkeypatch, mode):
    flags = [*VIEWS, "--feature_cache", mode]
    program.main(arguments(shapes, *flags, name="whole"))
    killed_after(monkeypatch, 5, *arguments(shapes, *flags, name="killed"))
    program.main(["--root", str(shapes / "runs"), "--experiment_name", "killed", "--resume"])
    found, expected = (checkpoint_content(shapes / f"runs/{name}")["state_dict"] for name in ("killed", "whole"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert (shapes / "runs/feature_cache").is_dir() == (mode == "disk")


def test_ram_and_disk_train_the_same_weights(shapes):
    for mode in ("ram", "disk"):
        program.main(arguments(shapes, *VIEWS, "--feature_cache", mode, "--train_only", name=mode))
    ram, disk = (checkpoint_content(shapes / f"runs/{name}")["state_dict"] for name in ("ram", "disk"))
    assert all(torch.equal(tensor, disk[name]) for name, tensor in ram.items())


def test_the_branch_is_chosen_on_the_views(shapes, capsys):
    flags = ["--branch_choice", "val", "--augment", "crop_flip", "--feature_views", "2", "--methods", "cam"]
    program.main(arguments(shapes, *flags, "--train_only"))
    assert capsys.readouterr().out.count("features: ") == 2  # for the vanilla stage, and with regions for the branch
    with pytest.raises(InputError, match="cannot change --feature_views"):
        program.main(["--root", str(shapes / "runs"), "--experiment_name", "run", "--resume", "--feature_views", "3"])


@pytest.mark.parametrize("methods", ["cam", "gradcam", "layercam", "finercam", "ablationcam", "eigencam"])
def test_val_on_kept_activations_is_val_on_the_images(shapes, monkeypatch, methods):
    passes = []
    flags = ["--methods", methods, "--augment", "none", "--epochs", "3", "--vanilla_epochs", "0", "--train_only"]
    real = Classifier.forward
    monkeypatch.setattr(
        Classifier, "forward", lambda self, images: passes.append(images.shape[1]) or real(self, images)
    )
    program.main(arguments(shapes, *flags, name="kept"))
    from_images = passes.count(3)
    passes.clear()
    program.main(arguments(shapes, *flags, "--feature_cache", "off", name="images"))
    assert passes.count(3) >= from_images + 2 * 3  # two more validations of three batches
    kept, plain = (metrics_without_times(shapes / f"runs/{name}") for name in ("kept", "images"))
    for a, b in zip(kept, plain, strict=True):
        assert a.keys() == b.keys()
        assert all(a[key] == pytest.approx(b[key], abs=1e-4) for key in a if key not in ("stage", "split")), (a, b)


@pytest.mark.parametrize("method", ["scorecam", "fullgrad", "randomcam", "refinecam"])
def test_methods_that_need_more_are_measured_on_images(method):
    assert not KeptActivations(method, 10).usable


def test_what_cannot_be_kept(monkeypatch):
    dual = trained_dual().eval()
    images, labels = torch.randn(4, 3, 48, 48), np.zeros(4, np.int64)
    activations = dual.network.features(images).detach()
    logits = dual(images).logits.detach()

    def kept(model, activations=activations, logits=logits):
        cache = KeptActivations("cam", 4)
        cache.add(model, activations, labels, np.arange(4), logits)
        return cache.source(model, DataLoader([0], batch_size=2))[0] is not model

    assert kept(dual)
    assert not kept(dual, logits=logits + 1)  # another pooling, say
    assert not kept(dual, torch.randn(4, 5, 6, 6))
    assert not kept(trained_dual().set_trainable(["trunk"]).eval())
    monkeypatch.setattr(features, "RAM_BYTES", 10)
    assert not kept(dual)
