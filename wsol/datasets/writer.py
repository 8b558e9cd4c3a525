"""Writing a data set's files in wsolevaluation's format: the text files, and drawn images with their masks.

Whatever writes this format uses this module: the generators (synthetic, cutouts) and the makers of metadata (official,
folder). `wsol.datasets.publish` makes what they write appear as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.datasets.registry import SPLITS as SPLITS
from wsol.errors import plain_name

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, both ends inclusive
Size = tuple[int, int]  # width, height in pixels
JPEG_QUALITY = 92


class Record(NamedTuple):
    """What the metadata says about one image.

    Attributes:
        image_id: path below the image folder, such as "train/red_star/0001.jpg".
        class_index: counts from 0.
        size: width and height; None if unknown, and then there are no boxes.
        boxes: one per instance.
        masks: paths below the mask folder, one per instance.
        ignore: path of the ignore mask, "" for none.
    """

    image_id: str
    class_index: int
    size: Size | None
    boxes: Sequence[Box] = ()
    masks: Sequence[str] = ()
    ignore: str = ""


class DatasetMetadata(NamedTuple):
    """The metadata of a data set, to be written.

    Attributes:
        records: the images of each split.
        class_names: in the order of the class indices.
        final_newline: whether the text files end with a newline; wsolevaluation's own mostly do not.
        first_pixel: coordinate of the first pixel in boxes; Stanford Cars counts from 1.
    """

    records: Mapping[str, Sequence[Record]]
    class_names: Sequence[str]
    final_newline: bool = True
    first_pixel: int = 0


class DatasetFolders(NamedTuple):
    """The three folders of one data set; any of them may be the same folder."""

    images: Path
    masks: Path
    metadata: Path

    @classmethod
    def named(
        cls, name: str, data_root: Path | str, metadata_root: Path | str, mask_root: Path | str | None = None
    ) -> DatasetFolders:
        """The folders of data set `name` below the roots; masks are beside the images unless `mask_root` is given.

        Raises:
            InputError: the name cannot be that of a folder.
        """
        plain_name("the data set's name", name)
        mask_root = data_root if mask_root is None else mask_root
        return cls(*(Path(root).absolute() / name for root in (data_root, mask_root, metadata_root)))


def write_metadata(folder: Path, metadata: DatasetMetadata) -> None:
    """Write `<folder>/classes.txt` and the text files of each split.

    Format: wsolevaluation's image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt (boxes), plus our
    masks.txt (`path,mask,ignore`, see metadata/README.md) if any image of the split has a mask.

    Raises:
        ValueError: a record could not be read back: a comma in a path, a class index or a box out of range.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "classes.txt", metadata.class_names)
    for split, records in metadata.records.items():
        for record in records:
            _check_record(record, len(metadata.class_names), metadata.first_pixel)
        (folder / split).mkdir(exist_ok=True)
        lines = {
            "image_ids": [r.image_id for r in records],
            "class_labels": [f"{r.image_id},{r.class_index}" for r in records],
            "image_sizes": [f"{r.image_id},{r.size[0]},{r.size[1]}" for r in records if r.size],
            "localization": [f"{r.image_id},{x0},{y0},{x1},{y1}" for r in records for x0, y0, x1, y1 in r.boxes],
            # The ignore mask is named on an image's first line only.
            "masks": [
                f"{r.image_id},{mask},{r.ignore if i == 0 else ''}" for r in records for i, mask in enumerate(r.masks)
            ],
        }
        for stem, content in lines.items():
            if content or stem != "masks":
                _write_lines(folder / split / f"{stem}.txt", content, metadata.final_newline)


def _check_record(record: Record, num_classes: int, first_pixel: int) -> None:
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


def _write_lines(path: Path, lines: Sequence[str], final_newline: bool = True) -> None:
    path.write_text("\n".join(lines) + ("\n" if lines and final_newline else ""), encoding="utf-8")


def save_example(
    folders: DatasetFolders,
    stem: str,
    class_index: int,
    image: NDArray[np.uint8],
    masks: Sequence[NDArray[np.uint8]],
) -> Record:
    """Save an RGB image (H, W, 3) as `<stem>.jpg` and each mask (H, W), 0 or 255, as `masks/<stem>_<number>.png`.

    Returns:
        The image's record; its boxes are the extents of the masks.
    """
    mask_paths = [f"masks/{stem}_{i}.png" for i in range(len(masks))]
    _save(folders.images / f"{stem}.jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    for path, mask in zip(mask_paths, masks, strict=True):
        _save(folders.masks / path, mask, [])
    height, width = image.shape[:2]
    return Record(f"{stem}.jpg", class_index, (width, height), [mask_box(mask) for mask in masks], mask_paths)


def mask_box(mask: NDArray[np.uint8]) -> Box:
    """The box around the nonzero pixels of a mask (H, W). Raises ValueError for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        raise ValueError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _save(path: Path, pixels: NDArray[np.uint8], options: list[int]) -> None:
    """Encode in the format of the path's suffix, and write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not cv2.imwrite, which only returns False on a full disk.
    path.write_bytes(cv2.imencode(path.suffix, np.ascontiguousarray(pixels), options)[1].tobytes())
