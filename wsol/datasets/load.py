"""A data set of the metadata format: its splits read, its files looked for, its classes named."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsol.datasets.files import broken_files, looks_whole, require_files
from wsol.datasets.images import check_image
from wsol.datasets.masks import load_mask, load_mask_image
from wsol.datasets.reader import SplitMetadata, read_lines, read_split
from wsol.datasets.registry import DATASETS, SPLITS, dataset_info, image_root, will_be_generated
from wsol.errors import InputError
from wsol.log import log

MOST_FILES_OPENED = 100_000  # to look at the end of each before a run: seconds on a disk, minutes on a slow share


@dataclass
class WsolData:
    """The splits that a run needs and the names of the classes.

    skipped: {split: images left out by skip_bad}, empty where none was.
    """

    name: str
    splits: dict[str, SplitMetadata]
    class_names: list[str]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load_data(
    dataset_name: str,
    data_root: str,
    metadata_root: str,
    mask_root: str,
    *,
    splits: Sequence[str],
    proxy_training_set: bool = False,
    num_val_sample_per_class: int = 0,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int = 1,
) -> WsolData:
    """Read the metadata of the splits a run needs ("val" is left out where there is none) and look for their files.

    The data set `Synthetic` is written first if it is not there. The class count
    is the data set's own, or else the highest index in any of the splits plus 1.
    skip_bad: every image and mask is decoded once, by `workers` threads; what is
    missing or broken is reported and left out.

    Raises:
        InputError: see read_split; the data set's folders are missing; images or
            masks are missing; --num_val_sample_per_class without a val split.
    """
    info = dataset_info(dataset_name)
    folder = Path(metadata_root) / dataset_name
    if will_be_generated(dataset_name, metadata_root):
        info.generate(Path(data_root), Path(metadata_root), Path(mask_root))
    if not folder.is_dir():
        raise InputError(
            f"no metadata for the data set '{dataset_name}': {folder} is missing; {info.how_to_get} "
            f"(built in: {', '.join(DATASETS)})"
        )
    found = {}
    for split in splits:
        if not (folder / split).is_dir():
            _check_split_is_optional(folder, split, num_val_sample_per_class)
            continue
        ids_file = "image_ids_proxy.txt" if split == "train" and proxy_training_set else "image_ids.txt"
        found[split] = read_split(
            folder,
            split,
            image_root(dataset_name, data_root, split),
            Path(mask_root) / dataset_name,
            ids_file,
            wants_localization=split != "train",
        )
        if split != "train" and found[split].boxes is None and found[split].masks is None:
            raise InputError(f"{folder / split} has neither boxes nor masks: localization.txt is missing or empty")
    if num_val_sample_per_class and "val" in found:
        found["val"] = sample_per_class(found["val"], num_val_sample_per_class, seed)
    data = WsolData(dataset_name, found, _class_names(folder, found, info.num_classes))
    for split, metadata in found.items():
        _check_first_image(metadata)
        if skip_bad:
            data.splits[split] = leave_out_bad(metadata, workers)
            if len(data.splits[split]) < len(metadata):
                data.skipped[split] = len(metadata) - len(data.splits[split])
        else:
            check_files(metadata, workers)
    _warn_of_empty_classes(data)
    return data


def _check_split_is_optional(folder: Path, split: str, num_val_sample_per_class: int) -> None:
    """Only val may be missing, and only where no setting needs it."""
    present = ", ".join(s for s in SPLITS if (folder / s).is_dir()) or "none"
    if split != "val":
        raise InputError(
            f"{folder} has no {split} split (present: {present}), which this run needs; see metadata/README.md"
        )
    if num_val_sample_per_class:
        raise InputError(
            f"{folder} has no val split (present: {present}), and --num_val_sample_per_class "
            f"{num_val_sample_per_class} samples one; leave that flag out"
        )


def _check_first_image(metadata: SplitMetadata) -> None:
    """A wrong --data_root, said as what it is rather than as a million missing images."""
    path = metadata.image_path(0)
    if not path.is_file() and not metadata.image_root.is_dir():
        raise InputError(
            f"the first image of the {metadata.split} split is missing: {path}; check --data_root (and --dataset_name)"
        )


def check_files(metadata: SplitMetadata, workers: int = 1) -> None:
    """InputError that counts the images and masks of a split that are missing or cut short and names the first few.

    The ends of up to MOST_FILES_OPENED images and masks are read; of more (ILSVRC's training set) only presence is
    checked, and a broken file is named when its turn comes.
    """
    split, skip = metadata.split, "--skip_bad_images leaves them out"
    require_files(metadata.image_root, metadata.image_ids, f"{split} images", f"check --data_root; {skip}")
    check_masks(metadata, f"; {skip}")
    for root, names, decode, what in (
        (metadata.image_root, metadata.image_ids, check_image, "images"),
        (metadata.mask_root, metadata.mask_names, load_mask_image, "masks"),
    ):
        if len(names) > MOST_FILES_OPENED:
            continue

        def check(i: int) -> None:
            path = root / names[i]
            if not looks_whole(path):
                decode(path)

        bad = broken_files(check, range(len(names)), f"checking {split} {what}", max(workers, 4))  # mostly waiting
        if len(bad) == 1:
            raise InputError(next(iter(bad.values())))
        if bad:
            raise InputError(
                f"{len(bad):,} of {len(names):,} {split} {what} are broken; the first: {next(iter(bad.values()))}"
            )


def check_masks(metadata: SplitMetadata, or_else: str = "") -> None:
    """InputError that counts the masks of a split that are not there and names the first few."""
    require_files(metadata.mask_root, metadata.mask_names, f"{metadata.split} masks", f"check --mask_root{or_else}")


def leave_out_bad(metadata: SplitMetadata, workers: int = 1) -> SplitMetadata:
    """The split without the images that are missing, broken, or whose masks are; each is named in the log.

    Every file is decoded once, before training: so a run with bad images is, to
    the last digit, a run on the data set without them.

    Raises:
        InputError: nothing is left.
    """

    def check(index: int) -> None:
        check_image(metadata.image_path(index))
        if metadata.masks is not None:
            load_mask(metadata.mask_root, metadata.masks[index])

    bad = broken_files(check, range(len(metadata)), f"decoding {metadata.split}", workers)
    if not bad:
        return metadata
    for reason in list(bad.values())[:20]:
        log.warning("skipped (%s): %s", metadata.split, reason)
    log.warning(
        "--skip_bad_images: %s of %s images of the %s split are left out%s",
        f"{len(bad):,}",
        f"{len(metadata):,}",
        metadata.split,
        "; the first 20 are named above" if len(bad) > 20 else "",
    )
    if len(bad) == len(metadata):
        raise InputError(f"no image of the {metadata.split} split can be used; the first: {next(iter(bad.values()))}")
    return metadata.subset([i for i in range(len(metadata)) if i not in bad])


def _warn_of_empty_classes(data: WsolData) -> None:
    """A class without images is unusual, but no error: thresholds and scores are defined without it."""
    for split, metadata in data.splits.items():
        counts = np.bincount(metadata.labels, minlength=data.num_classes)
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            names = ", ".join(data.class_names[k] for k in empty[:3]) + (", ..." if len(empty) > 3 else "")
            log.warning(
                "%s of %s classes have no image in the %s split: %s",
                f"{len(empty):,}",
                f"{data.num_classes:,}",
                split,
                names,
            )


def sample_per_class(metadata: SplitMetadata, count: int, seed: int) -> SplitMetadata:
    """At most `count` images of each class, drawn with a seed, in their old order."""
    random = np.random.default_rng(seed)
    keep = []
    for label in np.unique(metadata.labels):
        members = np.flatnonzero(metadata.labels == label)
        keep.extend(random.permutation(members)[:count])
    return metadata.subset(sorted(keep))


def _class_names(folder: Path, splits: dict[str, SplitMetadata], num_classes: int | None) -> list[str]:
    """From classes.txt, else from the images' folders where each class has its own, else "class 7"."""
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
    parents: dict[int, set[str]] = {}
    for metadata in splits.values():
        folders = (image_id.rpartition("/")[0].rpartition("/")[2] for image_id in metadata.image_ids)
        for label, parent in set(zip(metadata.labels.tolist(), folders, strict=True)):
            parents.setdefault(label, set()).add(parent)
    own_folder = all(len(p) == 1 for p in parents.values()) and len(set.union(*parents.values())) == len(parents) > 1
    return [parents[k].copy().pop() if own_folder and k in parents else f"class {k}" for k in range(count)]
