"""The data sets that are known by name, and what cannot be read off their folders."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wsol.datasets.synthetic import make_synthetic


@dataclass(frozen=True)
class DatasetFacts:
    """What cannot be read off a data set's folder.

    num_classes: None counts them in class_labels.txt. imagenet: its classes are
    those of ImageNet heads. image_folder(split): where ids start, below the data
    set's folder. augment: the default of --augment. make(data_root,
    metadata_root, mask_root): writes the data set where it does not exist yet.
    how_to_get: the remedy where it is missing.
    """

    num_classes: int | None = None
    imagenet: bool = False
    image_folder: Callable[[str], str] = lambda split: ""
    augment: str = "crop_flip"
    make: Callable[[Path, Path, Path], None] | None = None
    how_to_get: str = ""


DATASETS: dict[str, DatasetFacts] = {
    "ILSVRC": DatasetFacts(num_classes=1000, imagenet=True),
    "CUB": DatasetFacts(num_classes=200),
    "OpenImages": DatasetFacts(num_classes=100),
    "CARS": DatasetFacts(num_classes=196, image_folder=lambda split: f"cars_{split}"),
    # Composed images: places, sides and sizes vary already, and without random
    # crops the frozen trunk's features need computing only once.
    "Synthetic": DatasetFacts(augment="none", make=make_synthetic),
    "CUTOUTS": DatasetFacts(augment="none", how_to_get="make it with scripts/prepare_cutouts.py"),
}


def dataset_facts(name: str) -> DatasetFacts:
    """The facts of a named data set, or those of a user's own folder in the format."""
    return DATASETS.get(name, DatasetFacts())


def is_made_when_used(dataset_name: str, metadata_root: str) -> bool:
    """Would load_data write this data set now?"""
    return dataset_facts(dataset_name).make is not None and not (Path(metadata_root) / dataset_name).is_dir()
