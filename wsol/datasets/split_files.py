"""The image and mask files of a split: are they there and whole, or which images to skip."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsol.datasets.file_checks import broken_files, log_left_out, looks_whole, require_files
from wsol.datasets.images import MASK, check_image, image_size
from wsol.datasets.masks import load_mask, load_mask_image
from wsol.datasets.reader import SplitMetadata
from wsol.errors import InputError, counted, first_few
from wsol.log import log

MOST_FILES_OPENED = 100_000  # files whose ends are read before a run: seconds on a disk, minutes on a slow share


def check_files(metadata: SplitMetadata, workers: int = 1) -> None:
    """Check that the images and masks of a split are there and whole.

    Of at most MOST_FILES_OPENED images or masks, each file's header and end are read, and the sizes of images are
    compared with image_sizes.txt where boxes refer to those. Of more (ILSVRC's training set), only presence is checked;
    a broken file is then reported when it is decoded.

    Raises:
        InputError: files are missing, broken, too large to decode or of another size; the message counts them and
            names the first few.
    """
    split, or_skip = metadata.split, "or give --skip_bad_images to leave them out"
    require_files(metadata.image_root, metadata.image_ids, f"{split} images", f"check --data_root, {or_skip}")
    check_masks(metadata, f", {or_skip}")
    check_size = partial(_check_size, metadata)
    _require_whole(metadata.image_root, metadata.image_ids, check_image, check_size, f"{split} images", workers)
    _require_whole(metadata.mask_root, metadata.mask_names, load_mask_image, _check_mask, f"{split} masks", workers)


def _check_mask(_: int, path: Path) -> None:
    """InputError if a mask, by its header, is too large to decode."""
    image_size(path, MASK)


def _check_size(metadata: SplitMetadata, index: int, path: Path) -> None:
    """InputError if an image, by its header, is too large to decode, or has another size than its boxes refer to."""
    width, height = image_size(path)
    if metadata.boxes is None or metadata.sizes is None or (width, height) == tuple(metadata.sizes[index]):
        return
    listed = "x".join(map(str, metadata.sizes[index]))
    raise InputError(
        f"image {path} is {width}x{height}, but image_sizes.txt says {listed}, and its boxes refer to that; take the "
        "image that the metadata were made for, or correct the file"
    )


class OutsideBoxes(NamedTuple):
    """Boxes of a split that do not lie inside their image.

    beyond: descriptions of those with a negative corner, or one beyond the width or height. at_edge: the number of
    others with x1 = width or y1 = height: of a data set that counts pixels from 1, or takes the ends as exclusive.
    """

    beyond: list[str]
    at_edge: int


def boxes_outside(data: SplitMetadata) -> OutsideBoxes:
    """Find the boxes of a split that do not lie inside their image; none in a split without boxes."""
    if data.boxes is None or data.sizes is None:
        return OutsideBoxes([], 0)
    boxes = np.concatenate(data.boxes)
    images = np.repeat(np.arange(len(data)), list(map(len, data.boxes)))
    sizes = data.sizes[images]
    beyond = np.any((boxes[:, :2] < 0) | (boxes[:, 2:] > sizes), axis=1)
    at_edge = ~beyond & np.any(boxes[:, 2:] == sizes, axis=1)
    where = [
        f"{data.image_ids[k]} ({','.join(map(str, boxes[i]))} in {'x'.join(map(str, data.sizes[k]))})"
        for i, k in zip(np.flatnonzero(beyond), images[beyond], strict=True)
    ]
    return OutsideBoxes(where, int(at_edge.sum()))


def log_outside_boxes(data: SplitMetadata) -> None:
    """Log which boxes of a split do not lie inside their image. They are measured as they are."""
    outside = boxes_outside(data)
    if outside.at_edge:
        log.info(
            "%s boxes of the %s split end at x1 = width or y1 = height, one pixel beyond the last, as is common in "
            "published metadata; they are measured as they are",
            f"{outside.at_edge:,}",
            data.split,
        )
    if outside.beyond:
        log.warning(
            "%s beyond the image in the %s split: %s; check localization.txt and image_sizes.txt",
            counted(outside.beyond, "box extends", "boxes extend"),
            data.split,
            first_few(outside.beyond),
        )


def require_first_image(metadata: SplitMetadata) -> None:
    """Report a wrong --data_root as such, and not as a million missing images. Raises InputError."""
    path = metadata.image_path(0)
    if not path.is_file() and not metadata.image_root.is_dir():
        raise InputError(
            f"the first image of the {metadata.split} split is missing: {path}; check --data_root (and --dataset_name)"
        )


def check_masks(metadata: SplitMetadata, or_else: str = "") -> None:
    """Check that the mask files of a split are there; raises InputError as `check_files` does."""
    require_files(metadata.mask_root, metadata.mask_names, f"{metadata.split} masks", f"check --mask_root{or_else}")


def _require_whole(
    root: Path,
    names: list[str],
    decode: Callable[[Path], object],
    check_header: Callable[[int, Path], object],
    what: str,
    workers: int,
) -> None:
    """Raise an InputError that counts the broken files; a file is decoded only if its ends look wrong."""
    if len(names) > MOST_FILES_OPENED:
        return

    def check(i: int) -> None:
        path = root / names[i]
        check_header(i, path)
        if not looks_whole(path):
            decode(path)

    broken = broken_files(check, range(len(names)), f"checking {what}", max(workers, 4))  # mostly waiting for the disk
    if broken:
        first = next(iter(broken.values()))
        many = f"{len(broken):,} of {len(names):,} {what} cannot be used; the first: "
        raise InputError(first if len(broken) == 1 else many + first)


def skip_bad_images(metadata: SplitMetadata, workers: int = 1) -> SplitMetadata:
    """The split without the images that are missing or broken, or whose masks are; they are named in the log.

    Every file is decoded once, before training. A run that skips bad images therefore gives exactly the numbers of a
    run on the data set without them.

    Raises:
        InputError: no image is left.
    """

    def check(index: int) -> None:
        _check_size(metadata, index, metadata.image_path(index))
        check_image(metadata.image_path(index))
        if metadata.masks is not None:
            load_mask(metadata.mask_root, metadata.masks[index])

    bad = broken_files(check, range(len(metadata)), f"decoding {metadata.split} images", workers)
    if not bad:
        return metadata
    log_left_out(list(bad.values()))
    log.warning(
        "--skip_bad_images: %s of %s images of the %s split are left out",
        f"{len(bad):,}",
        f"{len(metadata):,}",
        metadata.split,
    )
    if len(bad) == len(metadata):
        raise InputError(f"no image of the {metadata.split} split can be used; the first: {next(iter(bad.values()))}")
    return metadata.subset([i for i in range(len(metadata)) if i not in bad])
