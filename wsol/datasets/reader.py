"""Read wsolevaluation's metadata format: a million images in seconds, every error with file and line.

    <folder>/<split>/{image_ids,class_labels,image_sizes,localization,masks}.txt

Files are read in blocks of lines, so what is held beside the result is small; whole numbers of a block become one array.
Format: clovaai/wsolevaluation, README "Metadata"; `masks.txt` is an addition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol.errors import InputError
from wsol.geometry import resize_boxes

BLOCK = 1 << 16  # lines read at a time
MOST_PIXELS = 1_000_000  # no image's side and no coordinate reaches this, so no product overflows int64
MOST_CLASSES = 1_000_000


class MaskPaths(NamedTuple):
    """One image's masks: foreground files (their union counts) and an ignore file, "" for none."""

    foreground: tuple[str, ...]
    ignore: str


@dataclass
class SplitMetadata:
    """One split, in the order of image_ids.txt; lists run parallel to image_ids.

    labels: (N,) int64. sizes: (N, 2) int64, width and height, or None. boxes: a (n_i, 4) int64 array x0, y0, x1, y1 in
    the image's own pixels for each image, or None. masks: MaskPaths for each image, or None.
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
        return self.image_root / self.image_ids[index]

    @property
    def mask_names(self) -> list[str]:
        """Every mask file of the split once, below mask_root."""
        return list(dict.fromkeys(m for paths in self.masks or () for m in (*paths.foreground, paths.ignore) if m))

    def scaled_boxes(self, index: int) -> np.ndarray:
        """Ground-truth boxes of image `index` at the evaluation's 224 x 224, (n, 4) int."""
        return resize_boxes(self.boxes[index], self.sizes[index])

    def subset(self, keep: Sequence[int]) -> SplitMetadata:
        """The same split with only these images."""

        def pick(values):
            return None if values is None else [values[i] for i in keep]

        sizes = None if self.sizes is None else self.sizes[list(keep)]
        return SplitMetadata(
            self.split,
            pick(self.image_ids),
            self.labels[list(keep)],
            self.image_root,
            self.mask_root,
            sizes,
            pick(self.boxes),
            pick(self.masks),
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

    Raises:
        InputError: a file is missing, a line is malformed (file:line), an image has no label or two, or an evaluated
            image has no box and no mask.
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


def read_ids(path: Path) -> list[str]:
    """The lines of an image_ids.txt; InputError for one that leads out of the data set's folder, and for none at all."""
    image_ids: list[str] = []
    for first, lines in _blocks(path):
        for number, line in enumerate(lines, first):
            if line.startswith("/") or (".." in line and ".." in line.split("/")):  # maps are written under this name
                raise InputError(f"{path}:{number}: '{line}' leads out of the data set's folder")
        image_ids.extend(filter(None, lines))
    if not image_ids:
        raise InputError(f"{path} lists no image")
    return image_ids


def read_lines(path: Path) -> list[str]:
    """The stripped lines that are not empty; for short files such as classes.txt."""
    return [line for _, lines in _blocks(path) for line in lines if line]


def unknown_ids(path: Path, image_ids: Sequence[str], count: int) -> list[str]:
    """Ids of a file's lines (`count` fields behind each id) that are not among `image_ids`, each once."""
    known, strange = set(image_ids), {}
    for first, lines in _blocks(path):
        numbers = np.arange(first, first + len(lines))[[bool(line) for line in lines]]
        names = _columns(path, numbers, list(filter(None, lines)), count, "a line of this file")[0]
        strange |= dict.fromkeys(name for name in names if name not in known)
    return list(strange)


# --------------------------------------------------------------------------- lines and columns


def _blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, stripped lines) of up to BLOCK lines at a time; line numbers count from 1."""
    number = 1
    try:
        with open(path, encoding="utf-8-sig") as file:  # editors on Windows begin a file with a byte order mark
            while lines := list(islice(file, BLOCK)):
                for i, line in enumerate(lines):
                    if "\0" in line:
                        raise InputError(f"{path}:{number + i}: a NUL byte; this is not a line of text")
                yield number, list(map(str.strip, lines))
                number += len(lines)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; see metadata/README.md for the format and where to get it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None


def _positions(path: Path, image_ids: list[str]) -> dict[str, int]:
    position = {image_id: i for i, image_id in enumerate(image_ids)}
    if len(position) < len(image_ids):
        twice = next(x for i, x in enumerate(image_ids) if position[x] != i)
        raise InputError(f"{path} lists {twice} twice")
    return position


class _Rows(NamedTuple):
    """Lines about images of the split: line numbers (n,), image indices (n,) and the fields behind the ids."""

    numbers: NDArray[np.int64]
    indices: NDArray[np.int64]
    fields: list[list[str]]  # a list of n fields for each column


def _rows(path: Path, position: dict[str, int], count: int, what: str) -> Iterator[_Rows]:
    """The lines `path,field,...` of a file, block by block, each with `count` fields behind the id.

    Ids may hold commas, so fields are split off from the right. Lines of images that image_ids.txt leaves out (a proxy
    set) are passed over.
    """
    for first, lines in _blocks(path):
        numbers = np.arange(first, first + len(lines))
        if not all(lines):
            numbers = numbers[[bool(line) for line in lines]]
            lines = list(filter(None, lines))
        names, *fields = _columns(path, numbers, lines, count, what)
        indices = np.array([position.get(name, -1) for name in names], dtype=np.int64)
        known = indices >= 0
        if not known.all():
            numbers, indices = numbers[known], indices[known]
            fields = [list(compress(column, known)) for column in fields]
        if len(indices):
            yield _Rows(numbers, indices, fields)


def _columns(path: Path, numbers: NDArray[np.int64], lines: list[str], count: int, what: str) -> list[list[str]]:
    """The id and the `count` fields behind it, as columns; InputError for a line of fewer fields."""
    if all(line.count(",") == count for line in lines):
        # One flat list: a list a line would make Python's garbage collector take four times as long as the reading.
        flat = ",".join(lines).split(",") if lines else []
        return [flat[i :: count + 1] for i in range(count + 1)]
    columns: list[list[str]] = [[] for _ in range(count + 1)]
    for number, line in zip(numbers, lines, strict=True):
        row = line.rsplit(",", count)
        if len(row) != count + 1:
            raise InputError(f"{path}:{number}: '{_short(line)}' is not {what}")
        for column, field in zip(columns, row, strict=True):
            column.append(field)
    return columns


def _integers(path: Path, rows: _Rows, what: str, most: int) -> NDArray[np.int64]:
    """The fields as (n, columns) int64; InputError for what is no whole number of at most `most`, either sign."""
    try:
        values = [_parse(column) for column in rows.fields]
    except ValueError:
        for number, fields in zip(rows.numbers, zip(*rows.fields, strict=True), strict=True):
            try:
                _parse(fields)
            except ValueError:
                raise InputError(
                    f"{path}:{number}: '{_short(','.join(fields))}' is not {what} in whole numbers"
                ) from None
        raise
    table = np.stack(values, axis=1)
    beyond = (table > most) | (table < -most)
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        raise InputError(f"{path}:{rows.numbers[row]}: {table[row, column]} is beyond {most:,}, too large in {what}")
    return table


def _parse(fields: Sequence[str]) -> NDArray[np.int64]:
    """Whole numbers in ASCII digits; int() alone would take 1_000 and the digits of every script."""
    text = ",".join(fields)
    if not text.isascii() or "_" in text:
        raise ValueError
    try:
        return np.array(list(map(int, fields)), dtype=np.int64)
    except OverflowError:
        raise ValueError from None


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


# --------------------------------------------------------------------------- the files


def read_labels(path: Path, position: dict[str, int]) -> NDArray[np.int64]:
    """Class indices (N,) of the images in `position`, {image id: its place 0..N-1}; lines of others are passed over."""
    labels = np.full(len(position), -1, dtype=np.int64)
    for rows in _rows(path, position, 1, "path,class_index"):
        values = _integers(path, rows, "a class index", MOST_CLASSES)[:, 0]
        if (values < 0).any():
            row = int(np.argmax(values < 0))
            raise InputError(f"{path}:{rows.numbers[row]}: class index {values[row]} is negative; classes count from 0")
        _assign(path, rows, labels[:, None], values[:, None], labels >= 0, "a class index")
    if (labels < 0).any():
        raise InputError(f"{path} has no line for {list(position)[int(np.argmin(labels))]}")
    return labels


def read_sizes(path: Path, position: dict[str, int]) -> NDArray[np.int64] | None:
    """Width and height (N, 2), 0 for an image without a line; None without any line or file."""
    if not path.exists():
        return None
    sizes = np.zeros((len(position), 2), dtype=np.int64)
    for rows in _rows(path, position, 2, "path,width,height"):
        values = _integers(path, rows, "width,height", MOST_PIXELS)
        empty = values.min(axis=1) < 1
        if empty.any():
            raise InputError(f"{path}:{rows.numbers[int(np.argmax(empty))]}: width and height must be at least 1")
        _assign(path, rows, sizes, values, sizes[:, 0] > 0, "a size")
    return sizes if sizes.any() else None


def _assign(path: Path, rows: _Rows, table: NDArray, values: NDArray, filled: NDArray[np.bool_], what: str) -> None:
    """table[indices] = values, (n, columns); InputError where a second line about an image says something else."""
    before = table[rows.indices]
    differs = filled[rows.indices] & (before != values).any(axis=1)
    table[rows.indices] = values
    after = (table[rows.indices] != values).any(axis=1)  # two lines of this block: the last one was kept
    for clash in (differs, after):
        if clash.any():
            raise InputError(
                f"{path}:{rows.numbers[int(np.argmax(clash))]}: {what} of this image stands on another "
                "line, too, and differs; keep one"
            )


def _read_localization(folder: Path, position: dict[str, int], metadata: SplitMetadata) -> None:
    """Boxes or masks from localization.txt, told apart by its first line, and masks from masks.txt."""
    path = folder / "localization.txt"
    first = _first_line(path)
    if first:
        if _is_box_line(first):
            metadata.boxes = read_boxes(path, position)
            _check_sizes(folder / "image_sizes.txt", position, metadata.sizes)
        else:
            metadata.masks = read_masks(path, position)
    if _first_line(folder / "masks.txt"):
        metadata.masks = read_masks(folder / "masks.txt", position)


def _check_sizes(path: Path, position: dict[str, int], sizes: NDArray[np.int64] | None) -> None:
    if sizes is None or not sizes.all():
        unsized = 0 if sizes is None else int(np.argmin(sizes.min(axis=1)))
        raise InputError(f"{path} has no width,height for {list(position)[unsized]}, which its boxes need")


def _first_line(path: Path) -> str:
    if not path.exists():
        return ""
    return next((line for _, lines in _blocks(path) for line in lines if line), "")


def _is_box_line(line: str) -> bool:
    return len(line.split(",")) >= 5 and all(f.strip().lstrip("-").isdigit() for f in line.split(",")[-4:])


def read_boxes(path: Path, position: dict[str, int], ordered: bool = True) -> list[NDArray[np.int64]]:
    """Boxes (n_i, 4) int64 of each image, at least one; `ordered`: corners in the wrong order are an InputError."""
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
    """Mask files of each image, at least one."""
    foreground: list[tuple[str, ...]] = [()] * len(position)
    ignore = [""] * len(position)
    for rows in _rows(path, position, 2, "path,mask.png,ignore.png"):
        for number, index, mask, ignore_mask in zip(rows.numbers, rows.indices.tolist(), *rows.fields, strict=True):
            if not mask:
                raise InputError(f"{path}:{number}: no mask file is named")
            if not foreground[index]:  # the ignore mask stands on an image's first line only
                ignore[index] = ignore_mask
            foreground[index] += (mask,)
    for image_id, masks in zip(position, foreground, strict=True):
        if not masks:
            raise InputError(f"{path} has no mask for {image_id}")
    return list(map(MaskPaths, foreground, ignore))
