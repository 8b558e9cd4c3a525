"""Write a data set in wsolevaluation's format, all of it or nothing.

`write_metadata` writes the text files; `publish_dataset` and `publish_metadata` make folders appear only when they are
complete. Whatever writes this format uses them: the generators beside this file (synthetic, cutouts) and the makers of
metadata (official, folder).
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.datasets.registry import SPLITS as SPLITS
from wsol.errors import InputError, plain_name

JPEG_QUALITY = 92


class Record(NamedTuple):
    """What the metadata says about one image.

    image_id: path below the image folder, e.g. 'train/red_star/0001.jpg'.
    size: (W, H) in pixels, None where it is unknown and there are no boxes.
    boxes: (x0, y0, x1, y1) in pixels, inclusive, one per instance.
    masks: paths below the mask folder, one per instance. ignore: path of the ignore mask, "" where there is none.
    """

    image_id: str
    class_index: int
    size: tuple[int, int] | None
    boxes: Sequence[tuple[int, int, int, int]] = ()
    masks: Sequence[str] = ()
    ignore: str = ""


class DatasetFolders(NamedTuple):
    """The three folders of one data set; any of them may be the same folder."""

    images: Path
    masks: Path
    metadata: Path

    @classmethod
    def of(
        cls, name: str, data_root: str | Path, metadata_root: str | Path, mask_root: str | Path | None = None
    ) -> DatasetFolders:
        """The folders of data set `name`; masks lie beside the images unless `mask_root` is given.

        Raises InputError for a name that is none of a folder.
        """
        plain_name("the data set's name", name)
        mask_root = data_root if mask_root is None else mask_root
        return cls(*(Path(root).absolute() / name for root in (data_root, mask_root, metadata_root)))


def write_metadata(
    folder: str | Path,
    records_by_split: Mapping[str, Sequence[Record]],
    class_names: Sequence[str],
    *,
    last_newline: bool = True,
    first_pixel: int = 0,
) -> None:
    """Write `<folder>/classes.txt` and the five text files of each split.

    Format: wsolevaluation's `image_ids.txt`, `class_labels.txt`, `image_sizes.txt`, `localization.txt` (boxes), and our
    `masks.txt` (`path,mask,ignore`; the ignore path stands on the first line of an image only and may be empty), left
    out where no image of the split has a mask. last_newline: wsolevaluation's own files mostly end without one.
    first_pixel: what boxes call the first pixel; Stanford Cars counts from 1.
    Raises ValueError for a record that the readers could not read back.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "classes.txt", class_names)
    for split, records in records_by_split.items():
        for record in records:
            _check_record(record, len(class_names), first_pixel)
        (folder / split).mkdir(exist_ok=True)
        lines = {
            "image_ids": [r.image_id for r in records],
            "class_labels": [f"{r.image_id},{r.class_index}" for r in records],
            "image_sizes": [f"{r.image_id},{r.size[0]},{r.size[1]}" for r in records if r.size],
            "localization": [f"{r.image_id},{x0},{y0},{x1},{y1}" for r in records for x0, y0, x1, y1 in r.boxes],
            "masks": [
                f"{r.image_id},{mask},{r.ignore if i == 0 else ''}" for r in records for i, mask in enumerate(r.masks)
            ],
        }
        for stem, content in lines.items():
            if content or stem != "masks":
                _write_lines(folder / split / f"{stem}.txt", content, last_newline)


def publish_metadata(folder: str | Path, fill: Callable[[Path], None], *, force: bool = False) -> list[str]:
    """Let `fill(temporary folder)` write splits and classes.txt, then move them into `folder`.

    A new data set appears in one step. Splits are added beside those that are there; one that is there already, or
    a classes.txt that says something else, is an error unless `force` replaces it. Should a step fail, what was there
    is put back.

    Returns the names of what was added or replaced. Raises InputError where something is in the way.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    try:
        new, old = workshop / "new", workshop / "old"
        new.mkdir()
        old.mkdir()
        fill(new)
        names = sorted(path.name for path in new.iterdir())
        if not _is_filled(folder):
            os.rename(new, folder)  # atomic; an empty folder may be in its place
            return names
        names = [name for name in names if not _is_same(folder / name, new / name)]
        there = [name for name in names if (folder / name).exists()]
        if there and not force:
            raise InputError(
                f"{folder} has {', '.join(there)} already, and differently; nothing was changed: --force "
                "replaces them, --metadata_root or --name write elsewhere"
            )
        _replace(folder, new, old, names)
        return names
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _replace(folder: Path, new: Path, old: Path, names: Sequence[str]) -> None:
    """Move new/name to folder/name for every name, what was there to old/; all of it or nothing."""
    moved: list[tuple[Path, Path]] = []
    try:
        for name in names:
            for source, target in ((folder / name, old / name), (new / name, folder / name)):
                if source.exists():
                    os.rename(source, target)
                    moved.append((source, target))
    except BaseException:
        for source, target in reversed(moved):
            os.rename(target, source)
        raise


def _is_same(left: Path, right: Path) -> bool:
    """Whether two files, or the files of two folders, are the same byte for byte."""
    if left.is_dir() and right.is_dir():
        return _same_files(left, right)
    return left.is_file() and right.is_file() and filecmp.cmp(left, right, shallow=False)


def save_example(
    folders: DatasetFolders, stem: str, class_index: int, image: NDArray[np.uint8], masks: Sequence[NDArray[np.uint8]]
) -> Record:
    """Save an RGB image (H, W, 3) as `<stem>.jpg` and each mask (H, W), 0 or 255, as `masks/<stem>_<number>.png`.

    The record's boxes are the extents of the masks.
    """
    mask_paths = [f"masks/{stem}_{i}.png" for i in range(len(masks))]
    _save(folders.images / f"{stem}.jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    for path, mask in zip(mask_paths, masks):
        _save(folders.masks / path, mask, [])
    return Record(
        f"{stem}.jpg", class_index, (image.shape[1], image.shape[0]), [mask_box(mask) for mask in masks], mask_paths
    )


def mask_box(mask: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """The box around a mask's (H, W) nonzero pixels: x0, y0, x1, y1, inclusive. ValueError for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        raise ValueError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _save(path: Path, pixels: NDArray[np.uint8], options: list[int]) -> None:
    """Encode by the path's suffix and write. Not cv2.imwrite: that answers a full disk with False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.ascontiguousarray(pixels), options)[1].tobytes())


def publish_dataset(folders: DatasetFolders, fill: Callable[[DatasetFolders], None]) -> bool:
    """Let `fill` write a data set into temporary folders, then rename them: images, masks, metadata last.

    So metadata that is there means a data set that is complete, and two processes may do this at once: the slower one's
    folders are thrown away. Nothing that is already there is deleted or overwritten. Where only some of the folders are
    there (an interrupted run, a second metadata root), the missing ones are added if `fill` reproduces the present ones
    byte by byte.

    Returns True if this call added a folder, False if the data set was there already.
    Raises InputError where a part of another data set is in the way.
    """
    if all(_is_filled(folder) for folder in folders):
        return False
    staged: dict[Path, Path] = {}  # final folder -> temporary folder, in the order of publication
    workshops: list[Path] = []
    try:
        for final in folders:
            if final not in staged:
                final.parent.mkdir(parents=True, exist_ok=True)
                workshop = Path(tempfile.mkdtemp(prefix=f".{final.name}-", suffix=".partial", dir=final.parent))
                workshops.append(workshop)
                # mkdtemp's folder is private (0700); the one inside, which gets published, has the usual permissions.
                staged[final] = workshop / final.name
                staged[final].mkdir()
        fill(DatasetFolders(*(staged[final] for final in folders)))
        return _rename_all(staged)
    finally:
        for workshop in workshops:
            shutil.rmtree(workshop, ignore_errors=True)


def _rename_all(staged: Mapping[Path, Path]) -> bool:
    """Rename every temporary folder to its final name, or accept what is there; see `publish_dataset` for the rules."""
    if all(_is_filled(final) for final in staged):
        return False
    for final, temporary in staged.items():  # all before the first rename: an error leaves no half data set behind
        if _is_filled(final):
            _require_same(final, temporary, staged)
    added = False
    for final, temporary in staged.items():
        try:
            os.rename(temporary, final)  # atomic; refuses a folder that is not empty
            added = True
        except OSError:
            if not _is_filled(final):
                raise
            _require_same(final, temporary, staged)
    return added


def _require_same(final: Path, temporary: Path, staged: Mapping[Path, Path]) -> None:
    if _same_files(final, temporary) or all(_is_filled(folder) for folder in staged):
        return
    missing = next(folder for folder in staged if not _is_filled(folder))
    raise InputError(
        f"{final} holds other files than the data set to be written, while {missing} is missing: "
        f"move {final} away, or choose other roots or another name"
    )


def _same_files(left: Path, right: Path) -> bool:
    """Whether two folders hold the same relative paths with the same bytes."""
    names = [
        sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) for folder in (left, right)
    ]
    return names[0] == names[1] and all(filecmp.cmp(left / n, right / n, shallow=False) for n in names[0])


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is not None


def _check_record(record: Record, num_classes: int, first_pixel: int = 0) -> None:
    width, height = record.size or (0, 0)
    for path in (record.image_id, *record.masks, record.ignore):
        if "," in path or "\n" in path:
            raise ValueError(f"path {path!r}: a comma or a line break cannot be written in this format")
    if not 0 <= record.class_index < num_classes:
        raise ValueError(f"{record.image_id}: class index {record.class_index} is not one of {num_classes} classes")
    for x0, y0, x1, y1 in record.boxes:
        low, right, bottom = first_pixel, width + first_pixel, height + first_pixel
        if not (low <= x0 <= x1 < right and low <= y0 <= y1 < bottom):
            raise ValueError(f"{record.image_id}: box {(x0, y0, x1, y1)} is not inside the {width}x{height} image")


def _write_lines(path: Path, lines: Sequence[str], last_newline: bool = True) -> None:
    path.write_text("\n".join(lines) + ("\n" if lines and last_newline else ""), encoding="utf-8")
