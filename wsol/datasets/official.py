"""Metadata from the files that data sets are published with: CUB-200-2011, Stanford Cars, ILSVRC 2012; or copied.

Each maker returns what `publish` writes. They follow wsolevaluation's own files: ids, order, class indices and boxes are
theirs, byte for byte, as tests show. What official files cannot tell: the val splits of CUB (CUBv2) and of ILSVRC
(ImageNetV2's images with wsolevaluation's boxes), ILSVRC's proxy training set, and all of OpenImages30k: `copy` these.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from wsol.datasets.file_checks import require_files
from wsol.datasets.reader import read_ids, read_lines, read_split
from wsol.datasets.registry import SPLITS
from wsol.datasets.writer import Record, publish_metadata, write_metadata
from wsol.errors import InputError
from wsol.log import progress

Box = tuple[int, int, int, int]
Size = tuple[int, int]  # width, height
SPLIT_NAMES = {"train": "train", "val": "val", "train-fullsup": "val", "test": "test"}  # folder in a source -> ours
FILES = ("image_ids.txt", "image_ids_proxy.txt", "class_labels.txt", "image_sizes.txt", "localization.txt", "masks.txt")


class Metadata(NamedTuple):
    """What a maker found; the last two as `write_metadata` has them."""

    records: dict[str, list[Record]]
    class_names: list[str]
    last_newline: bool = True
    first_pixel: int = 0


def publish(folder: Path, made: Metadata, *, force: bool = False) -> list[str]:
    """Write a maker's metadata, all or nothing; see `publish_metadata`."""

    def fill(new: Path) -> None:
        try:
            write_metadata(
                new, made.records, made.class_names, last_newline=made.last_newline, first_pixel=made.first_pixel
            )
        except ValueError as error:
            raise InputError(f"these annotations cannot be written: {error}") from None

    return publish_metadata(folder, fill, force=force)


# --------------------------------------------------------------------------- CUB-200-2011


def cub(source: Path, *, images: Path | None = None, sizes_file: Path | None = None) -> Metadata:
    """Train and test of CUB-200-2011 from `images.txt`, `image_class_labels.txt`, `train_test_split.txt`,
    `bounding_boxes.txt` and `classes.txt`.

    A box x, y, w, h becomes x, y, x+w, y+h, truncated, at most the last pixel. Sizes are read from the images
    (`<source>/images` unless given), or from a file of `path,width,height` lines.
    """
    source = Path(source)
    paths = _table(source / "images.txt", 1)
    labels = _table(source / "image_class_labels.txt", 1)
    in_train = _table(source / "train_test_split.txt", 1)
    boxes = _table(source / "bounding_boxes.txt", 4)
    names = _table(source / "classes.txt", 1)
    for name, table in (
        ("image_class_labels.txt", labels),
        ("train_test_split.txt", in_train),
        ("bounding_boxes.txt", boxes),
    ):
        for key in paths:
            if key not in table:
                raise InputError(f"{source / name} has no line for image {key} of images.txt")
    ids = {key: fields[0] for key, (_, fields) in paths.items()}
    sizes = image_sizes(images or source / "images", list(ids.values()), sizes_file)
    index = {key: i for i, key in enumerate(names)}
    records: dict[str, list[Record]] = {"train": [], "test": []}
    for key, image_id in ids.items():
        number, (label,) = labels[key]
        if label not in index:
            raise InputError(f"{source / 'image_class_labels.txt'}:{number}: classes.txt has no class {label}")
        number, fields = boxes[key]
        with _naming(f"{source / 'bounding_boxes.txt'}:{number}"):
            x, y, w, h = map(float, fields)
            box = clipped((int(x), int(y), int(x + w), int(y + h)), sizes[image_id])
        split = "train" if in_train[key][1][0] == "1" else "test"
        records[split].append(Record(image_id, index[label], sizes[image_id], [box]))
    return Metadata(records, [fields[0] for _, fields in names.values()], last_newline=False)


def _table(path: Path, count: int) -> dict[str, tuple[int, list[str]]]:
    """{first column: (line number, the next `count` columns)} of lines of words; InputError with file:line."""
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


# --------------------------------------------------------------------------- Stanford Cars


def cars(devkit: Path, *, images: Path | None = None, sizes_file: Path | None = None) -> Metadata:
    """Train and test of Stanford Cars from the devkit's `cars_train_annos.mat`, `cars_test_annos_withlabels.mat` and
    `cars_meta.mat`. Labels count from 0, boxes stay as they are: they count pixels from 1.

    images: the folder of `cars_train/` and `cars_test/`; by default the devkit's parent. sizes_file: may have several
    `path,width,height` files, as ids repeat: `{split}` in its name stands for the split.
    """
    devkit = Path(devkit)
    names = [str(name) for name in _mat(_one_of(devkit, "cars_meta.mat"), "class_names")]
    records = {}
    for split, file in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        path = _one_of(devkit, file)
        annotations = _mat(path, "annotations")
        wanted = ("fname", "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
        missing = [field for field in wanted if field not in (annotations.dtype.names or ())]
        if missing:
            raise InputError(f"{path} has no field {missing[0]}; the test labels are in cars_test_annos_withlabels.mat")
        rows = [tuple(entry[field] for field in wanted) for entry in annotations]
        ids = [Path(str(row[0])).name for row in rows]
        sizes = image_sizes(
            (images or devkit.parent) / f"cars_{split}",
            ids,
            None if sizes_file is None else Path(str(sizes_file).format(split=split)),
        )
        with _naming(str(path)):
            records[split] = [
                Record(i, int(row[1]) - 1, sizes[i], [tuple(map(int, row[2:]))])
                for i, row in zip(ids, rows, strict=True)
            ]
    return Metadata(records, names, first_pixel=1)


def _mat(path: Path, key: str):
    """A variable of a MATLAB file as a 1-D array. SciPy reads it, which nothing else here needs."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(f"{path.name} is a MATLAB file, which SciPy reads: pip install scipy") from None
    import numpy as np

    try:
        content = loadmat(path, squeeze_me=True)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except Exception as error:  # a broken file makes SciPy raise whatever its bytes lead to
        raise InputError(f"{path} is not a MATLAB file or is cut off ({type(error).__name__}: {error})") from None
    if key not in content:
        raise InputError(f"{path} holds no variable '{key}'")
    return np.atleast_1d(content[key])


def _one_of(folder: Path, name: str) -> Path:
    """The file in a folder or in its `devkit/`: published archives differ."""
    for path in (folder / name, folder / "devkit" / name):
        if path.is_file():
            return path
    raise InputError(f"{folder / name} is missing; is {folder} the unpacked car_devkit?")


# --------------------------------------------------------------------------- ILSVRC 2012


def ilsvrc(
    annotations: Path | None = None,
    *,
    synsets: Path | None = None,
    train: Path | None = None,
    images: Path | None = None,
    sizes_file: Path | None = None,
    ground_truth: Path | None = None,
    meta: Path | None = None,
) -> Metadata:
    """Test (ImageNet's validation images) and train of ILSVRC 2012 in wsolevaluation's layout.

    Args:
        annotations: folder of ILSVRC2012_val_*.xml; gives `test`, ids `val/<name>.JPEG`, boxes in the files' order.
        synsets: lines that begin with a WordNet id (LOC_synset_mapping.txt, synset_words.txt); class indices are
            the ranks of the sorted ids. Without it the class folders of `train` tell.
        train: the folder of the 1,000 class folders, or a list of `<wnid>/<name>` lines (train_cls.txt);
            gives `train`, ids `train/<wnid>/<name>.JPEG`, sorted, without boxes.
        images: folder that holds val/; sizes are read there, or from sizes_file, or else from the XML.
        ground_truth, meta: ILSVRC2012_validation_ground_truth.txt and meta.mat of the development kit; the labels
            are then compared with the XML's.
    """
    if annotations is None and train is None:
        raise InputError("nothing to do: give --annotations (the folder of val's XML), --train, or both")
    train_ids = [] if train is None else _train_ids(Path(train))
    if synsets is not None:
        words = dict((line.split(maxsplit=1) + [""])[:2] for line in read_lines(Path(synsets)))
    elif train_ids:
        words = {wnid: wnid for wnid in {image_id.split("/")[1] for image_id in train_ids}}
    else:
        raise InputError(
            "class indices are the ranks of the sorted WordNet ids: give --synsets LOC_synset_mapping.txt, or --train"
        )
    index = {wnid: i for i, wnid in enumerate(sorted(words))}
    records = {}
    if train_ids:
        for image_id in train_ids:
            if image_id.split("/")[1] not in index:
                raise InputError(f"{train}: {synsets} does not list the class of {image_id}")
        records["train"] = [Record(i, index[i.split("/")[1]], None) for i in train_ids]
    if annotations is not None:
        expected = None if ground_truth is None else _ground_truth(Path(ground_truth), meta)
        records["test"] = _ilsvrc_test(Path(annotations), index, images, sizes_file, expected)
    return Metadata(records, [words[wnid] or wnid for wnid in index], last_newline=False)


def _train_ids(train: Path) -> list[str]:
    if train.is_dir():
        return [
            f"train/{folder.name}/{file}"
            for folder in sorted(p for p in train.iterdir() if p.is_dir())
            for file in sorted(p.name for p in folder.iterdir() if p.suffix.upper() == ".JPEG")
        ]
    names = [line.split()[0] for line in read_lines(train)]
    for name in names:
        if name.count("/") != 1:
            raise InputError(f"{train}: '{name}' is not <wnid>/<name>, as in train_cls.txt")
    return sorted(f"train/{name}" if name.upper().endswith(".JPEG") else f"train/{name}.JPEG" for name in names)


def _ilsvrc_test(
    folder: Path, index: dict[str, int], images: Path | None, sizes_file: Path | None, expected: list[str] | None
) -> list[Record]:
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise InputError(f"no .xml in {folder}; it should hold ILSVRC2012_val_00000001.xml and so on")
    if expected is not None and len(expected) != len(files):
        raise InputError(f"the ground truth has {len(expected)} lines, but {folder} has {len(files)} images")
    ids = [f"val/{file.stem}.JPEG" for file in files]
    sizes = None if images is None and sizes_file is None else image_sizes(images or folder, ids, sizes_file)
    records = []
    for i, (image_id, file) in enumerate(zip(ids, progress(files, "annotations", unit="file"), strict=True)):
        annotation = read_voc(file)
        classes = {name for name, _ in annotation.objects}
        if len(classes) != 1 or not classes <= set(index):
            raise InputError(f"{file}: its objects should be of one of the {len(index)} classes, not {sorted(classes)}")
        wnid = classes.pop()
        if expected is not None and expected[i] != wnid:
            raise InputError(f"{file}: its objects are of class {wnid}, the ground truth says {expected[i]}")
        size = annotation.size if sizes is None else sizes[image_id]
        if size is None:
            raise InputError(f"{file} names no size; give --images or --sizes")
        with _naming(str(file)):
            boxes = [clipped(box, size) for _, box in annotation.objects]
        records.append(Record(image_id, index[wnid], size, boxes))
    return records


def _ground_truth(path: Path, meta: Path | None) -> list[str]:
    """The WordNet id of each validation image: the file has numbers, and only meta.mat says what they mean."""
    if meta is None:
        raise InputError(f"the numbers in {path} are ILSVRC2012_IDs, not class indices: give --meta meta.mat, too")
    wnid = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in _mat(Path(meta), "synsets")}
    numbers = []
    for number, line in enumerate(read_lines(path), 1):
        if not (line.isascii() and line.isdigit()) or int(line) not in wnid:
            raise InputError(f"{path}:{number}: '{line}' is not an ILSVRC2012_ID of {meta}")
        numbers.append(wnid[int(line)])
    return numbers


# --------------------------------------------------------------------------- Pascal VOC's XML, sizes, boxes


class Annotation(NamedTuple):
    """An image's annotation: the file it names, its size, and (class, box) of its objects in the file's order."""

    filename: str
    size: Size | None
    objects: list[tuple[str, Box]]


def read_voc(path: Path) -> Annotation:
    """Read Pascal VOC's XML, ImageNet's too. InputError with file and line for what is none."""
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except ElementTree.ParseError as error:
        raise InputError(f"{path}:{error.position[0]}: not XML ({error})") from None
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    with _naming(str(path)):
        width, height = (root.findtext(f"size/{side}") for side in ("width", "height"))
        size = (int(width), int(height)) if width and height and int(width) and int(height) else None
        objects = [
            (
                found.findtext("name", "").strip(),
                tuple(int(float(found.findtext(f"bndbox/{side}", ""))) for side in ("xmin", "ymin", "xmax", "ymax")),
            )
            for found in root.iter("object")
        ]
    return Annotation(root.findtext("filename", ""), size, objects)


def image_sizes(root: Path, ids: Sequence[str], sizes_file: Path | None = None) -> dict[str, Size]:
    """{id: (W, H)} from a file of `path,width,height` lines, or from the images' headers, read by threads."""
    if sizes_file is not None:
        sizes = {}
        for number, line in enumerate(read_lines(Path(sizes_file)), 1):
            image_id, *fields = line.rsplit(",", 2)
            with _naming(f"{sizes_file}:{number}"):
                width, height = map(int, fields)
                sizes[image_id] = width, height
        for image_id in ids:
            if image_id not in sizes:
                raise InputError(f"{sizes_file} has no line for {image_id}")
        return sizes
    require_files(Path(root), ids, "images", "sizes are read from them; give --images, or a --sizes file")

    def size(image_id: str) -> Size:
        try:
            with Image.open(Path(root) / image_id) as image:
                return image.size
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"image {Path(root) / image_id} cannot be read ({error})") from None

    with ThreadPoolExecutor(8) as pool:
        return dict(zip(ids, progress(pool.map(size, ids), "sizes", unit="image", total=len(ids)), strict=True))


def clipped(box: Box, size: Size) -> Box:
    """A box cut off at its image's edges; ValueError where nothing is left of it."""
    (x0, y0, x1, y1), (width, height) = box, size
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width - 1), min(y1, height - 1)
    if x0 > x1 or y0 > y1:
        raise ValueError(f"box {','.join(map(str, box))} has no pixel in the {width}x{height} image")
    return x0, y0, x1, y1


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Numbers that are none, and boxes outside their image, become an InputError that says where."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, OverflowError, TypeError) as error:
        raise InputError(f"{where}: {error}") from None


# --------------------------------------------------------------------------- copying


def copy(
    source: str,
    metadata_root: Path,
    names: Sequence[str] = (),
    splits: Sequence[str] = SPLITS,
    *,
    force: bool = False,
    report: Callable[[str], None] = print,
) -> list[str]:
    """Copy metadata from a checkout of wsolevaluation or Dual-CAM, any folder of data sets, or a git URL.

    Every split is read as the program will read it before anything appears. wsolevaluation's former names of splits
    are mapped (train-fullsup is val). Returns the names of the data sets.

    Raises:
        InputError: the source has no such data set, a file is malformed, or something else is there already.
    """
    if not Path(source).is_dir() and ("://" in source or source.startswith("git@") or source.endswith(".git")):
        with tempfile.TemporaryDirectory(prefix="metadata-") as folder:
            _clone(source, folder)
            return copy(folder, metadata_root, names, splits, force=force, report=report)
    found = _data_sets(Path(source))
    if not found:
        raise InputError(
            f"no metadata in {source}: neither there nor in its metadata/ is a <data set>/<split>/image_ids.txt"
        )
    for name in names:
        if name not in found:
            raise InputError(f"{source} has no data set '{name}' (it has: {', '.join(sorted(found))})")
    chosen = list(names) or sorted(found)
    for name in chosen:
        fill = partial(_copy_splits, found[name], splits=splits)
        added = publish_metadata(Path(metadata_root) / name, fill, force=force)
        report(
            f"{name}: {', '.join(added)} copied to {Path(metadata_root) / name}"
            if added
            else f"{name}: nothing was changed, {Path(metadata_root) / name} holds the same"
        )
    return chosen


def _data_sets(source: Path) -> dict[str, Path]:
    """{name: folder} of the data sets in a folder, in its metadata/, or the folder itself."""
    if not source.is_dir():
        raise InputError(f"{source} is not a folder, and not a git URL either")
    for root in (source / "metadata", source):
        found = {
            folder.name: folder for folder in sorted(root.iterdir() if root.is_dir() else ()) if _splits_in(folder)
        }
        if found:
            return found
    return {source.resolve().name: source} if _splits_in(source) else {}


def _splits_in(folder: Path) -> dict[str, Path]:
    """{our name: folder} of the splits in a data set's folder."""
    present = {
        ours: folder / theirs
        for theirs, ours in reversed(SPLIT_NAMES.items())
        if (folder / theirs / "image_ids.txt").is_file()
    }
    return {split: present[split] for split in SPLITS if split in present}


def _copy_splits(source: Path, new: Path, splits: Sequence[str]) -> None:
    for split, folder in _splits_in(source).items():
        if split in splits:
            (new / split).mkdir()
            for name in FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, new / split / name)
            read_split(folder.parent, folder.name, new, new, with_localization=split != "train")
            if (folder / "image_ids_proxy.txt").is_file():
                read_ids(folder / "image_ids_proxy.txt")
    if not any(new.iterdir()):
        raise InputError(f"{source} has none of the splits {', '.join(splits)}")
    if (source / "classes.txt").is_file():
        shutil.copyfile(source / "classes.txt", new / "classes.txt")


def _clone(url: str, folder: str) -> None:
    try:
        done = subprocess.run(
            ["git", "clone", "--quiet", "--depth", "1", "--", url, folder],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
        )
    except FileNotFoundError:
        raise InputError("git is not installed; download the repository and name its folder instead") from None
    if done.returncode:
        raise InputError(f"git clone {url} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
