"""Metadata of a user's own pictures: images/<class>/*, with COCO json, Pascal VOC XML or mask images beside them.

    <source>/images/<class>/x.jpg              or images/{train,val,test}/<class>/x.jpg, where the splits are given
    <source>/masks/<class>/x.png               x_1.png, x_2.png ... for instances, x_ignore.png for what not to count
    <source>/annotations/<class>/x.xml         or annotations/x.xml

Image ids are paths below <source>, so data_root/<name> is that folder or a link to it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from wsol.datasets.images import IMAGE_SUFFIXES
from wsol.datasets.official import Box, Metadata, Size, clipped, image_sizes, read_voc
from wsol.datasets.registry import SPLITS
from wsol.datasets.writer import Record, mask_box
from wsol.errors import InputError
from wsol.log import progress


def own_folder(
    source: Path,
    *,
    coco: Path | None = None,
    voc: Path | None = None,
    masks: Path | None = None,
    shares: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> Metadata:
    """Metadata of <source>/images.

    Args:
        coco, voc, masks: one of them: a COCO json file, a folder of XML, a folder of masks below `source`.
        shares: of train, val and test within each class, drawn with `seed`, where images/ has no split folders.
            Images without annotation are for training only, whatever the shares are.

    Boxes are clipped to their images; COCO's x, y, w, h become whole pixels that cover the box. Masks give boxes, too.

    Raises:
        InputError: no images, an image of val or test (where splits are given) without annotation, a broken file.
    """
    if sum(given is not None for given in (coco, voc, masks)) != 1:
        raise InputError("give one of --coco FILE, --voc FOLDER and --masks FOLDER")
    images = Path(source) / "images"
    members = _images_by_split(images)
    classes = sorted({name for _, name, _ in members})
    ids = [image_id for _, _, image_id in members]
    sizes = image_sizes(source, ids)
    if coco is not None:
        boxes = _coco_boxes(Path(coco), members, sizes)
        found = {image_id: Record(image_id, 0, sizes[image_id], boxes[image_id]) for image_id in boxes}
    elif voc is not None:
        found = _voc_records(Path(voc), members, sizes)
    else:
        found = _mask_records(Path(source), Path(masks), ids, sizes)
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    by_ratio = members[0][0] is None
    chosen = _drawn_splits(members, found, shares, seed) if by_ratio else {i: split for split, _, i in members}
    for _, name, image_id in members:
        split = chosen[image_id]
        if split != "train" and image_id not in found:
            raise InputError(
                f"{image_id} of the {split} split has no annotation; boxes or masks are needed to evaluate"
            )
        record = found.get(image_id, Record(image_id, 0, sizes[image_id]))
        records[split].append(record._replace(class_index=classes.index(name)))
    if not found:
        raise InputError(f"no annotation belongs to any of the {len(ids)} images below {images}")
    return Metadata({split: some for split, some in records.items() if some}, classes)


def _images_by_split(images: Path) -> list[tuple[str | None, str, str]]:
    """(split or None, class, id) of every image, in the order of their paths."""
    if not images.is_dir():
        raise InputError(f"{images} is missing; pictures are expected in images/<class>/")
    folders = {p.name for p in images.iterdir() if p.is_dir()}
    given = {"train", "test"} <= folders <= set(SPLITS)
    members = []
    for split in [s for s in SPLITS if s in folders] if given else [None]:
        top = images / split if given else images
        for folder in sorted(p for p in top.iterdir() if p.is_dir()):
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    members.append((split, folder.name, path.relative_to(images.parent).as_posix()))
    if not members:
        raise InputError(f"no pictures in {images}/<class>/ ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return members


def _drawn_splits(members, found, shares: Sequence[float], seed: int) -> dict[str, str]:
    """{id: split}: within each class the annotated images are dealt out in a seeded order."""
    if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise InputError(
            f"--split {' '.join(map(str, shares))}: give three shares of train, val and test that add up to 1"
        )
    random = np.random.default_rng(seed)
    chosen = {image_id: "train" for _, _, image_id in members}
    for name in sorted({name for _, name, _ in members}):
        every = [image_id for _, of, image_id in members if of == name]
        annotated = [image_id for image_id in every if image_id in found]
        order = [annotated[i] for i in random.permutation(len(annotated))]
        val, test = (round(share * len(every)) for share in shares[1:])
        chosen |= dict.fromkeys(order[:test], "test") | dict.fromkeys(order[test : test + val], "val")
    return chosen


# --------------------------------------------------------------------------- COCO, VOC, masks


def _coco_boxes(path: Path, members, sizes: dict[str, Size]) -> dict[str, list[Box]]:
    """{id: boxes}. Files are matched by path below images/ or source, else by a name that is there once. Where the
    categories include an image's class, only its boxes count; otherwise all do."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        categories = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        annotations = [
            (entry["image_id"], categories.get(entry.get("category_id")), [float(v) for v in entry["bbox"]])
            for entry in content["annotations"]
        ]
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not COCO json with images, annotations and bbox ({type(error).__name__}: {error})"
        ) from None
    by_path = {}
    for _, name, image_id in members:
        for key in (image_id, image_id.removeprefix("images/"), image_id.rpartition("/")[2]):
            by_path[key] = None if key in by_path else (name, image_id)  # None: the name is there more than once
    boxes: dict[str, list[Box]] = {}
    for number, (image, category, bbox) in enumerate(annotations):
        member = by_path.get(files.get(image, ""))
        if member is None or (member[0] in categories.values() and category != member[0]):
            continue
        try:
            x, y, w, h = bbox
            box = (math.floor(x), math.floor(y), math.ceil(x + w) - 1, math.ceil(y + h) - 1)
            boxes.setdefault(member[1], []).append(clipped(box, sizes[member[1]]))
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path}: annotations[{number}], of {files[image]}: {error}") from None
    return boxes


def _voc_records(folder: Path, members, sizes: dict[str, Size]) -> dict[str, Record]:
    """XML at <folder>/<path of the image below images/> or <folder>/<name>.xml; classes as in COCO."""
    found = {}
    for _, name, image_id in progress(members, "annotations", unit="file"):
        below = Path(image_id).relative_to("images").with_suffix(".xml")
        path = next((p for p in (folder / below, folder / below.name) if p.is_file()), None)
        if path is None:
            continue
        objects = read_voc(path).objects
        same = [box for of, box in objects if of == name]
        try:
            boxes = [clipped(box, sizes[image_id]) for box in same or [box for _, box in objects]]
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        if boxes:
            found[image_id] = Record(image_id, 0, sizes[image_id], boxes)
    return found


def _mask_records(source: Path, folder: Path, ids: Sequence[str], sizes: dict[str, Size]) -> dict[str, Record]:
    try:
        prefix = folder.resolve().relative_to(source.resolve())
    except ValueError:
        raise InputError(f"{folder} is not below {source}; masks are named by their path below it") from None
    found = {}
    for image_id in progress(ids, "masks", unit="image"):
        below = Path(image_id).relative_to("images")
        there = source / prefix / below.parent
        pattern = re.compile(re.escape(below.stem) + r"(_\d+|_ignore)?\.png")
        names = sorted(p.name for p in there.glob("*.png") if pattern.fullmatch(p.name)) if there.is_dir() else []
        ignore = [n for n in names if n == f"{below.stem}_ignore.png"]
        instances = [n for n in names if n not in ignore]
        boxes = [_box_of(there / n, sizes[image_id]) for n in instances]
        if boxes:
            at = (prefix / below.parent).as_posix()
            found[image_id] = Record(
                image_id,
                0,
                sizes[image_id],
                boxes,
                [f"{at}/{n}" for n in instances],
                f"{at}/{ignore[0]}" if ignore else "",
            )
    return found


def _box_of(path: Path, size: Size) -> Box:
    values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if values is None:
        raise InputError(f"mask {path} cannot be read")
    if values.shape != size[::-1]:
        raise InputError(f"mask {path} is {values.shape[1]}x{values.shape[0]}, its image {size[0]}x{size[1]}")
    if not values.any():
        raise InputError(f"mask {path} is empty; take it away, or draw the object")
    return mask_box(values)
