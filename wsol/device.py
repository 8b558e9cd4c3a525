"""The device that a command computes on, and how batches get there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wsol import distributed
from wsol.errors import InputError
from wsol.log import log


def select_device(indices: Sequence[int], deterministic: bool = True) -> torch.device:
    """This process's CUDA device, or the CPU, with a warning, where there is no CUDA.

    It is the first of the requested ones. Of several processes on a machine each has the one at its own place in the
    list, or of all devices where the list has one only.

    Args:
        deterministic: the same seed gives the same numbers on the same machine; otherwise cuDNN tries which of its
            convolutions are fastest.

    Raises:
        InputError: there is CUDA, but no device with this index.
    """
    if not torch.cuda.is_available():
        log.warning("no CUDA device: running on the CPU")
        return torch.device("cpu")
    present = torch.cuda.device_count()
    for index in indices:
        if index >= present:
            raise InputError(f"--gpus {index}: this machine has the CUDA devices 0..{present - 1}")
    index = device_index(indices, present)
    if len(indices) > 1 and not distributed.is_launched():
        log.warning(
            "uses one device per process: %d of --gpus %s; start several by torchrun",
            index,
            ",".join(map(str, indices)),
        )
    torch.cuda.set_device(index)  # otherwise pinning memory opens a context on device 0
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    log.info("device: %s", torch.cuda.get_device_name(index))
    return torch.device("cuda", index)


def device_index(indices: Sequence[int], present: int) -> int:
    """This process's device among the requested ones, of as many as are present.

    Raises:
        InputError: there are more processes on this machine than devices.
    """
    if not distributed.is_launched():
        return indices[0]
    usable = list(indices) if len(indices) > 1 else list(range(present))
    if distributed.local_rank() >= len(usable):
        raise InputError(f"torchrun starts more processes on this machine than it may use CUDA devices, {len(usable)}")
    return usable[distributed.local_rank()]


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Move a batch. Images (B, 3, H, W) become channels-last, which makes convolutions up to twice as fast."""
    memory_format = torch.channels_last if images.ndim == 4 else torch.contiguous_format
    return images.to(device, memory_format=memory_format, non_blocking=True)
