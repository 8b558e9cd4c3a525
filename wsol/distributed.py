"""Several processes: this one's rank, its share of the items, and sums over all of them.

    loader = DataLoader(dataset, sampler=shard(len(dataset)))
    for batch in loader:
        metric.update(...)
    results = metric.compute()    # on every process: counts are summed first, wsol/metrics/counting.py
    if is_main():
        print(results)

Without torch.distributed there is one process. Shards are not padded: every item is counted once, whatever the number
of processes, and sums of integers do not depend on their order. So 1 and N processes agree to the last digit.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import distributed


def is_initialized() -> bool:
    """Whether this process has joined a group (`torch.distributed.init_process_group`)."""
    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def shard(length: int) -> range:
    """This process's share of the indices 0..length - 1, every world_size-th one, as a sampler for a DataLoader.

    Shares differ in length by one at most.
    """
    return range(rank(), length, world_size())


def sum_counts(counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sums of int64 arrays over all processes.

    Every process has to call it, with the same names and shapes, and gets the sums. It costs one message, whatever the
    number of arrays. Raises TypeError for other types: sums of floats would depend on the order of the processes.
    """
    for name, count in counts.items():
        if count.dtype != np.int64:
            raise TypeError(f"only int64 counts are summed over processes, {name} is {count.dtype}")
    if world_size() == 1:
        return {name: count.copy() for name, count in counts.items()}
    packed = torch.from_numpy(np.concatenate([count.ravel() for count in counts.values()]))
    if distributed.get_backend() == "nccl":
        packed = packed.cuda()  # NCCL cannot read host memory
    distributed.all_reduce(packed)
    parts = np.split(packed.cpu().numpy(), np.cumsum([count.size for count in counts.values()])[:-1])
    return {name: part.reshape(count.shape) for (name, count), part in zip(counts.items(), parts, strict=True)}
