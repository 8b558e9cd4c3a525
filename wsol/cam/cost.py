"""The cost of parts of a computation: seconds and peak memory, on CUDA and on the CPU."""

import time
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

    On CUDA, memory is that of PyTorch's allocator. On the CPU it is the growth of the process's peak resident set
    (Linux; zero on other systems); memory that the process had already and uses again does not count.
    """

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = {}

    def summary(self) -> dict[str, dict[str, float]]:
        """{part: {"seconds", "mib"}}, for results.json."""
        return {
            name: {"seconds": round(cost.seconds, 4), "mib": round(cost.memory / 2**20, 1)}
            for name, cost in self.costs.items()
        }

    @contextmanager
    def measure(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the cost of the block to the part `name`."""
        before = _reset_peak(device)
        start = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        cost = self.costs.setdefault(name, Cost())
        cost.seconds += time.perf_counter() - start
        cost.memory = max(cost.memory, _peak(device) - before)


def _reset_peak(device: torch.device) -> int:
    """Reset the peak; returns the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
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
