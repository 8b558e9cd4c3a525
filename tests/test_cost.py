"""What methods cost: the meter never makes the device wait, and long methods say how far they are."""

import io
import sys

import pytest
import torch
from conftest import TinyNet

from wsol.cam import CamExtractor, Meter, perturbation
from wsol.cam import cost as cost_module
from wsol.log import progress


class FakeEvent:
    """A CUDA event that a device reaches one tick after it was recorded, once the device gets to it."""

    clock, done = 0, False  # of all events

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        FakeEvent.clock += 1
        self.time = FakeEvent.clock

    def query(self):
        return FakeEvent.done

    def synchronize(self):
        FakeEvent.done = True

    def elapsed_time(self, end):
        assert FakeEvent.done, "the device is not there yet"
        return 1000.0 * (end.time - self.time)


@pytest.fixture
def cuda(monkeypatch):
    """A pretended CUDA device on which waiting for everything is an error; returns it."""

    def refuse(*_):
        raise AssertionError("measuring waited for the device")

    monkeypatch.setattr(FakeEvent, "clock", 0)
    monkeypatch.setattr(FakeEvent, "done", False)
    for name, replacement in {
        "synchronize": refuse,
        "Event": FakeEvent,
        "current_stream": lambda device: None,
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 2**20,
        "max_memory_allocated": lambda device: 3 * 2**20,
    }.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    return torch.device("cuda")


def test_on_cuda_only_the_summary_waits(cuda):
    """Blocks are measured by events in the device's queue; the times are added up when somebody asks for them."""
    meter = Meter()
    for part in ("forward", "gradcam", "forward"):
        with meter.measure(part, cuda):
            pass
    assert [cost.seconds for cost in meter.costs.values()] == [0, 0] and not FakeEvent.done
    assert meter.summary() == {"forward": {"seconds": 2.0, "mib": 2.0}, "gradcam": {"seconds": 1.0, "mib": 2.0}}
    assert meter.summary()["forward"]["seconds"] == 2.0  # not twice


def test_events_that_the_device_has_passed_are_not_kept(cuda, monkeypatch):
    """Memory stays the same however many batches are measured."""
    monkeypatch.setattr(FakeEvent, "done", True)
    meter = Meter()
    for _ in range(100):
        with meter.measure("forward", cuda):
            pass
    assert len(meter._queued) == 0 and meter.costs["forward"].seconds == 100


def test_on_the_cpu_the_clock_is_read(monkeypatch):
    times = iter([1.0, 3.5])
    monkeypatch.setattr(cost_module.time, "perf_counter", lambda: next(times))
    meter = Meter()
    with meter.measure("cam", torch.device("cpu")):
        pass
    assert meter.summary()["cam"]["seconds"] == 2.5


@pytest.mark.parametrize("method, passes", [("scorecam", 2 * 16 / 8), ("ablationcam", 2 * 16 / 8)])
def test_perturbing_methods_have_a_progress_bar_within_a_batch(monkeypatch, method, passes):
    """Each channel of each image is a pass of its own, which takes minutes on a large network."""
    shown = []

    def note(items, title, **options):
        shown.append((title, len(items), options["delay"] > 0))
        return items

    monkeypatch.setattr(perturbation, "progress", note)
    network = TinyNet(5)
    torch.nn.init.constant_(network.features[5].bias, 1.0)  # no channel is zero everywhere
    with CamExtractor(network, [method], target_layer="features.6", perturb_batch=8) as extract:
        extract(torch.rand(2, 3, 48, 48))
    ((title, length, delayed),) = shown
    assert title == f"{method}, this batch" and length == passes and delayed


def test_a_progress_bar_of_a_quick_batch_is_not_shown(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for delay, expected in ((0, True), (60, False)):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(progress([1, 2], "bar", delay=delay)) == [1, 2]
        assert ("bar" in terminal.getvalue()) == expected
