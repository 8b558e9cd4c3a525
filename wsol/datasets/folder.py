"""Metadata of a user's own pictures: images/<class>/*, annotated by COCO json, Pascal VOC XML or mask images.

    <source>/images/<class>/x.jpg              or images/{train,val,test}/<class>/x.jpg with given splits
    <source>/masks/<class>/x.png               x_1.png, x_2.png ... for instances, x_ignore.png for an ignore mask
    <source>/annotations/<class>/x.xml         or annotations/x.xml

Image ids are paths below <source>, so <data_root>/<name> is that folder or a link to it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from wsol.datasets.annotations import clip_box, image_sizes, read_voc
from wsol.datasets.images import IMAGE_SUFFIXES
from wsol.datasets.registry import SPLITS
from wsol.datasets.writer import Box, DatasetMetadata, Record, Size, mask_box
from wsol.errors import InputError, first_few
from wsol.log import progress


class Member(NamedTuple):
    """An image: its split (None if splits are to be drawn), class name and id."""

    split: str | None
    class_name: str
    image_id: str


def read_folder(
    source: Path,
    *,
    coco: Path | None = None,
    voc: Path | None = None,
    masks: Path | None = None,
    shares: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> DatasetMetadata:
    """Metadata of <source>/images.

    Boxes are clipped to their images. COCO's x, y, w, h become the whole pixels that cover the box. Masks give boxes,
    too.

    Args:
        source: the folder that contains images/.
        coco: a COCO json file (give exactly one of coco, voc and masks).
        voc: a folder of XML files.
        masks: a folder of masks, below `source`.
        shares: of train, val and test within each class, if images/ has no split folders. Images without annotation
            are used for training only, whatever the shares are.
        seed: for drawing the splits.

    Raises:
        InputError: there are no images, an image in a val or test folder has no annotation, or a file is broken.
    """
    if sum(given is not None for given in (coco, voc, masks)) != 1:
        raise InputError("give one of --coco FILE, --voc FOLDER and --masks FOLDER")
    members = _find_members(source / "images")
    class_names = sorted({member.class_name for member in members})
    ids = [member.image_id for member in members]
    sizes = image_sizes(source, ids)
    if coco is not None:
        annotated = _coco_records(coco, members, sizes)
    elif voc is not None:
        annotated = _voc_records(voc, members, sizes)
    else:
        assert masks is not None
        annotated = _mask_records(source, masks, ids, sizes)
    splits = _draw_splits(members, annotated, shares, seed) if members[0].split is None else {}
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for member in members:
        split = member.split or splits[member.image_id]
        if split != "train" and member.image_id not in annotated:
            raise InputError(
                f"{member.image_id} of the {split} split has no annotation; boxes or masks are needed to evaluate"
            )
        record = annotated.get(member.image_id, Record(member.image_id, 0, sizes[member.image_id]))
        records[split].append(record._replace(class_index=class_names.index(member.class_name)))
    if not annotated:
        raise InputError(f"no annotation belongs to any of the {len(ids)} images below {source / 'images'}")
    return DatasetMetadata({split: members for split, members in records.items() if members}, class_names)


def _find_members(images: Path) -> list[Member]:
    """Every image below the class folders, in the order of their paths."""
    if not images.is_dir():
        raise InputError(f"{images} is missing; pictures are expected in images/<class>/")
    folders = {path.name for path in images.iterdir() if path.is_dir()}
    has_splits = {"train", "test"} <= folders <= set(SPLITS)
    members = []
    for split in [split for split in SPLITS if split in folders] if has_splits else [None]:
        top = images / split if split else images
        for folder in sorted(path for path in top.iterdir() if path.is_dir()):
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    members.append(Member(split, folder.name, path.relative_to(images.parent).as_posix()))
    if not members:
        raise InputError(f"no pictures in {images}/<class>/ ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return members


def _draw_splits(
    members: Sequence[Member], annotated: Mapping[str, Record], shares: Sequence[float], seed: int
) -> dict[str, str]:
    """{image id: split}: the annotated images of each class are shuffled and divided; all others go to train."""
    if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise InputError(
            f"--split {' '.join(map(str, shares))}: give three shares of train, val and test that add up to 1"
        )
    random = np.random.default_rng(seed)
    splits = {member.image_id: "train" for member in members}
    for name in sorted({member.class_name for member in members}):
        ids = [member.image_id for member in members if member.class_name == name]
        usable = [image_id for image_id in ids if image_id in annotated]
        order = [usable[i] for i in random.permutation(len(usable))]
        val, test = (round(share * len(ids)) for share in shares[1:])
        splits |= dict.fromkeys(order[:test], "test") | dict.fromkeys(order[test : test + val], "val")
    return splits


# --------------------------------------------------------------------------- COCO, VOC, masks


def _coco_records(path: Path, members: Sequence[Member], sizes: Mapping[str, Size]) -> dict[str, Record]:
    """Records of the images that the file has boxes for.

    A file is matched by its path below images/ or the source, or by its name, which must then be unique. If the
    categories include an image's class, only boxes of that category count; otherwise all do.
    """
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
    by_path: dict[str, list[Member]] = {}
    for member in members:
        for key in (member.image_id, member.image_id.removeprefix("images/"), member.image_id.rpartition("/")[2]):
            by_path.setdefault(key, []).append(member)
    boxes: dict[str, list[Box]] = {}
    for number, (image, category, bbox) in enumerate(annotations):
        matches = by_path.get(files.get(image, ""), [])
        if len(matches) > 1:
            raise InputError(
                f"{path}: the file_name '{files[image]}' fits {first_few(match.image_id for match in matches)}; give "
                "its path below images/"
            )
        match = matches[0] if matches else None
        if match is None or (match.class_name in categories.values() and category != match.class_name):
            continue
        try:
            x, y, w, h = bbox
            box = (math.floor(x), math.floor(y), math.ceil(x + w) - 1, math.ceil(y + h) - 1)
            boxes.setdefault(match.image_id, []).append(clip_box(box, sizes[match.image_id]))
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path}: annotations[{number}], of {files[image]}: {error}") from None
    return {image_id: Record(image_id, 0, sizes[image_id], boxes[image_id]) for image_id in boxes}


def _voc_records(folder: Path, members: Sequence[Member], sizes: Mapping[str, Size]) -> dict[str, Record]:
    """Records from <folder>/<path of the image below images/>.xml or <folder>/<name>.xml; classes as in COCO."""
    records = {}
    for _, class_name, image_id in progress(members, "annotations", unit="file"):
        below = Path(image_id).relative_to("images").with_suffix(".xml")
        path = next((p for p in (folder / below, folder / below.name) if p.is_file()), None)
        if path is None:
            continue
        # Pascal VOC counts pixels from 1 (VOC2012 development kit, section 3.3), our format from 0.
        objects = [(name, (x0 - 1, y0 - 1, x1 - 1, y1 - 1)) for name, (x0, y0, x1, y1) in read_voc(path).objects]
        same_class = [box for name, box in objects if name == class_name]
        try:
            boxes = [clip_box(box, sizes[image_id]) for box in same_class or [box for _, box in objects]]
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        if boxes:
            records[image_id] = Record(image_id, 0, sizes[image_id], boxes)
    return records


def _mask_records(source: Path, folder: Path, ids: Sequence[str], sizes: Mapping[str, Size]) -> dict[str, Record]:
    """Records from the mask images x.png, or x_1.png, x_2.png ..., and x_ignore.png of each image x."""
    try:
        prefix = folder.resolve().relative_to(source.resolve())
    except ValueError:
        raise InputError(f"{folder} is not below {source}; masks are named by their path below it") from None
    records = {}
    for image_id in progress(ids, "masks", unit="image"):
        image = Path(image_id).relative_to("images")
        where = prefix / image.parent
        pattern = re.compile(re.escape(image.stem) + r"(_\d+|_ignore)?\.png")
        names = sorted(path.name for path in (source / where).glob("*.png") if pattern.fullmatch(path.name))
        paths = {name: (where / name).as_posix() for name in names}
        ignore = paths.pop(f"{image.stem}_ignore.png", "")
        boxes = [_box_of_mask(source / path, sizes[image_id]) for path in paths.values()]
        if boxes:
            records[image_id] = Record(image_id, 0, sizes[image_id], boxes, list(paths.values()), ignore)
    return records


def _box_of_mask(path: Path, size: Size) -> Box:
    values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if values is None:
        raise InputError(f"mask {path} cannot be read")
    if values.shape != size[::-1]:
        raise InputError(f"mask {path} is {values.shape[1]}x{values.shape[0]}, its image {size[0]}x{size[1]}")
    if not values.any():
        raise InputError(f"mask {path} is empty; remove it, or draw the object")
    return mask_box(values.astype(np.uint8))
