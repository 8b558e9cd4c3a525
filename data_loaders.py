"""Torch data sets and loaders of images, with their augmentation; and wsolevaluation's names of data loading.

    data = load_data("CUB", "dataset", "metadata", "dataset", splits=("train", "test"))   # wsol.datasets.load
    dataset = ImageDataset(data.splits["train"], crop_size=224, mean=MEAN, std=STD, augment="crop_flip")
    loader = make_loader(dataset, batch_size=32, workers=4, shuffle_seed=0)

All randomness is keyed by (seed, moment, index), so it is the same with any number of workers and after a resumed run.
A moment is (stage, epoch), see `set_epoch`; each index carries it to the processes that read the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import functional as TF

from wsol import distributed
from wsol.datasets.images import load_image, load_picture
from wsol.datasets.reader import SplitMetadata
from wsol.datasets.transforms import eval_tensor, normalized
from wsol.image_cache import DecodedImages
from wsol.workers import EpochIndex, parallel_loader
from wsol.wsolevaluation import configure_metadata as configure_metadata
from wsol.wsolevaluation import get_bounding_boxes as get_bounding_boxes
from wsol.wsolevaluation import get_class_labels as get_class_labels
from wsol.wsolevaluation import get_image_ids as get_image_ids
from wsol.wsolevaluation import get_image_sizes as get_image_sizes
from wsol.wsolevaluation import get_mask_paths as get_mask_paths


class ImageDataset(Dataset):
    """The images of one split: (image (3, crop_size, crop_size) float32, label, index)."""

    def __init__(
        self,
        metadata: SplitMetadata,
        *,
        crop_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: str = "none",
        resize_size: int = 256,
        seed: int = 0,
        decoded: DecodedImages | None = None,
    ):
        """Keep the settings; images are read when they are asked for.

        Args:
            metadata: the split.
            crop_size: side of the images returned.
            mean: per channel, for normalization.
            std: per channel, for normalization.
            augment: "none" resizes the image to crop_size x crop_size; "crop_flip" resizes it to resize_size x
                resize_size, then crops and flips it at random.
            resize_size: see `augment`.
            seed: of the random crops and flips.
            decoded: the images as they are after resizing; None: the files are read.
        """
        self.decoded = decoded
        self.metadata, self.crop_size, self.resize_size = metadata, crop_size, resize_size
        self.mean, self.std, self.augment, self.seed = mean, std, augment, seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.metadata)

    def identity(self) -> dict[str, Any]:
        """What decides about the tensors: settings, and the images' names, sizes and times; for checksums."""
        stats = [self.metadata.image_path(index).stat() for index in range(len(self))]
        settings = [self.augment, self.crop_size, *self.mean, *self.std]
        if self.augment != "none":
            settings += [self.resize_size, self.seed]
        return {
            "ids": list(self.metadata.image_ids),
            "files": torch.tensor([[stat.st_size, stat.st_mtime_ns] for stat in stats]),
            "settings": settings,
        }

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """Read and augment one image; an EpochIndex says for which moment."""
        moment = index.moment if isinstance(index, EpochIndex) else (0, 0)
        index = int(index)
        if self.decoded is None:
            image = load_image(self.metadata.image_path(index))
        else:
            image = Image.fromarray(self.decoded[index])
        label = int(self.metadata.labels[index])
        if self.augment == "none":
            return eval_tensor(image, self.crop_size, self.mean, self.std), label, index
        random = np.random.default_rng((self.seed, *moment, 1, index))
        top, left = random.integers(0, self.resize_size - self.crop_size + 1, size=2)
        image = TF.crop(TF.resize(image, [self.resize_size] * 2), top, left, self.crop_size, self.crop_size)
        if random.random() < 0.5:
            image = TF.hflip(image)
        return normalized(image, self.mean, self.std), label, index


class Pictures(Dataset):
    """Picture files, resized to a square as for evaluation: (image (3, crop_size, crop_size) float32, index)."""

    def __init__(self, paths: Sequence[Path], crop_size: int, mean: Sequence[float], std: Sequence[float]):
        """Keep the settings; pictures are read when they are asked for."""
        self.paths, self.crop_size, self.mean, self.std = paths, crop_size, mean, std

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Read one picture."""
        return eval_tensor(load_picture(self.paths[index]), self.crop_size, self.mean, self.std), index


class EpochShuffle(Sampler[EpochIndex]):
    """A permutation that depends only on (seed, moment); call `set_epoch` before each epoch."""

    def __init__(self, length: int, seed: int):
        """Shuffle the indices 0..length-1."""
        self.length, self.seed = length, seed
        self.moment = (0, 0)
        self.skip = 0

    def __len__(self) -> int:
        """Number of indices."""
        return self.length - self.skip

    def __iter__(self) -> Iterator[EpochIndex]:
        """Iterate over the permutation of this moment, without the first `skip`."""
        moment = self.moment
        for index in np.random.default_rng((self.seed, *moment, 0)).permutation(self.length)[self.skip :].tolist():
            yield EpochIndex(index, moment)


def make_loader(
    dataset: ImageDataset | Pictures, batch_size: int, workers: int, shuffle_seed: int | None = None
) -> DataLoader:
    """A loader that shuffles if it is given a seed (training), and otherwise keeps the order (evaluation).

    BatchNorm cannot learn from a single image, so a last training batch of one image is left out; each epoch, this is
    a different image.

    Args:
        batch_size: over all processes; each gives its share of every batch in training, and in evaluation batches of
            that size from its shard.
    """
    pin = torch.cuda.is_available()
    share = distributed.share_of(batch_size)
    if shuffle_seed is None:
        shard = distributed.shard_of_batches(len(dataset), share)
        return parallel_loader(dataset, share, workers, sampler=shard, pin_memory=pin)
    sampler = EpochShuffle(len(dataset), shuffle_seed)
    ends_with_one = len(dataset) > batch_size > 1 and len(dataset) % batch_size == 1
    if distributed.world_size() > 1:
        batches = distributed.BatchShares(sampler, batch_size, ends_with_one)
        return parallel_loader(dataset, 1, workers, batch_sampler=batches, pin_memory=pin)
    return parallel_loader(dataset, batch_size, workers, sampler=sampler, drop_last=ends_with_one, pin_memory=pin)


def set_epoch(loader: DataLoader, moment: tuple[int, int], skip: int = 0) -> None:
    """Set the moment (number of the stage, epoch) that shuffling and augmentation depend on.

    skip: leave out so many images from the beginning, which a run that goes on has seen.
    """
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if isinstance(sampler, EpochShuffle):
        sampler.moment, sampler.skip = moment, skip
