"""Reporting everything that is wrong with a data set: counts, files, boxes, labels, classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol.datasets.file_checks import missing_files
from wsol.datasets.reader import SplitMetadata, read_ids, read_split, unknown_ids
from wsol.datasets.registry import SPLITS
from wsol.datasets.split_files import boxes_outside
from wsol.errors import InputError, counted, first_few


class Report(NamedTuple):
    """Lines to print: a summary of what is there, and the problems."""

    summary: list[str]
    problems: list[str]


def check_dataset(
    folder: Path,
    image_roots: Mapping[str, Path],
    mask_root: Path,
    *,
    num_classes: int | None = None,
    look_for_files: bool = True,
    per_class: bool = False,
) -> Report:
    """Check a data set.

    Args:
        folder: its metadata.
        image_roots: for each split, the folder that image ids start from.
        mask_root: the folder that mask paths start from.
        num_classes: number of classes if known; otherwise the highest index of all splits + 1.
        look_for_files: False checks the metadata alone.
        per_class: add one line per class with its number of images in each split.

    Raises:
        InputError: the folder does not exist or has no split.
    """
    present = [split for split in SPLITS if (folder / split).is_dir()]
    if not present:
        raise InputError(f"{folder} has no split (none of {', '.join(SPLITS)}); see metadata/README.md")
    report, splits = Report([], []), {}
    for split in present:
        try:
            splits[split] = read_split(folder, split, image_roots[split], mask_root, with_localization=split != "train")
        except InputError as error:
            report.problems.append(f"{split}: {error}")
    classes = num_classes or 1 + max((int(data.labels.max()) for data in splits.values()), default=-1)
    counts = {split: np.bincount(data.labels, minlength=classes) for split, data in splits.items()}
    for split, data in splits.items():
        report.summary.append(_summary(data, counts[split]))
        problems = [
            *_class_problems(data, counts[split], classes),
            *_box_problems(data),
            *_unlisted_images(folder / split, data),
            *(_missing_files(data) if look_for_files else []),
        ]
        report.problems.extend(f"{split}: {problem}" for problem in problems)
    report.problems.extend(_images_in_two_splits(splits))
    if per_class:
        report.summary.append("class  " + "".join(f"{split:>8}" for split in counts))
        report.summary.extend(
            f"{k:5}  " + "".join(f"{int(count[k]):8,}" for count in counts.values()) for k in range(classes)
        )
    return report


def _summary(data: SplitMetadata, counts: NDArray[np.int64]) -> str:
    """One line about a split; `counts`: images per class."""
    filled = counts[counts > 0]
    text = (
        f"{data.split}: {len(data):,} images of {len(filled):,} classes "
        f"({filled.min():,} to {filled.max():,} per class, median {int(np.median(filled)):,})"
    )
    if data.boxes is not None:
        text += f", {sum(map(len, data.boxes)):,} boxes"
    if data.masks is not None:
        text += f", {sum(len(paths.foreground) for paths in data.masks):,} masks"
    return text


def _class_problems(data: SplitMetadata, counts: NDArray[np.int64], num_classes: int) -> list[str]:
    problems = []
    empty = np.flatnonzero(counts[:num_classes] == 0)
    if len(empty):
        problems.append(f"{len(empty):,} of {num_classes:,} classes have no image: index {first_few(empty)}")
    beyond = [data.image_ids[i] for i in np.flatnonzero(data.labels >= num_classes)]
    if beyond:
        problems.append(
            f"{counted(beyond, 'image has', 'images have')} a class index above {num_classes - 1}, the last of "
            f"{num_classes} classes: {first_few(beyond)}"
        )
    return problems


def _box_problems(data: SplitMetadata) -> list[str]:
    if data.split != "train" and data.boxes is None and data.masks is None:
        return ["neither boxes nor masks: localization.txt is missing or empty"]
    outside = boxes_outside(data).beyond
    if not outside:
        return []
    return [f"{counted(outside, 'box extends', 'boxes extend')} beyond the image: {first_few(outside)}"]


def _unlisted_images(folder: Path, data: SplitMetadata) -> list[str]:
    """Lines about images that image_ids.txt does not list, in the split's other files."""
    fields = {"class_labels.txt": 1, "image_sizes.txt": 2, "masks.txt": 2, "image_ids_proxy.txt": 0}
    if data.split != "train":
        fields["localization.txt"] = 4 if data.boxes is not None else 2
    problems = []
    for name, count in fields.items():
        if not (folder / name).is_file():
            continue
        unlisted = (
            unknown_ids(folder / name, data.image_ids, count)
            if count
            else sorted(set(read_ids(folder / name)) - set(data.image_ids))
        )
        if unlisted:
            problems.append(
                f"{name} has lines about {counted(unlisted, 'image', 'images')} that image_ids.txt does not list: "
                f"{first_few(unlisted)}"
            )
    return problems


def _missing_files(data: SplitMetadata) -> list[str]:
    problems = []
    for what, flag, root, names in (
        ("images", "--data_root", data.image_root, data.image_ids),
        ("masks", "--mask_root", data.mask_root, data.mask_names),
    ):
        missing = [names[i] for i in missing_files(root, names, f"{data.split} {what}")]
        if missing:
            problems.append(
                f"{len(missing):,} of {len(names):,} {what} are missing in {root} ({flag}): {first_few(missing)}"
            )
    return problems


def _images_in_two_splits(splits: Mapping[str, SplitMetadata]) -> list[str]:
    """Images listed in two splits whose ids start from the same folder."""
    problems = []
    first_seen: dict[str, str] = {}
    for split, data in splits.items():
        if data.image_root not in {other.image_root for name, other in splits.items() if name != split}:
            continue
        twice = [image_id for image_id in data.image_ids if image_id in first_seen]
        if twice:
            problems.append(
                f"{split}: {counted(twice, 'image is', 'images are')} also in {first_seen[twice[0]]}: "
                f"{first_few(twice)}"
            )
        first_seen |= dict.fromkeys(data.image_ids, split)
    return problems
