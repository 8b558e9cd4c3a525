"""Several processes: who am I, which items are mine, and sums over all. Without torch.distributed there is one process.

    loader = DataLoader(dataset, sampler=shard(len(dataset)))
    for batch in loader:
        metric.update(...)
    results = metric.compute()    # on every process: counts are summed first, wsol/metrics/localization.py
    if is_main():
        print(results)

Shards are not padded: every item is counted once, whatever the number of processes, and sums of integers do not depend
on their order. So 1 and N processes agree to the last digit.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import distributed


def is_initialized() -> bool:
    """Has this process joined a group (`torch.distributed.init_process_group`)?"""
    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if is_initialized() else 0


def is_main() -> bool:
    """Is this the process that prints and writes files?"""
    return rank() == 0


def shard(length: int) -> range:
    """This process's part of the indices 0..length - 1: every world_size-th one. Parts differ in length by one at most.

    A DataLoader takes it as its sampler.
    """
    return range(rank(), length, world_size())


def sum_counts(counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sums over all processes of arrays of int64, under the same names and of the same shapes on each.

    Every process has to call it, and gets the sums. It costs one message, whatever the number of arrays. Raises
    TypeError for other types: sums of floats would depend on the order of the processes.
    """
    for name, count in counts.items():
        if count.dtype != np.int64:
            raise TypeError(f"only int64 counts are summed over processes, {name} is {count.dtype}")
    if world_size() == 1:
        return {name: count.copy() for name, count in counts.items()}
    packed = torch.from_numpy(np.concatenate([count.ravel() for count in counts.values()]))
    if distributed.get_backend() == "nccl":
        packed = packed.cuda()  # NCCL knows no memory of the host
    distributed.all_reduce(packed)
    parts = np.split(packed.cpu().numpy(), np.cumsum([count.size for count in counts.values()])[:-1])
    return {name: part.reshape(count.shape) for (name, count), part in zip(counts.items(), parts, strict=True)}
