"""Several processes that share a run: who this one is, what it gets of the work, and what they tell each other.

    torchrun --nproc_per_node=4 main.py ...      # torch's launcher starts the processes, and says so in the environment

    with group(device):
        for batch in DataLoader(dataset, batch_size, sampler=shard_of_batches(len(dataset), batch_size)):
            metric.update(...)
        results = metric.over_processes().compute()    # the sums, on every process

Without a launcher there is one process, and nothing is sent. Every process has to reach each of these calls, in the
same order. Shards are not padded: every item is counted once, and sums of integers do not depend on their order. So 1
and N processes agree to the last digit.

torch is imported inside the functions: who this process is must be known before that, for its first message.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from wsol.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
_BY_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# --------------------------------------------------------------------------- who this process is


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several; `group` is where they meet."""
    return all(name in os.environ for name in _BY_LAUNCHER) and int(os.environ["WORLD_SIZE"]) > 1


def is_initialized() -> bool:
    """Whether this process has joined a group (`torch.distributed.init_process_group`)."""
    if "torch" not in sys.modules:
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    """The number of processes; 1 until they have met."""
    from torch import distributed

    return distributed.get_world_size() if is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; that of the launcher until they have met."""
    if is_initialized():
        from torch import distributed

        return distributed.get_rank()
    return int(os.environ["RANK"]) if is_launched() else 0


def local_rank() -> int:
    """The number of this process on its machine, from 0: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if is_launched() else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Meet the other processes that the launcher started; the block is what they do together.

    What lies on the CPU travels by Gloo, so that a word between two steps does not wait for a GPU, the rest by NCCL.
    """
    if not is_launched():
        yield
        return
    from torch import distributed

    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield
    # Not after an error: what the others still send would have to be waited for.
    distributed.barrier()
    distributed.destroy_process_group()


# --------------------------------------------------------------------------- what it gets of the work


def shard(length: int) -> range:
    """This process's share of the indices 0..length - 1: every world_size-th one.

    Shares differ in length by one at most.
    """
    return range(rank(), length, world_size())


def share_of(batch_size: int) -> int:
    """The images that one process has of a batch over all, at most.

    Raises:
        InputError: there are more processes than images.
    """
    if batch_size < world_size():
        raise InputError(f"--batch_size {batch_size}: each of {world_size()} processes needs an image")
    return -(-batch_size // world_size())


def shard_of_batches(length: int, batch_size: int) -> list[int]:
    """This process's share of the indices 0..length - 1, as a sampler: every world_size-th batch, in order.

    A batch has the images that it has with one process, since the last digits of a network's output depend on how many
    images are computed together.
    """
    step = batch_size * world_size()
    return [
        i for start in range(rank() * batch_size, length, step) for i in range(start, min(start + batch_size, length))
    ]


# --------------------------------------------------------------------------- what they tell each other


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block, which may write files, and then the others do, which find them."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def barrier() -> None:
    """Wait until every process is here."""
    any_process(False)


def any_process(*flags: bool) -> list[bool]:
    """For each flag, whether it is set on any process."""
    return [count > 0 for count in sum_numbers(flags)]


def sum_numbers(numbers: Iterable[float]) -> list[float]:
    """Sums over all processes, in float64."""
    import torch
    from torch import distributed

    sums = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
    if world_size() > 1:
        distributed.all_reduce(sums)
    return sums.tolist()


def sum_counts(counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sums of int64 arrays over all processes.

    Every process has to call it, with the same names and shapes, and gets the sums. It costs one message, whatever the
    number of arrays. Raises TypeError for other types: sums of floats would depend on the order of the processes.
    """
    import torch
    from torch import distributed

    for name, count in counts.items():
        if count.dtype != np.int64:
            raise TypeError(f"only int64 counts are summed over processes, {name} is {count.dtype}")
    if world_size() == 1:
        return {name: count.copy() for name, count in counts.items()}
    packed = torch.from_numpy(np.concatenate([count.ravel() for count in counts.values()]))
    if distributed.get_backend() == "nccl":
        packed = packed.cuda()  # a group of another program, whose messages all travel by NCCL
    distributed.all_reduce(packed)
    parts = np.split(packed.cpu().numpy(), np.cumsum([count.size for count in counts.values()])[:-1])
    return {name: part.reshape(count.shape) for (name, count), part in zip(counts.items(), parts, strict=True)}


def gather(value: T) -> list[T]:
    """On the main process every process's value, in their order; on the others only their own."""
    from torch import distributed

    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    distributed.gather_object(value, values)
    return [value] if values is None else [value, *values[1:]]


def from_main(compute: Callable[[], T]) -> T:
    """What the main process computes, on all of them."""
    from torch import distributed

    if world_size() == 1:
        return compute()
    values: list[Any] = [compute() if is_main() else None]
    distributed.broadcast_object_list(values)
    return values[0]


def copy_from(source: int, tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of one process."""
    from torch import distributed

    if world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, source)


# --------------------------------------------------------------------------- training together


def together(module: nn.Module, *, static: bool) -> nn.Module:
    """A module whose gradients are means over all processes (DistributedDataParallel); itself with one process.

    Args:
        module: the same one on every process; where its parameters differ, those of the main process count.
        static: every forward pass uses the same parameters, perhaps not all that are trained.
    """
    if world_size() == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    # Buffers are BatchNorm's: synchronized, or copied once an epoch (`copy_from`).
    return DistributedDataParallel(module, static_graph=static, broadcast_buffers=False)


def synchronize_batchnorm(module: nn.Module) -> nn.Module:
    """The module with layers of BatchNorm that take means over all processes; torch has them for GPUs alone.

    Layers of timm that have an activation inside keep it.
    """
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(module)


class BatchShares:
    """A batch sampler: this process's share of each batch that a sampler and a size make.

    Args:
        sampler: gives the indices of an epoch, the same on every process.
        batch_size: over all processes.
        drop_last: leave out a last batch of fewer images.
        own: each image always goes to the process of its number (`shard`), which may have none in a batch; otherwise
            shares are of equal size, and a process without an image gets one that does not count, so that it runs the
            network whose BatchNorm waits for it.
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool = False, own: bool = False):
        self.sampler, self.batch_size, self.drop_last, self.own = sampler, batch_size, drop_last, own

    def _batches(self) -> Iterator[list[int]]:
        from torch.utils.data import BatchSampler

        return iter(BatchSampler(self.sampler, self.batch_size, self.drop_last))

    def _share(self, batch: Sequence[int]) -> Sequence[int]:
        if self.own:
            return [index for index in batch if index % world_size() == rank()]
        return batch[rank() :: world_size()]

    def __iter__(self) -> Iterator[Sequence[int]]:
        """This process's indices of each batch."""
        for batch in self._batches():
            share = self._share(batch)
            yield share if share or self.own else batch[:1]

    def __len__(self) -> int:
        """Number of batches."""
        length = len(self.sampler)  # type: ignore[arg-type]
        return length // self.batch_size if self.drop_last else -(-length // self.batch_size)

    def counts(self) -> Iterator[tuple[int, int]]:
        """Of each batch, the images of this process that count, and those of all processes."""
        return ((len(self._share(batch)), len(batch)) for batch in self._batches())
