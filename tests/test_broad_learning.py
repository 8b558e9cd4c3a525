"""The broad learning system against float64 NumPy written from the paper, in any chunks, over several processes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from wsol import BroadLearningSystem
from wsol.errors import InputError

PROCESSES = """
import sys
import torch.multiprocessing
from torch import distributed as dist
sys.path[:0] = sys.argv[2:4]
import test_broad_learning as t


def work(rank, size, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=size)
    features, labels = t.data(90, 20, 5)
    system = t.BroadLearningSystem(alpha=3, step=3)
    for part in [(0, 50), None, (50, 90)][rank : rank + 1]:
        if part is not None:  # one process has no image at all
            system.partial_fit(features[part[0] : part[1]], labels[part[0] : part[1]])
    t.torch.save(system.finish().weight, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    torch.multiprocessing.start_processes(work, (3, sys.argv[1]), 3, start_method="fork")
"""


def ridge(a, y, alpha):
    """Columns centred and divided by their L2 norm, the labels centred; coefficients for the centred columns."""
    a, y = a - a.mean(axis=0), y - y.mean(axis=0)
    norms = np.sqrt((a**2).sum(axis=0))
    norms[norms < 1e-9] = 1
    a = a / norms
    return np.linalg.solve(a.T @ a + alpha * np.eye(a.shape[1]), a.T @ y) / norms[:, None]


def oracle(features, labels, alpha, step):
    """Image by image and node by node, as the method is described."""
    x, y = np.asarray(features, np.float64), np.asarray(labels, np.float64)
    sigma = x.std(axis=0)
    sigma[sigma < 1e-9] = 1
    z = (x - x.mean(axis=0)) / sigma
    v0 = ridge(z, y, alpha) / sigma[:, None]
    ranks = np.round(v0 / max(np.abs(v0).max(), 1e-300) * 1e9)  # duplicates of a feature are ties
    nodes = int((ranks > 0).sum(axis=0).min()) // step
    theta = np.zeros((x.shape[1], 0))
    for k in range(y.shape[1]):
        order = np.argsort(-ranks[:, k], kind="stable")
        for j in range(nodes):
            column = np.zeros(x.shape[1])
            chosen = order[j * step : (j + 1) * step]
            column[chosen] = v0[chosen, k] / step
            theta = np.column_stack([theta, column])
    u = ridge(np.column_stack([z, z @ theta]), y, alpha)
    return ((u[: x.shape[1]] + theta @ u[x.shape[1] :]) / sigma[:, None]).T, nodes


def data(images, features, classes, seed=0, several=False):
    random = np.random.default_rng(seed)
    labels = np.eye(classes)[random.integers(0, classes, images)]
    if several:
        labels = (random.random((images, classes)) < 0.3).astype(np.float64)
    means = random.random((classes, features))
    return np.maximum(labels @ means + 0.5 * random.standard_normal((images, features)), 0), labels


CASES = {
    "even": dict(images=200, features=40, classes=6),
    "odd": dict(images=200, features=40, classes=7),
    "one class": dict(images=50, features=30, classes=1),
    "more features than images": dict(images=20, features=60, classes=3),
    "several labels": dict(images=150, features=40, classes=5, several=True),
}


@pytest.mark.parametrize("step", [2, 7, 1000])
@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_the_oracle_s(case, step):
    features, labels = data(**CASES[case])
    expected, nodes = oracle(features, labels, 5.0, step)
    assert (nodes > 0) == (step < 1000 and case != "one class")
    found = BroadLearningSystem(alpha=5, step=step).fit(features, labels).weight
    assert found.dtype == torch.float64 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_the_authors_settings():
    features, labels = data(400, 700, 3)
    expected, nodes = oracle(features, labels, 50, 64)
    assert nodes > 1
    found = BroadLearningSystem(step=64).fit(features, labels).weight
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["constant", "rank-deficient", "zero", "labels of one class"])
def test_degenerate_data(kind):
    features, labels = data(80, 24, 5)
    if kind == "constant":
        features[:, 3], features[:, 7] = 0.1, 1234.5
    elif kind == "rank-deficient":
        features[:, 12:] = features[:, :12] @ np.random.default_rng(1).random((12, 12))
    elif kind == "zero":
        features[:] = 0
    else:
        labels = np.eye(5)[np.full(80, 2)]
    found = BroadLearningSystem(alpha=5, step=3).fit(features, labels).weight.numpy()
    expected, _ = oracle(features, labels, 5.0, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * max(np.abs(expected).max(), 1e-3))
    if kind == "constant":
        assert not found[:, [3, 7]].any()
    if kind in ("zero", "labels of one class"):
        assert not found.any()


@pytest.mark.parametrize("offset, spread", [(0.0, 1.0), (1000.0, 1.0), (0.0, 1e-4), (3e4, 10.0)])
def test_chunks_of_any_size_and_order(offset, spread):
    features, labels = data(300, 40, 5, seed=4)
    features = offset + spread * features
    features[:, 20:30] = features[:, :10]  # duplicates: ties in every ranking
    features[:, 35] = 7.7
    whole = BroadLearningSystem(alpha=5, step=3).fit(features, labels).weight
    expected, nodes = oracle(features, labels, 5.0, 3)
    assert nodes > 1 and np.abs(whole.numpy() - expected).max() < 1e-6 * np.abs(expected).max()
    random = np.random.default_rng(5)
    for size in (1, 7, 64, 299):
        order = random.permutation(300)
        system = BroadLearningSystem(alpha=5, step=3)
        merged = BroadLearningSystem(alpha=5, step=3)
        for start in range(0, 300, size):
            part = order[start : start + size]
            system.partial_fit(features[part], torch.from_numpy(labels[part]))
            system._add_waiting()  # whatever the size of the buffer
            merged.merge(BroadLearningSystem().partial_fit(features[part], labels[part]))
        for found in (system.finish().weight, merged.finish().weight):
            assert float((found - whole).abs().max()) < 1e-9 * float(whole.abs().max())


def test_float32_features_and_whole_labels():
    features, labels = data(100, 20, 4)
    single = torch.from_numpy(features).float()
    expected = BroadLearningSystem(step=2).fit(single.double(), labels).weight
    assert torch.equal(BroadLearningSystem(step=2).fit(single, torch.from_numpy(labels).long()).weight, expected)
    assert torch.equal(BroadLearningSystem(step=2).fit(single, labels.astype(bool)).weight, expected)


def test_more_images_may_follow():
    features, labels = data(100, 20, 4)
    system = BroadLearningSystem(step=2).partial_fit(features[:60], labels[:60])
    part = system.finish().weight
    system.partial_fit(features[60:], labels[60:])
    with pytest.raises(RuntimeError, match="call finish"):
        _ = system.weight
    whole = BroadLearningSystem(step=2).fit(features, labels)
    torch.testing.assert_close(system.finish().weight, whole.weight, rtol=1e-9, atol=1e-12)
    assert not torch.equal(part, whole.weight) and system.num_images == 100
    assert torch.equal(whole.fit(features[:60], labels[:60]).weight, part)  # fit starts anew


def test_one_image():
    assert not BroadLearningSystem().fit([[1.0, 2.0]], [[1, 0, 0]]).weight.any()


def test_three_processes(tmp_path):
    argv = [sys.executable, "-c", PROCESSES, str(tmp_path), str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    expected = BroadLearningSystem(alpha=3, step=3).fit(*data(90, 20, 5)).weight
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert float((found[0] - expected).abs().max()) < 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: BroadLearningSystem(alpha=0), "alpha must be a number above 0, got 0"),
        (lambda: BroadLearningSystem(alpha=float("nan")), "alpha must be a number above 0, got nan"),
        (lambda: BroadLearningSystem(step=0), "step must be at least 1, got 0"),
        (lambda: BroadLearningSystem().fit(np.ones((3, 2)), np.ones(3)), r"got \(3, 2\) and \(3,\)"),
        (lambda: BroadLearningSystem().fit(np.ones((3, 2)), np.ones((4, 2))), r"got \(3, 2\) and \(4, 2\)"),
        (lambda: BroadLearningSystem().fit([[1.0, np.nan]], [[1.0]]), "must be finite"),
        (lambda: BroadLearningSystem().finish(), "needs at least one image"),
        (lambda: BroadLearningSystem().fit(np.ones((0, 2)), np.ones((0, 2))), "needs at least one image"),
    ],
)
def test_what_cannot_be_fitted_is_named(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


def test_chunks_of_other_sizes_are_named():
    system = BroadLearningSystem().partial_fit(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(InputError, match="3 features and 4 classes, after 2 and 4 before"):
        system.partial_fit(np.ones((3, 3)), np.ones((3, 4)))
