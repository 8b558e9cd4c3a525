"""CUB-200-2011 (Wah et al., 2011): metadata from its text files."""

from __future__ import annotations

from pathlib import Path

from wsol.datasets.annotations import clip_box, errors_at, image_sizes
from wsol.datasets.writer import DatasetMetadata, Record
from wsol.errors import InputError

Table = dict[str, tuple[int, list[str]]]  # {first word of a line: (line number, the other words)}


def read_cub(source: Path, *, images: Path | None = None, sizes_file: Path | None = None) -> DatasetMetadata:
    """Train and test of CUB-200-2011.

    A box x, y, w, h becomes x, y, x + w, y + h, truncated to whole pixels and clipped to the image.

    Args:
        source: folder with images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt, classes.txt.
        images: folder of the class folders (default: <source>/images); image sizes are read from there.
        sizes_file: `path,width,height` lines, instead of reading the images.

    Raises:
        InputError: a file is missing, or a line is malformed (file:line).
    """
    paths = _read_table(source / "images.txt", 1)
    labels = _read_table(source / "image_class_labels.txt", 1)
    in_train = _read_table(source / "train_test_split.txt", 1)
    boxes = _read_table(source / "bounding_boxes.txt", 4)
    names = _read_table(source / "classes.txt", 1)
    for name, table in (
        ("image_class_labels.txt", labels),
        ("train_test_split.txt", in_train),
        ("bounding_boxes.txt", boxes),
    ):
        for key in paths:
            if key not in table:
                raise InputError(f"{source / name} has no line for image {key} of images.txt")
    ids = {key: words[0] for key, (_, words) in paths.items()}
    sizes = image_sizes(images or source / "images", list(ids.values()), sizes_file)
    class_index = {key: i for i, key in enumerate(names)}
    records: dict[str, list[Record]] = {"train": [], "test": []}
    for key, image_id in ids.items():
        number, (label,) = labels[key]
        if label not in class_index:
            raise InputError(f"{source / 'image_class_labels.txt'}:{number}: classes.txt has no class {label}")
        number, words = boxes[key]
        with errors_at(f"{source / 'bounding_boxes.txt'}:{number}"):
            x, y, w, h = map(float, words)
            box = clip_box((int(x), int(y), int(x + w), int(y + h)), sizes[image_id])
        split = "train" if in_train[key][1][0] == "1" else "test"
        records[split].append(Record(image_id, class_index[label], sizes[image_id], [box]))
    return DatasetMetadata(records, [words[0] for _, words in names.values()], final_newline=False)


def _read_table(path: Path, count: int) -> Table:
    """Read lines of `count` + 1 words; InputError for a missing file and for any other line (file:line)."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; is {path.parent} the unpacked CUB_200_2011?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    table = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and len(words) != count + 1:
            raise InputError(f"{path}:{number}: '{line.strip()}' has {len(words)} words, not {count + 1}")
        if words:
            table[words[0]] = number, words[1:]
    return table
