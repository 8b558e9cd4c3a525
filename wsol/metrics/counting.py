"""The base class of metrics that are sums of integer counts, so that shards and processes add up exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from wsol import distributed
from wsol.metrics.records import Records

Counts = dict[str, NDArray[np.int64]]


class CountingMetric:
    """A metric whose state is a dict of int64 arrays that are added over batches, shards and processes.

    Each process updates with its own images and has its own counts; `over_processes` gives the metric of all. Integers
    add up to the same sum in any order, so 1 and N processes agree to the last digit.

    Args:
        settings: what two metrics must have in common for their counts to be added.
        counts: name → zeros, the counts of no image.
        threads: number of threads that share the images of an update; None: as many as torch uses.
        records: what to keep of each image beside the counts (wsol/metrics/records.py), None for nothing. Records are
            not part of the state: `merge` joins those of two shards, and `load_state` leaves them alone.
    """

    def __init__(
        self,
        settings: tuple[object, ...],
        counts: Counts,
        threads: int | None = None,
        records: Records | None = None,
    ):
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._settings = settings
        self._counts = counts
        self.threads = threads
        self.records = records

    def reset(self) -> None:
        """Forget all images."""
        self._counts = {name: np.zeros_like(count) for name, count in self._counts.items()}
        if self.records is not None:
            self.records.reset()

    def state(self) -> Counts:
        """A copy of the counts, int64: add them over processes, then `load_state` the sums."""
        return {name: count.copy() for name, count in self._counts.items()}

    def load_state(self, state: Mapping[str, ArrayLike]) -> None:
        """Replace the counts. Raises ValueError unless names and shapes are those of `state()`."""
        arrays = {name: np.array(count, dtype=np.int64) for name, count in state.items()}
        expected = {name: count.shape for name, count in self._counts.items()}
        if {name: count.shape for name, count in arrays.items()} != expected:
            raise ValueError(f"these counts belong to another metric or other settings; expected shapes: {expected}")
        self._counts = arrays

    def merge(self, other: Self) -> Self:
        """Add the counts of another shard in place. Raises ValueError if its settings differ."""
        self._check_same_settings(other)
        if self.records is not None and other.records is not None:
            self.records.merge(other.records)
        elif self.records is not other.records:
            raise ValueError("one shard keeps records of its images and the other does not")
        for name, count in other._counts.items():
            self._counts[name] += count  # in place, so that 0-d counts stay arrays
        return self

    __iadd__ = merge

    def over_processes(self) -> Self:
        """The metric over the images of all processes, without records; every process has to call it.

        With a single process it is this very metric.
        """
        if distributed.world_size() == 1:
            return self
        total = copy.copy(self)
        total._counts = distributed.sum_counts(self._counts)
        total.records = None  # this process has only its own images' records
        return total

    def _map_threaded(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        """`list(map(function, *arguments))`, shared by threads."""
        threads = self.threads or torch.get_num_threads()
        if threads == 1:
            return list(map(function, *arguments))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, *arguments))

    def _check_same_settings(self, other: CountingMetric) -> None:
        if type(self) is not type(other) or self._settings != other._settings:
            raise ValueError(f"{type(other).__name__} has other settings than this {type(self).__name__}")


def check_scoremaps(scoremaps: ArrayLike, resolution: int) -> np.ndarray:
    """Score maps as an array (B, resolution, resolution); a ValueError for another shape."""
    scoremaps = np.asarray(scoremaps)
    if scoremaps.ndim != 3 or scoremaps.shape[1:] != (resolution, resolution):
        raise ValueError(f"score maps must be (B, {resolution}, {resolution}), got {scoremaps.shape}")
    return scoremaps
