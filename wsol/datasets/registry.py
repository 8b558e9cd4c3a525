"""The data sets known by name, and what cannot be read off their folders.

Light on purpose: listing data sets imports neither torch, OpenCV, NumPy nor Pillow.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DatasetInfo:
    """What the program needs to know about a data set beyond its files.

    Attributes:
        num_classes: number of classes; None: counted from class_labels.txt.
        imagenet: its classes are those of ImageNet heads.
        image_folder: where image ids start, below the data set's folder; "{split}" stands for the split.
        augment: default of --augment.
        generator: "module:function" that writes the data set, called with (data_root, metadata_root, mask_root).
        how_to_get: remedy for the error message when the data set is missing.
    """

    num_classes: int | None = None
    imagenet: bool = False
    image_folder: str = ""
    augment: str = "crop_flip"
    generator: str | None = None
    how_to_get: str = "see metadata/README.md, or name another with --dataset_name or --metadata_root"

    def generate(self, data_root: Path, metadata_root: Path, mask_root: Path) -> None:
        """Write the data set below these roots; only for a data set with a generator."""
        assert self.generator is not None
        pkgutil.resolve_name(self.generator)(data_root, metadata_root, mask_root)


DATASETS: dict[str, DatasetInfo] = {
    "ILSVRC": DatasetInfo(num_classes=1000, imagenet=True),
    "CUB": DatasetInfo(num_classes=200),
    "OpenImages": DatasetInfo(num_classes=100),
    "CARS": DatasetInfo(num_classes=196, image_folder="cars_{split}"),
    # Composed images already vary in position, orientation and size. Without random crops, the features of a frozen
    # backbone are computed only once.
    "Synthetic": DatasetInfo(augment="none", generator="wsol.datasets.synthetic:make_synthetic"),
    "CUTOUTS": DatasetInfo(augment="none", how_to_get="make it with scripts/prepare_cutouts.py"),
}


def dataset_info(name: str) -> DatasetInfo:
    """The entry of a known data set, or the defaults for a user's own data set."""
    return DATASETS.get(name, DatasetInfo())


def image_root(dataset_name: str, data_root: Path | str, split: str) -> Path:
    """The folder that the image ids of a split start from."""
    return Path(data_root) / dataset_name / dataset_info(dataset_name).image_folder.format(split=split)


def will_be_generated(dataset_name: str, metadata_root: Path | str) -> bool:
    """Whether `load_data` would write this data set now: it can be generated and is not there yet."""
    return dataset_info(dataset_name).generator is not None and not (Path(metadata_root) / dataset_name).is_dir()
