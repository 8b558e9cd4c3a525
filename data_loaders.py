"""Data sets in wsolevaluation's metadata format: reading, checking, loading.

    <metadata_root>/<dataset_name>/<split>/{image_ids,class_labels,image_sizes,localization,masks}.txt
    <data_root>/<dataset_name>/<image id>        <mask_root>/<dataset_name>/<mask path>

Format: clovaai/wsolevaluation, README "Metadata"; `masks.txt` and `classes.txt`
are additions. wsol/datasets/reader.py reads a split; every error names the file
and the line.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import functional as TF

from wsol.datasets.images import load_image, load_picture
from wsol.datasets.reader import SplitMetadata
from wsol.datasets.transforms import eval_tensor, normalized
from wsol.wsolevaluation import (  # noqa: F401  (this module's names in wsolevaluation, for code written against them)
    configure_metadata,
    get_bounding_boxes,
    get_class_labels,
    get_image_ids,
    get_image_sizes,
    get_mask_paths,
)

# --------------------------------------------------------------------------- the data sets that are known by name


# --------------------------------------------------------------------------- a data set


# --------------------------------------------------------------------------- images and masks


class ImageDataset(Dataset):
    """(image (3, crop, crop) float32 normalised, label, index) of one split.

    With `augment="crop_flip"`: resize to resize_size squared, random crop,
    horizontal flip; the draw depends on (seed, moment, index) alone, so it is the
    same with any number of workers and after a resumed run. The moment is (stage,
    epoch), see set_epoch.
    """

    def __init__(
        self,
        metadata: SplitMetadata,
        *,
        crop_size: int,
        mean,
        std,
        augment: str = "none",
        resize_size: int = 256,
        seed: int = 0,
    ):
        self.metadata, self.crop_size, self.resize_size = metadata, crop_size, resize_size
        self.mean, self.std, self.augment, self.seed, self.moment = mean, std, augment, seed, (0, 0)

    def __len__(self) -> int:
        return len(self.metadata)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        image = load_image(self.metadata.image_path(index))
        label = int(self.metadata.labels[index])
        if self.augment == "none":
            return eval_tensor(image, self.crop_size, self.mean, self.std), label, index
        random = np.random.default_rng((self.seed, *self.moment, 1, index))
        top, left = random.integers(0, self.resize_size - self.crop_size + 1, size=2)
        image = TF.crop(TF.resize(image, [self.resize_size] * 2), top, left, self.crop_size, self.crop_size)
        if random.random() < 0.5:
            image = TF.hflip(image)
        return normalized(image, self.mean, self.std), label, index


class Pictures(Dataset):
    """(image (3, crop, crop) float32 normalised, index) of picture files, squeezed to a square as for evaluation."""

    def __init__(self, paths: Sequence[Path], crop_size: int, mean, std):
        self.paths, self.crop_size, self.mean, self.std = paths, crop_size, mean, std

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return eval_tensor(load_picture(self.paths[index]), self.crop_size, self.mean, self.std), index


class EpochShuffle(Sampler):
    """A permutation that depends on (seed, moment) alone; call set_epoch before each epoch."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.moment = length, seed, (0, 0)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, *self.moment, 0)).permutation(self.length).tolist())


def make_loader(dataset: Dataset, batch_size: int, workers: int, shuffle_seed: int | None = None) -> DataLoader:
    """A loader that shuffles (training) if it is given a seed, and keeps the order (evaluation) otherwise.

    BatchNorm cannot learn from a single image: a last training batch of one is left out, a different image each epoch.
    """
    sampler = None if shuffle_seed is None else EpochShuffle(len(dataset), shuffle_seed)
    lonely = sampler is not None and len(dataset) > batch_size > 1 and len(dataset) % batch_size == 1
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=min(workers, len(os.sched_getaffinity(0))),
        drop_last=lonely,
        pin_memory=torch.cuda.is_available(),
    )


def set_epoch(loader: DataLoader, moment: tuple[int, int]) -> None:
    """Tell shuffling and augmentation the moment, (number of the stage, epoch), that their draws depend on."""
    for part in (loader.sampler, loader.dataset):
        if hasattr(part, "moment"):
            part.moment = moment
