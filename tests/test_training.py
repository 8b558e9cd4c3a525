"""The schedule, the optimizer's groups, the seeds and the feature cache."""

from functools import partial

import pytest
import torch
from conftest import TinyNet
from test_dual_head import Conv1x1Net
from torch.utils.data import DataLoader, TensorDataset

import wsol.features
from wsol import device, dualize, training
from wsol.errors import InputError
from wsol.losses import OBJECTIVES
from wsol.methods.base import TrainingMethod

SETTINGS = dict(lr=0.1, classifier_ratio=10, momentum=0.9, weight_decay=1e-4)


def test_learning_rate_falls_at_the_start_of_epochs_n_2n():
    factors = [training.decay(epoch, 3) for epoch in range(1, 8)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("done", [0, 1, 2, 4])
def test_every_group_follows_the_schedule_also_after_a_resume(done):
    """The rates that SGD gets, epoch by epoch; a run that resumes after `done` epochs gets the same ones."""
    dual = dualize(TinyNet(5)).set_trainable(["trunk", "sigmoid_head"])
    settings = dict(classifier_ratio=10, momentum=0.9, weight_decay=0.0)
    trainer = trainer_of(torch.randn(4, 3, 32, 32), decay_frequency=2, **settings)
    objective = OBJECTIVES["b2"]("cross_entropy", "binary_cross_entropy")
    resumed = {"epoch": done, "optimizer": training.make_optimizer(dual, lr=7.0, **settings).state_dict()}
    rates = {
        epoch.number: (epoch.lr, *(group["lr"] for group in epoch.optimizer.param_groups))
        for epoch in trainer.fit(dual, objective, "b2", epochs=5, lr=1e-3, resumed=resumed if done else None)
    }
    factors = {1: 1.0, 2: 0.1, 3: 0.1, 4: 0.01, 5: 0.01}
    assert list(rates) == list(range(done + 1, 6))
    for number, found in rates.items():
        assert found == pytest.approx((1e-3 * factors[number], 1e-3 * factors[number], 1e-2 * factors[number]))


def test_heads_learn_ten_times_as_fast():
    dual = dualize(TinyNet(5)).set_trainable(["trunk", "softmax_head", "sigmoid_head"])
    trunk, heads = training.make_optimizer(dual, **SETTINGS).param_groups
    assert (trunk["lr"], heads["lr"]) == (0.1, 1.0)
    assert trunk["nesterov"] and heads["momentum"] == 0.9
    ids = {id(p) for p in heads["params"]}
    assert ids == {id(p) for head in dual.heads().values() for p in head.parameters()}


def test_only_what_may_learn_is_optimized():
    dual = dualize(TinyNet(5))
    (group,) = training.make_optimizer(dual, **SETTINGS).param_groups
    assert [p.shape for p in group["params"]] == [(5, 16), (5,)] and group["lr"] == 1.0
    with pytest.raises(InputError, match="nothing is left to train"):
        training.make_optimizer(dual.set_trainable([]), **SETTINGS)


def test_no_momentum_no_nesterov():
    optimizer = training.make_optimizer(dualize(TinyNet(5)), **SETTINGS | {"momentum": 0.0})
    assert not optimizer.param_groups[0]["nesterov"]


def loader_of(images: torch.Tensor, batch_size: int = 4) -> DataLoader:
    labels = torch.arange(len(images)) % 5
    data = TensorDataset(images, labels, torch.arange(len(images)))
    data.augment = "none"
    return DataLoader(data, batch_size)


def trainer_of(images: torch.Tensor, decay_frequency: int = 3, **settings: float) -> training.Trainer:
    return training.Trainer(
        loader_of(images),
        torch.device("cpu"),
        seed=0,
        set_epoch=lambda *_: None,
        decay_frequency=decay_frequency,
        **settings,
    )


def test_cached_features_are_the_heads_input_in_order():
    dual = dualize(TinyNet(5)).train()
    images = torch.randn(10, 3, 32, 32)
    features = training.cache_features(dual, loader_of(images), torch.device("cpu"))
    found, labels, indices = features.__getitems__(range(10))
    dual.eval()
    with torch.no_grad():
        assert torch.allclose(found, dual.network.features(images).mean(dim=(2, 3)), atol=1e-6)
    assert labels.tolist() == [0, 1, 2, 3, 4] * 2 and indices.tolist() == list(range(10))
    assert training.features_can_be_cached(dual, loader_of(images).dataset)
    assert not training.features_can_be_cached(dual.set_trainable(["trunk"]), loader_of(images).dataset)


def test_nothing_is_cached_where_something_follows_the_head_or_memory_is_short(monkeypatch):
    images, cpu = torch.randn(4, 3, 32, 32), torch.device("cpu")
    assert training.cache_features(dualize(Conv1x1Net()), loader_of(images), cpu) is None
    monkeypatch.setattr(wsol.features, "RAM_BYTES", 4 * 16 * 4 - 1)
    assert training.cache_features(dualize(TinyNet(5)), loader_of(images), cpu) is None
    monkeypatch.setattr(wsol.features, "RAM_BYTES", 4 * 16 * 4)
    assert training.cache_features(dualize(TinyNet(5)), loader_of(images), cpu) is not None


def test_one_epoch_reports_means_over_images():
    dual = dualize(TinyNet(5))
    images = torch.randn(7, 3, 32, 32)
    objective = OBJECTIVES["b2"]("cross_entropy", "binary_cross_entropy")
    frozen = torch.optim.SGD(dual.sigmoid_head.parameters(), lr=0.0)
    step = partial(TrainingMethod().loss, dual, training.on_images(dual), objective)
    figures = training.train_one_epoch(step, loader_of(images), frozen, torch.device("cpu"))
    labels = torch.arange(7) % 5
    output = dual(images)
    assert figures["loss"] == pytest.approx(objective(output, labels).item(), rel=1e-5)
    assert figures["top1"] == pytest.approx(100 * (output.logits.argmax(1) == labels).float().mean().item())


def test_a_loss_that_explodes_is_said_so():
    dual = dualize(TinyNet(5))
    images = torch.full((4, 3, 32, 32), float("inf"))
    optimizer = torch.optim.SGD(dual.sigmoid_head.parameters(), lr=0.1)
    objective = OBJECTIVES["b2"]("cross_entropy", "binary_cross_entropy")
    with pytest.raises(InputError, match="no longer finite .*smaller --lr"):
        training.train_one_epoch(
            partial(TrainingMethod().loss, dual, training.on_images(dual), objective),
            loader_of(images),
            optimizer,
            torch.device("cpu"),
            "b2 epoch 1",
        )


def test_devices(monkeypatch):
    if not torch.cuda.is_available():
        assert device.select_device([1]) == torch.device("cpu")
    chosen, warned = [], []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(device.log, "warning", lambda message, *_: warned.append(message))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    assert device.select_device([1]) == torch.device("cuda", 1) and chosen == [1] and not warned
    assert device.select_device([0, 1]) == torch.device("cuda", 0) and "one device per process" in warned[0]
    with pytest.raises(InputError, match="--gpus 2: this machine has the CUDA devices 0..1"):
        device.select_device([2])


def test_features_cached_ahead_of_training_count_for_its_first_epoch(monkeypatch):
    dual = dualize(TinyNet(5))
    trainer = trainer_of(torch.randn(4, 3, 32, 32), classifier_ratio=10, momentum=0.9, weight_decay=0.0)
    clock = iter([0.0, 50.0, 100.0, 200.0, 201.0, 201.0, 202.0, 202.0])  # caching takes 100 s, each epoch 1 s
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(training, "progress", lambda loader, title: loader)
    assert trainer.caches_features(dual)
    objective = OBJECTIVES["b2"]("cross_entropy", "binary_cross_entropy")
    assert [epoch.seconds for epoch in trainer.fit(dual, objective, "b2", epochs=2, lr=1e-3)] == [101.0, 1.0]
