"""Data loading processes: quiet when the command is interrupted, and alive as long as their loader."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from wsol import distributed


class EpochIndex(int):
    """The index of an item that also depends on the moment, (stage, epoch), at which it is asked for.

    Data loading processes outlive an epoch, so each index brings them the moment.
    """

    moment: tuple[int, int]

    def __new__(cls, index: int, moment: tuple[int, int] = (0, 0)) -> EpochIndex:
        """An int with a moment."""
        self = super().__new__(cls, index)
        self.moment = moment
        return self

    def __reduce__(self) -> tuple[type[EpochIndex], tuple[int, tuple[int, int]]]:
        """For the way to another process."""
        return EpochIndex, (int(self), self.moment)


def parallel_loader(dataset: Dataset, batch_size: int | None, workers: int, **arguments: Any) -> DataLoader:
    """A DataLoader with at most as many processes as there are cores; they stay until the loader is gone.

    Its draws of random numbers leave torch's global generator alone, so that training does not depend on the number of
    processes.
    """
    processes = min(workers, len(os.sched_getaffinity(0)))
    return DataLoader(
        dataset,
        batch_size,
        num_workers=processes,
        persistent_workers=processes > 0,
        worker_init_fn=ignore_ctrl_c,
        generator=torch.Generator(),
        **arguments,
    )


def ignore_ctrl_c(_worker: int) -> None:
    """Ctrl-C reaches every process of the terminal, but a worker is ended by its parent.

    torchrun sends SIGTERM to workers, too, whose parent then has a step to finish with the other processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if distributed.is_launched() else signal.SIG_DFL)
