"""Loading a data set: its metadata read, its files checked, its classes named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsol.datasets.reader import SplitMetadata, read_lines, read_split, require_annotation
from wsol.datasets.registry import DATASETS, SPLITS, dataset_info, image_root, will_be_generated
from wsol.datasets.split_files import check_files, log_outside_boxes, require_first_image, skip_bad_images
from wsol.errors import InputError, first_few
from wsol.log import log


@dataclass
class WsolData:
    """The splits that a run needs and the names of the classes.

    Attributes:
        name: the data set's name.
        splits: metadata of each split.
        class_names: in the order of the class indices.
        skipped: number of skipped bad images of each split that had any.
    """

    name: str
    splits: dict[str, SplitMetadata]
    class_names: list[str]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def load_data(
    dataset_name: str,
    data_root: Path | str,
    metadata_root: Path | str,
    mask_root: Path | str,
    *,
    splits: Sequence[str],
    proxy_training_set: bool = False,
    num_val_sample_per_class: int = 0,
    proportion: float = 100,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int = 1,
) -> WsolData:
    """Read the metadata of some splits and check their image and mask files.

    A data set with a generator (`Synthetic`) is written first if it is not there yet. The number of classes is the one
    in the registry, else the number of lines of classes.txt, else the highest class index in these splits plus 1.

    Args:
        dataset_name: name of the data set's folder below each root.
        data_root: folder of the images of all data sets.
        metadata_root: folder of the metadata of all data sets.
        mask_root: folder of the masks of all data sets.
        splits: the splits to read; "val" is left out if the data set has none.
        proxy_training_set: read the images of train from image_ids_proxy.txt.
        num_val_sample_per_class: if not 0, draw so many val images per class, with `seed`.
        proportion: per cent of the training images to read, see `part_of_each_class`.
        seed: for these draws.
        skip_bad: decode every image and mask once and leave out what is missing or broken.
        workers: threads that read files.

    Raises:
        InputError: metadata, a split, images or masks are missing; metadata are malformed (see `read_split`).
    """
    info = dataset_info(dataset_name)
    folder = Path(metadata_root) / dataset_name
    if will_be_generated(dataset_name, metadata_root):
        info.generate(Path(data_root), Path(metadata_root), Path(mask_root))
    if not folder.is_dir():
        raise InputError(
            f"no metadata for the data set '{dataset_name}': {folder} is missing; {info.how_to_get} "
            f"(known data sets: {', '.join(DATASETS)})"
        )
    data = WsolData(dataset_name, {}, [])
    for split in splits:
        if not (folder / split).is_dir():
            _check_split_is_optional(folder, split, num_val_sample_per_class)
            continue
        metadata = read_split(
            folder,
            split,
            image_root(dataset_name, data_root, split),
            Path(mask_root) / dataset_name,
            "image_ids_proxy.txt" if split == "train" and proxy_training_set else "image_ids.txt",
            with_localization=split != "train",
        )
        if split != "train":
            require_annotation(metadata, folder)
        if split == "val" and num_val_sample_per_class:
            metadata = sample_per_class(metadata, num_val_sample_per_class, seed)
        if split == "train" and proportion < 100:
            metadata = part_of_each_class(metadata, proportion, seed)
        data.splits[split] = metadata
    data.class_names = _class_names(folder, data.splits, info.num_classes)
    for split, metadata in data.splits.items():
        log_outside_boxes(metadata)
        require_first_image(metadata)
        if not skip_bad:
            check_files(metadata, workers)
            continue
        data.splits[split] = skip_bad_images(metadata, workers)
        if len(data.splits[split]) < len(metadata):
            data.skipped[split] = len(metadata) - len(data.splits[split])
    _warn_of_empty_classes(data)
    return data


def _check_split_is_optional(folder: Path, split: str, num_val_sample_per_class: int) -> None:
    """Raise InputError for a missing split, unless it is val and no setting needs it."""
    present = ", ".join(s for s in SPLITS if (folder / s).is_dir()) or "none"
    if split != "val":
        raise InputError(
            f"{folder} has no {split} split (present: {present}), which this run needs; see metadata/README.md"
        )
    if num_val_sample_per_class:
        raise InputError(
            f"{folder} has no val split (present: {present}), and --num_val_sample_per_class "
            f"{num_val_sample_per_class} needs one; leave that flag out"
        )


def sample_per_class(metadata: SplitMetadata, count: int, seed: int) -> SplitMetadata:
    """`count` images of each class, drawn with a seed, in the order of the split.

    Raises:
        InputError: a class has fewer.
    """
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in np.unique(metadata.labels):
        members = np.flatnonzero(metadata.labels == label)
        if len(members) < count:
            raise InputError(
                f"--num_val_sample_per_class {count}: class {label} has only {len(members)} images in the val split, "
                f"such as {metadata.image_ids[members[0]]}; give at most {len(members)}, or 0 for all"
            )
        chosen.extend(random.permutation(members)[:count].tolist())
    return metadata.subset(sorted(chosen))


def part_of_each_class(metadata: SplitMetadata, per_cent: float, seed: int) -> SplitMetadata:
    """The same share of each class's images, at least one, in the order of the split.

    With one seed, the images of a smaller share are among those of a larger one.
    """
    chosen: list[int] = []
    for label in np.unique(metadata.labels):
        members = np.flatnonzero(metadata.labels == label)
        count = max(round(len(members) * per_cent / 100), 1)
        chosen.extend(np.random.default_rng((seed, int(label))).permutation(members)[:count].tolist())
    return metadata.subset(sorted(chosen))


def _class_names(folder: Path, splits: dict[str, SplitMetadata], num_classes: int | None) -> list[str]:
    """Class names from classes.txt, else from the images' folders if each class has its own, else "class 7"."""
    highest = max(int(metadata.labels.max()) for metadata in splits.values())
    if (folder / "classes.txt").exists():
        names = read_lines(folder / "classes.txt")
        if len(names) <= highest:
            raise InputError(
                f"{folder / 'classes.txt'} names {len(names)} classes, but class_labels.txt goes up to index {highest}"
            )
        if num_classes and len(names) != num_classes:
            raise InputError(
                f"{folder / 'classes.txt'} names {len(names)} classes, but {folder.name} has {num_classes}"
            )
        return names
    count = num_classes or highest + 1
    if highest >= count:
        raise InputError(
            f"class_labels.txt of {folder.name} goes up to index {highest}, but this data set has {count} classes"
        )
    folders: dict[int, set[str]] = {}  # class index → names of the folders of its images
    for metadata in splits.values():
        parents = (image_id.rpartition("/")[0].rpartition("/")[2] for image_id in metadata.image_ids)
        for label, parent in set(zip(metadata.labels.tolist(), parents, strict=True)):
            folders.setdefault(label, set()).add(parent)
    one_each = all(len(names) == 1 for names in folders.values())
    if one_each and len(set.union(*folders.values())) == len(folders) > 1:
        return [next(iter(folders[k])) if k in folders else f"class {k}" for k in range(count)]
    return [f"class {k}" for k in range(count)]


def _warn_of_empty_classes(data: WsolData) -> None:
    """Warn of classes without images: unusual, but thresholds and scores are defined without them."""
    for split, metadata in data.splits.items():
        counts = np.bincount(metadata.labels, minlength=data.num_classes)
        empty = [data.class_names[k] for k in np.flatnonzero(counts == 0)]
        if empty:
            log.warning(
                "%s of %s classes have no image in the %s split: %s",
                f"{len(empty):,}",
                f"{data.num_classes:,}",
                split,
                first_few(empty),
            )
