"""Everything that is wrong with a data set, as a report: counts, files, boxes, labels, classes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsol.datasets.file_checks import missing_files
from wsol.datasets.reader import SplitMetadata, read_ids, read_split, unknown_ids
from wsol.datasets.registry import SPLITS
from wsol.errors import InputError

MOST_NAMED = 3


class Report(NamedTuple):
    """Lines to print: what is there, and what is wrong."""

    facts: list[str]
    problems: list[str]


def check(
    metadata: Path,
    images: dict[str, Path],
    masks: Path,
    *,
    num_classes: int | None = None,
    look_for_files: bool = True,
    per_class: bool = False,
) -> Report:
    """Check the data set in folder `metadata`.

    Args:
        images: the folder that ids start from, for each split. masks: the folder that mask paths start from.
        num_classes: where it is known; else the highest index of all splits + 1.
        look_for_files: False checks the metadata alone.
        per_class: a line a class with its images in each split.

    Raises:
        InputError: there is no such folder, or no split in it.
    """
    present = [split for split in SPLITS if (metadata / split).is_dir()]
    if not present:
        raise InputError(f"{metadata} has no split (none of {', '.join(SPLITS)}); see metadata/README.md")
    report, read = Report([], []), {}
    for split in present:
        try:
            read[split] = read_split(metadata, split, images[split], masks, with_localization=split != "train")
        except InputError as error:
            report.problems.append(f"{split}: {error}")
    classes = num_classes or 1 + max((int(data.labels.max()) for data in read.values()), default=-1)
    counts = {split: np.bincount(data.labels, minlength=classes) for split, data in read.items()}
    for split, data in read.items():
        report.facts.append(_facts(data, counts[split]))
        problems = _problems(metadata / split, data, counts[split], classes) + (
            _missing(data) if look_for_files else []
        )
        report.problems.extend(f"{split}: {problem}" for problem in problems)
    seen: dict[str, str] = {}
    for split, data in read.items():
        if images[split] in {images[other] for other in read if other != split}:  # ids name the same files
            both = [i for i in data.image_ids if i in seen]
            if both:
                report.problems.append(f"{split}: {_some('image is', 'images are', both)} in {seen[both[0]]}, too")
            seen |= dict.fromkeys(data.image_ids, split)
    if per_class:
        report.facts.append("class  " + "".join(f"{split:>8}" for split in counts))
        report.facts.extend(
            f"{k:5}  " + "".join(f"{int(count[k]):8,}" for count in counts.values()) for k in range(classes)
        )
    return report


def _facts(data: SplitMetadata, counts: np.ndarray) -> str:
    filled = counts[counts > 0]
    annotation = []
    if data.boxes is not None:
        annotation.append(f"{sum(map(len, data.boxes)):,} boxes")
    if data.masks is not None:
        annotation.append(f"{sum(len(m.foreground) for m in data.masks):,} masks")
    return (
        f"{data.split}: {len(data):,} images of {len(filled):,} classes ({filled.min():,} to {filled.max():,} a "
        f"class, median {int(np.median(filled)):,})" + "".join(f", {text}" for text in annotation)
    )


def _problems(folder: Path, data: SplitMetadata, counts: np.ndarray, num_classes: int) -> list[str]:
    problems = []
    empty = np.flatnonzero(counts[:num_classes] == 0)
    if len(empty):
        first = ", ".join(map(str, empty[:MOST_NAMED])) + (", ..." if len(empty) > MOST_NAMED else "")
        problems.append(f"{len(empty):,} of {num_classes:,} classes have no image: index {first}")
    beyond = np.flatnonzero(data.labels >= num_classes)
    if len(beyond):
        problems.append(
            f"{_some('image has', 'images have', [data.image_ids[i] for i in beyond])} an index above "
            f"{num_classes - 1}, the last of {num_classes} classes"
        )
    if data.split != "train" and data.boxes is None and data.masks is None:
        problems.append("neither boxes nor masks: localization.txt is missing or empty")
    if data.boxes is not None:
        boxes = np.concatenate(data.boxes)
        image = np.repeat(np.arange(len(data)), list(map(len, data.boxes)))
        # x1 = width is let pass: Stanford Cars counts pixels from 1.
        outside = (boxes[:, :2] < 0).any(axis=1) | (boxes[:, 2:] > data.sizes[image]).any(axis=1)
        if outside.any():
            where = [
                f"{data.image_ids[k]} ({','.join(map(str, boxes[i]))} in {'x'.join(map(str, data.sizes[k]))})"
                for i, k in enumerate(image.tolist())
                if outside[i]
            ]
            problems.append(f"{_some('box reaches', 'boxes reach', where)} beyond the image")
    for name in ("class_labels.txt", "image_sizes.txt", "localization.txt", "masks.txt", "image_ids_proxy.txt"):
        count = {"class_labels.txt": 1, "image_sizes.txt": 2, "masks.txt": 2, "image_ids_proxy.txt": 0}.get(name)
        if count is None:
            count = 4 if data.boxes is not None else 2
        if (folder / name).is_file() and not (data.split == "train" and name == "localization.txt"):
            strange = (
                unknown_ids(folder / name, data.image_ids, count)
                if count
                else sorted(set(read_ids(folder / name)) - set(data.image_ids))
            )
            if strange:
                problems.append(
                    f"{_some('line', 'lines', strange)} of {name} about images that image_ids.txt does not list"
                )
    return problems


def _missing(data: SplitMetadata) -> list[str]:
    problems = []
    wanted = [("image", "--data_root", data.image_root, data.image_ids)]
    if data.masks is not None:
        names = list(dict.fromkeys(m for paths in data.masks for m in (*paths.foreground, paths.ignore) if m))
        wanted.append(("mask", "--mask_root", data.mask_root, names))
    for what, flag, root, names in wanted:
        missing = missing_files(root, names, f"{data.split} {what}s")
        if missing:
            named = _some(f"{what} is", f"{what}s are", [names[i] for i in missing])
            problems.append(f"{named} missing of {len(names):,} in {root} ({flag})")
    return problems


def _some(one: str, many: str, names: list[str]) -> str:
    """ "3 images are (a, b, c)" with at most three names."""
    more = ", ..." if len(names) > MOST_NAMED else ""
    return f"{len(names):,} {one if len(names) == 1 else many} ({', '.join(names[:MOST_NAMED])}{more})"
