"""The cost of parts of a computation: seconds and peak memory, on CUDA and on the CPU."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch


@dataclass
class Cost:
    """The cost of one part.

    Attributes:
        seconds: total time.
        memory: bytes; the largest growth of memory use during any one measurement.
    """

    seconds: float = 0.0
    memory: int = 0


class Meter:
    """Adds up the cost of named parts.

        with meter.measure("gradcam", device):
            ...

    On CUDA, seconds are those between two events in the device's own queue and memory is that of PyTorch's allocator,
    so measuring does not wait for the device; only `summary` does. On the CPU, memory is the growth of the process's
    peak resident set (Linux; zero on other systems); memory that the process had already and uses again does not count.
    """

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = {}
        self._queued: deque[tuple[Cost, torch.cuda.Event, torch.cuda.Event]] = deque()

    def summary(self) -> dict[str, dict[str, float]]:
        """{part: {"seconds", "mib"}}, for results.json; waits for what CUDA devices still have to do."""
        self._add_finished(wait=True)
        return {
            name: {"seconds": round(cost.seconds, 4), "mib": round(cost.memory / 2**20, 1)}
            for name, cost in self.costs.items()
        }

    @contextmanager
    def measure(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the cost of the block to the part `name`."""
        before = _reset_peak(device)
        start = _queue_event(device) if device.type == "cuda" else time.perf_counter()
        yield
        cost = self.costs.setdefault(name, Cost())
        if isinstance(start, float):
            cost.seconds += time.perf_counter() - start
        else:
            self._queued.append((cost, start, _queue_event(device)))
            self._add_finished()  # so that the queue stays short, however many batches there are
        cost.memory = max(cost.memory, _peak(device) - before)

    def _add_finished(self, wait: bool = False) -> None:
        """Add up the seconds of what CUDA devices have done, with `wait` of all that was measured."""
        while self._queued and (wait or self._queued[0][2].query()):
            cost, start, end = self._queued.popleft()
            if wait:
                end.synchronize()
            cost.seconds += start.elapsed_time(end) / 1000  # milliseconds


def _queue_event(device: torch.device) -> torch.cuda.Event:
    """An event that the device reaches when it has done all that was asked of it so far."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _reset_peak(device: torch.device) -> int:
    """Reset the peak; returns the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # proc(5): resets the peak resident set size to the current one
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0
