"""The device that a command computes on, and how batches get there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wsol.errors import InputError
from wsol.log import log


def select_device(indices: Sequence[int], deterministic: bool = True) -> torch.device:
    """The first of the requested CUDA devices, or the CPU, with a warning, where there is no CUDA.

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
    if len(indices) > 1:
        log.warning("uses one device per process: %d of --gpus %s", indices[0], ",".join(map(str, indices)))
    torch.cuda.set_device(indices[0])  # otherwise pinning memory opens a context on device 0
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    log.info("device: %s", torch.cuda.get_device_name(indices[0]))
    return torch.device("cuda", indices[0])


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Move a batch. Images (B, 3, H, W) become channels-last, which makes convolutions up to twice as fast."""
    memory_format = torch.channels_last if images.ndim == 4 else torch.contiguous_format
    return images.to(device, memory_format=memory_format, non_blocking=True)
