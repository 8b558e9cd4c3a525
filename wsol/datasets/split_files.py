"""The image and mask files of a split: are they there and whole, or which images to skip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wsol.datasets.file_checks import broken_files, log_left_out, looks_whole, require_files
from wsol.datasets.images import check_image
from wsol.datasets.masks import load_mask, load_mask_image
from wsol.datasets.reader import SplitMetadata
from wsol.errors import InputError
from wsol.log import log

MOST_FILES_OPENED = 100_000  # files whose ends are read before a run: seconds on a disk, minutes on a slow share


def check_files(metadata: SplitMetadata, workers: int = 1) -> None:
    """Check that the images and masks of a split are there and whole.

    Of at most MOST_FILES_OPENED images or masks, each file's end is read. Of more (ILSVRC's training set), only
    presence is checked; a broken file is then reported when it is decoded.

    Raises:
        InputError: files are missing or broken; the message counts them and names the first few.
    """
    split, or_skip = metadata.split, "or give --skip_bad_images to leave them out"
    require_files(metadata.image_root, metadata.image_ids, f"{split} images", f"check --data_root, {or_skip}")
    check_masks(metadata, f", {or_skip}")
    _require_whole(metadata.image_root, metadata.image_ids, check_image, f"{split} images", workers)
    _require_whole(metadata.mask_root, metadata.mask_names, load_mask_image, f"{split} masks", workers)


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


def _require_whole(root: Path, names: list[str], decode: Callable[[Path], object], what: str, workers: int) -> None:
    """Raise an InputError that counts the broken files; a file is decoded only if its ends look wrong."""
    if len(names) > MOST_FILES_OPENED:
        return

    def check(i: int) -> None:
        if not looks_whole(root / names[i]):
            decode(root / names[i])

    broken = broken_files(check, range(len(names)), f"checking {what}", max(workers, 4))  # mostly waiting for the disk
    if broken:
        first = next(iter(broken.values()))
        counted = f"{len(broken):,} of {len(names):,} {what} are broken; the first: "
        raise InputError(first if len(broken) == 1 else counted + first)


def skip_bad_images(metadata: SplitMetadata, workers: int = 1) -> SplitMetadata:
    """The split without the images that are missing or broken, or whose masks are; they are named in the log.

    Every file is decoded once, before training. A run that skips bad images therefore gives exactly the numbers of a
    run on the data set without them.

    Raises:
        InputError: no image is left.
    """

    def check(index: int) -> None:
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
