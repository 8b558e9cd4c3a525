"""Decoded, resized images of a split in one file, so that no later epoch or run decodes a JPEG again (`--image_cache`).

The file is `<folder>/<checksum>.npy`, uint8 (N, side, side, 3), memory-mapped: processes share its pages, and what
memory is free keeps them. The checksum is of the images' names, sizes and times, and of the side. It has its name only
when it is whole. Resized images are the very pixels that the loader would resize to, so nothing changes but the time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import functional as TF

from wsol.checksum import checksum
from wsol.datasets.images import load_image
from wsol.datasets.reader import SplitMetadata
from wsol.errors import InputError
from wsol.files import NOT_ARRAYS, SPARE, free_bytes, in_words, replacing
from wsol.log import log, progress
from wsol.workers import parallel_loader

_BATCH = 32


class _Resized(Dataset):
    """Decoded images, squeezed to a square: (side, side, 3) uint8."""

    def __init__(self, metadata: SplitMetadata, side: int):
        self.metadata, self.side = metadata, side

    def __len__(self) -> int:
        return len(self.metadata)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(resized(load_image(self.metadata.image_path(index)), self.side))


def resized(image: Image.Image, side: int) -> Image.Image:
    """An image as the network's input is cut from, or is: squeezed to a square."""
    return TF.resize(image, [side, side])


class DecodedImages:
    """The images of a file, by their index: (side, side, 3) uint8. On its way to another process it is but its path."""

    def __init__(self, path: Path):
        self.path = path
        self._images: NDArray[np.uint8] | None = None

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if self._images is None:
            self._images = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return self._images[index]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_images": None}


def cached_images(metadata: SplitMetadata, side: int, folder: Path, workers: int) -> DecodedImages:
    """The split's images at (side, side), from a file in the folder, which is written first if it is missing.

    Raises:
        InputError: the disk has no room for them, an image cannot be read, or the file is damaged.
    """
    stats = [metadata.image_path(index).stat() for index in range(len(metadata))]
    what = {"ids": list(metadata.image_ids), "files": [f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats]}
    path = folder / f"{checksum(what | {'side': side}).split()[-1][:32]}.npy"
    shape = (len(metadata), side, side, 3)
    if not path.exists():
        _write(path, shape, _Resized(metadata, side), workers)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        problem: object = f"{found.dtype} {found.shape}"
        if found.shape == shape and found.dtype == np.uint8:
            return DecodedImages(path)
    except NOT_ARRAYS as error:
        problem = error
    raise InputError(f"the images in {path} are damaged ({problem}); remove that file, and it is made again")


def _write(path: Path, shape: tuple[int, ...], images: _Resized, workers: int) -> None:
    """Decode all images into the file, unless another process does so meanwhile."""
    size = int(np.prod(shape, dtype=np.int64))
    if free_bytes(path.parent) < size * SPARE:
        raise InputError(
            f"--image_cache: {shape[0]:,} images take {in_words(size)}, and {path.parent} has "
            f"{in_words(free_bytes(path.parent))}; make room, or leave it out"
        )
    log.info("images: %s, in %s", in_words(size), path)
    loader = parallel_loader(images, _BATCH, workers, collate_fn=np.stack)
    with replacing(path, sync=True) as temporary, filelock.FileLock(f"{path}.lock"):
        if path.exists():  # another run has finished them while this one waited
            os.link(path, temporary)
            return
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for batch in progress(loader, "decode images"):
                file.write(batch.tobytes())
