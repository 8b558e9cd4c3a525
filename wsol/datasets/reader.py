"""Reading wsolevaluation's metadata format: a million images in seconds, errors with file and line.

    <folder>/<split>/{image_ids,class_labels,image_sizes,localization,masks}.txt

Files are read in blocks of lines, so little memory is needed beside the result. The numbers of a block become one
array.
Format: clovaai/wsolevaluation, README "Metadata"; `masks.txt` is our addition. See metadata/README.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol.errors import InputError, shortened
from wsol.geometry import resize_boxes

BLOCK = 1 << 16  # lines read at a time
MOST_PIXELS = 1_000_000  # limit of image sides and coordinates, so that no product overflows int64
MOST_CLASSES = 1_000_000
_short = partial(shortened, most=120)
_OTHER_PARTS = re.compile(r"(^|/)\.{0,2}(/|$)")


class MaskPaths(NamedTuple):
    """One image's mask files: foreground (their union counts), and what to ignore ("" for no such file)."""

    foreground: tuple[str, ...]
    ignore: str


@dataclass
class SplitMetadata:
    """One split. Everything is in the order of image_ids.txt.

    Attributes:
        split: "train", "val" or "test".
        image_ids: paths of the N images below image_root.
        labels: class indices, (N,) int64.
        image_root: folder that image ids start from.
        mask_root: folder that mask paths start from.
        sizes: widths and heights in pixels, (N, 2) int64, or None.
        boxes: for each image its boxes x0, y0, x1, y1 in the image's own pixels, (n_i, 4) int64; or None.
        masks: for each image its mask files; or None.
    """

    split: str
    image_ids: list[str]
    labels: NDArray[np.int64]
    image_root: Path
    mask_root: Path
    sizes: NDArray[np.int64] | None = None
    boxes: list[NDArray[np.int64]] | None = None
    masks: list[MaskPaths] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_path(self, index: int) -> Path:
        """The file of an image."""
        return self.image_root / self.image_ids[index]

    @property
    def mask_names(self) -> list[str]:
        """Every mask file of the split, once, as a path below mask_root."""
        names = (name for paths in self.masks or () for name in (*paths.foreground, paths.ignore) if name)
        return list(dict.fromkeys(names))

    def scaled_boxes(self, index: int) -> np.ndarray:
        """Ground-truth boxes of an image at the evaluation's 224 x 224, (n, 4) int64; only for a split with boxes."""
        assert self.boxes is not None
        assert self.sizes is not None
        return resize_boxes(self.boxes[index], self.sizes[index])

    def subset(self, indices: Sequence[int]) -> SplitMetadata:
        """The same split with only these images."""
        indices = list(indices)
        return dataclasses.replace(
            self,
            image_ids=[self.image_ids[i] for i in indices],
            labels=self.labels[indices],
            sizes=None if self.sizes is None else self.sizes[indices],
            boxes=None if self.boxes is None else [self.boxes[i] for i in indices],
            masks=None if self.masks is None else [self.masks[i] for i in indices],
        )


def read_split(
    folder: Path,
    split: str,
    image_root: Path,
    mask_root: Path,
    ids_file: str = "image_ids.txt",
    with_localization: bool = True,
) -> SplitMetadata:
    """Read `<folder>/<split>/*.txt` and check that the files agree with each other.

    Args:
        folder: the data set's metadata folder.
        split: "train", "val" or "test".
        image_root: folder that image ids start from.
        mask_root: folder that mask paths start from.
        ids_file: the file that lists the images.
        with_localization: also read sizes, boxes and masks, which training does not need.

    Raises:
        InputError: a file is missing, a line is malformed (file:line), an image has no label or two different ones, or
            localization.txt or masks.txt leaves out an image.
    """
    folder = Path(folder) / split
    image_ids = read_ids(folder / ids_file)
    position = _positions(folder / ids_file, image_ids)
    metadata = SplitMetadata(
        split, image_ids, read_labels(folder / "class_labels.txt", position), Path(image_root), Path(mask_root)
    )
    if with_localization:
        metadata.sizes = read_sizes(folder / "image_sizes.txt", position)
        _read_localization(folder, position, metadata)
    return metadata


def require_annotation(metadata: SplitMetadata, folder: Path) -> None:
    """InputError if nothing can be measured on a split, because it has neither boxes nor masks.

    Args:
        folder: that of the data set's metadata, for the message.
    """
    if metadata.boxes is None and metadata.masks is None:
        raise InputError(
            f"{folder / metadata.split} has neither boxes nor masks, so nothing can be measured on this split: "
            "localization.txt is missing or empty"
        )


def read_ids(path: Path) -> list[str]:
    """The lines of an image_ids.txt.

    Raises:
        InputError: there is no line, or one leads out of the data set's folder.
    """
    image_ids: list[str] = []
    for first, lines in _blocks(path):
        for number, line in enumerate(lines, first):
            if line and not _stays_below(line):  # score maps are written under this name
                raise InputError(
                    f"{path}:{number}: '{_short(line)}' leads out of the data set's folder or is no path of a file"
                )
        image_ids.extend(filter(None, lines))
    if not image_ids:
        raise InputError(f"{path} lists no image")
    return image_ids


def read_lines(path: Path) -> list[str]:
    """All stripped lines that are not empty; for short files such as classes.txt."""
    return [line for _, lines in _blocks(path) for line in lines if line]


def unknown_ids(path: Path, image_ids: Sequence[str], count: int) -> list[str]:
    """The ids in a file that are not among `image_ids`, each once; its lines have `count` fields behind the id."""
    known = set(image_ids)
    unknown: dict[str, None] = {}
    for first, lines in _blocks(path):
        numbers = np.arange(first, first + len(lines))[[bool(line) for line in lines]]
        names = _columns(path, numbers, list(filter(None, lines)), count, ",".join(["path", *["field"] * count]))[0]
        unknown |= dict.fromkeys(name for name in names if name not in known)
    return list(unknown)


# --------------------------------------------------------------------------- lines and columns


def _blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the first line, up to BLOCK stripped lines); line numbers count from 1."""
    number = 1
    try:
        with open(path, encoding="utf-8-sig") as file:  # editors on Windows begin a file with a byte order mark
            while lines := list(islice(file, BLOCK)):
                for i, line in enumerate(lines):
                    if "\0" in line:
                        raise InputError(f"{path}:{number + i}: a NUL byte; this is not a text file")
                yield number, list(map(str.strip, lines))
                number += len(lines)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; see metadata/README.md for the format and where to get it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None


def _positions(path: Path, image_ids: list[str]) -> dict[str, int]:
    """{image id: its position}; InputError for an id that is listed twice."""
    position = {image_id: i for i, image_id in enumerate(image_ids)}
    if len(position) < len(image_ids):
        twice = next(image_id for i, image_id in enumerate(image_ids) if position[image_id] != i)
        raise InputError(f"{path} lists {twice} twice")
    return position


class _Rows(NamedTuple):
    """Lines about images of the split.

    Attributes:
        numbers: line numbers, (n,).
        indices: image indices, (n,).
        fields: for each column behind the id, a list of n fields.
    """

    numbers: NDArray[np.int64]
    indices: NDArray[np.int64]
    fields: list[list[str]]


def _rows(path: Path, position: dict[str, int], count: int, form: str) -> Iterator[_Rows]:
    """Yield the lines `path,field,...` of a file, block by block; each has `count` fields behind the id.

    Ids may contain commas, so fields are split off from the right. Lines about images that image_ids.txt does not list
    (those outside a proxy set) are skipped.
    """
    for first, lines in _blocks(path):
        numbers = np.arange(first, first + len(lines))
        if not all(lines):
            numbers = numbers[[bool(line) for line in lines]]
            lines = list(filter(None, lines))
        names, *fields = _columns(path, numbers, lines, count, form)
        indices = np.array([position.get(name, -1) for name in names], dtype=np.int64)
        known = indices >= 0
        if not known.all():
            numbers, indices = numbers[known], indices[known]
            fields = [list(compress(column, known)) for column in fields]
        if len(indices):
            yield _Rows(numbers, indices, fields)


def _columns(path: Path, numbers: NDArray[np.int64], lines: list[str], count: int, form: str) -> list[list[str]]:
    """Columns: the ids, then each of the `count` fields behind them; InputError for a line with fewer fields."""
    if all(line.count(",") == count for line in lines):
        # One flat list: with one list per line, Python's garbage collector takes four times as long as the reading.
        flat = ",".join(lines).split(",") if lines else []
        return [flat[i :: count + 1] for i in range(count + 1)]
    columns: list[list[str]] = [[] for _ in range(count + 1)]
    for number, line in zip(numbers, lines, strict=True):
        row = line.rsplit(",", count)
        if len(row) != count + 1:
            raise InputError(f"{path}:{number}: '{_short(line)}' is not of the form {form}")
        for column, field in zip(columns, row, strict=True):
            column.append(field)
    return columns


def _integers(path: Path, rows: _Rows, what: str, most: int) -> NDArray[np.int64]:
    """The fields as (n, columns) int64; InputError for anything but a whole number from -most to most."""
    try:
        values = [_parse(column) for column in rows.fields]
    except ValueError:
        for number, fields in zip(rows.numbers, zip(*rows.fields, strict=True), strict=True):
            try:
                _parse(fields)
            except ValueError:
                raise InputError(
                    f"{path}:{number}: '{_short(','.join(fields))}' is not {what}; expected whole numbers"
                ) from None
        raise
    table = np.stack(values, axis=1)
    beyond = (table > most) | (table < -most)
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        raise InputError(f"{path}:{rows.numbers[row]}: {table[row, column]} is beyond {most:,}, the limit for {what}")
    return table


def _parse(fields: Sequence[str]) -> NDArray[np.int64]:
    """Whole numbers in ASCII digits; int() alone would accept 1_000 and the digits of every script."""
    text = ",".join(fields)
    if not text.isascii() or "_" in text:
        raise ValueError
    try:
        return np.array(list(map(int, fields)), dtype=np.int64)
    except OverflowError:
        raise ValueError from None


def _stays_below(path: str) -> bool:
    """Whether a relative path names one file below its folder, and in one way only: no "..", ".", "//" or end "/"."""
    return not _OTHER_PARTS.search(path)


# --------------------------------------------------------------------------- the files


def read_labels(path: Path, position: dict[str, int]) -> NDArray[np.int64]:
    """Class indices (N,) of the images in `position` ({image id: 0..N-1}); lines about other images are skipped."""
    labels = np.full(len(position), -1, dtype=np.int64)
    for rows in _rows(path, position, 1, "path,class_index"):
        values = _integers(path, rows, "a class index", MOST_CLASSES)[:, 0]
        if (values < 0).any():
            row = int(np.argmax(values < 0))
            raise InputError(f"{path}:{rows.numbers[row]}: class index {values[row]} is negative; classes count from 0")
        _assign(path, rows, labels[:, None], values[:, None], labels >= 0, "class index")
    if (labels < 0).any():
        raise InputError(f"{path} has no line for {list(position)[int(np.argmin(labels))]}")
    return labels


def read_sizes(path: Path, position: dict[str, int]) -> NDArray[np.int64] | None:
    """Widths and heights (N, 2), 0 for an image without a line; None if the file is missing or empty."""
    if not path.exists():
        return None
    sizes = np.zeros((len(position), 2), dtype=np.int64)
    for rows in _rows(path, position, 2, "path,width,height"):
        values = _integers(path, rows, "width,height", MOST_PIXELS)
        empty = values.min(axis=1) < 1
        if empty.any():
            raise InputError(f"{path}:{rows.numbers[int(np.argmax(empty))]}: width and height must be at least 1")
        _assign(path, rows, sizes, values, sizes[:, 0] > 0, "size")
    return sizes if sizes.any() else None


def _assign(path: Path, rows: _Rows, table: NDArray, values: NDArray, filled: NDArray[np.bool_], what: str) -> None:
    """Set table[indices] = values, (n, columns); InputError for a second line about an image with other values."""
    before = table[rows.indices]
    differs = filled[rows.indices] & (before != values).any(axis=1)
    table[rows.indices] = values
    after = (table[rows.indices] != values).any(axis=1)  # two lines in this block: the last one won
    for clash in (differs, after):
        if clash.any():
            raise InputError(
                f"{path}:{rows.numbers[int(np.argmax(clash))]}: another line gives a different {what} for this "
                "image; keep one"
            )


def _read_localization(folder: Path, position: dict[str, int], metadata: SplitMetadata) -> None:
    """Read boxes or masks, as its first line tells, from localization.txt, and masks from masks.txt."""
    path = folder / "localization.txt"
    first = _first_line(path)
    if first:
        if _is_box_line(first):
            metadata.boxes = read_boxes(path, position)
            _require_sizes(folder / "image_sizes.txt", position, metadata.sizes)
        else:
            metadata.masks = read_masks(path, position)
    if _first_line(folder / "masks.txt"):
        metadata.masks = read_masks(folder / "masks.txt", position)


def _require_sizes(path: Path, position: dict[str, int], sizes: NDArray[np.int64] | None) -> None:
    if sizes is None or not sizes.all():
        unsized = 0 if sizes is None else int(np.argmin(sizes.min(axis=1)))
        raise InputError(f"{path} has no width,height for {list(position)[unsized]}, which its boxes need")


def _first_line(path: Path) -> str:
    if not path.exists():
        return ""
    return next((line for _, lines in _blocks(path) for line in lines if line), "")


def _is_box_line(line: str) -> bool:
    """Whether it ends with four numbers; whether they are whole is `read_boxes`' question."""
    fields = line.split(",")
    try:
        return len(fields) >= 5 and bool(list(map(float, fields[-4:])))
    except ValueError:
        return False


def read_boxes(path: Path, position: dict[str, int], ordered: bool = True) -> list[NDArray[np.int64]]:
    """The boxes of each image, (n_i, 4) int64, at least one.

    Raises:
        InputError: an image has no box, a line is malformed, or with `ordered`, corners are in the wrong order.
    """
    indices, boxes = [np.empty(0, np.int64)], [np.empty((0, 4), np.int64)]
    for rows in _rows(path, position, 4, "path,x0,y0,x1,y1"):
        values = _integers(path, rows, "x0,y0,x1,y1", MOST_PIXELS)
        crossed = (values[:, 0] > values[:, 2]) | (values[:, 1] > values[:, 3])
        if ordered and crossed.any():
            row = int(np.argmax(crossed))
            raise InputError(
                f"{path}:{rows.numbers[row]}: box {','.join(map(str, values[row]))} has its corners in "
                "the wrong order (x0,y0,x1,y1)"
            )
        indices.append(rows.indices)
        boxes.append(values)
    image = np.concatenate(indices)
    counts = np.bincount(image, minlength=len(position))
    if not counts.all():
        raise InputError(f"{path} has no box for {list(position)[int(np.argmin(counts))]}")
    in_order = np.concatenate(boxes)[np.argsort(image, kind="stable")]
    ends = counts.cumsum().tolist()
    return [in_order[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def read_masks(path: Path, position: dict[str, int]) -> list[MaskPaths]:
    """The mask files of each image, at least one.

    Raises:
        InputError: an image has no mask, or a line is malformed.
    """
    foreground: list[tuple[str, ...]] = [()] * len(position)
    ignore = [""] * len(position)
    for rows in _rows(path, position, 2, "path,mask.png,ignore.png"):
        for number, index, mask, ignore_mask in zip(rows.numbers, rows.indices.tolist(), *rows.fields, strict=True):
            if not mask:
                raise InputError(f"{path}:{number}: no mask file is named")
            for name in filter(None, (mask, ignore_mask)):
                if not _stays_below(name):
                    raise InputError(f"{path}:{number}: the mask '{_short(name)}' leads out of --mask_root")
            if not foreground[index]:  # the ignore mask is named on an image's first line only
                ignore[index] = ignore_mask
            foreground[index] += (mask,)
    for image_id, masks in zip(position, foreground, strict=True):
        if not masks:
            raise InputError(f"{path} has no mask for {image_id}")
    return list(map(MaskPaths, foreground, ignore))
