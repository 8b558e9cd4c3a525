"""Data sets in wsolevaluation's metadata format: reading, checking, loading.

    <metadata_root>/<dataset_name>/<split>/{image_ids,class_labels,image_sizes,localization,masks}.txt
    <data_root>/<dataset_name>/<image id>        <mask_root>/<dataset_name>/<mask path>

Format: clovaai/wsolevaluation, README "Metadata"; `masks.txt` and `classes.txt`
are additions. Every error of a metadata file names the file and the line.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import functional as TF

from wsol.datasets.synthetic import make_synthetic
from wsol.errors import InputError
from wsol.metrics.boxes import RESOLUTION, resize_boxes

SPLITS = ("train", "val", "test")


# --------------------------------------------------------------------------- the data sets that are known by name

@dataclass(frozen=True)
class DatasetFacts:
    """What cannot be read off a data set's folder.

    num_classes: None counts them in class_labels.txt. imagenet: its classes are
    those of ImageNet heads. image_folder(split): where ids start, below the data
    set's folder. augment: the default of --augment. make(data_root,
    metadata_root, mask_root): writes the data set where it does not exist yet.
    """
    num_classes: int | None = None
    imagenet: bool = False
    image_folder: Callable[[str], str] = lambda split: ""
    augment: str = "crop_flip"
    make: Callable[[Path, Path, Path], None] | None = None


DATASETS: dict[str, DatasetFacts] = {
    "ILSVRC": DatasetFacts(num_classes=1000, imagenet=True),
    "CUB": DatasetFacts(num_classes=200),
    "OpenImages": DatasetFacts(num_classes=100),
    "CARS": DatasetFacts(num_classes=196, image_folder=lambda split: f"cars_{split}"),
    # Composed images: places, sides and sizes vary already, and without random
    # crops the frozen trunk's features need computing only once.
    "Synthetic": DatasetFacts(augment="none", make=make_synthetic),
    "CUTOUTS": DatasetFacts(augment="none"),
}


def dataset_facts(name: str) -> DatasetFacts:
    """The facts of a named data set, or those of a user's own folder in the format."""
    return DATASETS.get(name, DatasetFacts())


# --------------------------------------------------------------------------- metadata

class MaskPaths(NamedTuple):
    """One image's masks: foreground files (their union counts) and an ignore file, "" for none."""
    foreground: tuple[str, ...]
    ignore: str


@dataclass
class SplitMetadata:
    """One split, in the order of image_ids.txt; lists run parallel to image_ids.

    labels: (N,) int64. sizes: (N, 2) int64, width and height, or None. boxes: a
    (n_i, 4) int64 array x0, y0, x1, y1 in the image's own pixels for each image, or
    None. masks: MaskPaths for each image, or None.
    """
    split: str
    image_ids: list[str]
    labels: np.ndarray
    image_root: Path
    mask_root: Path
    sizes: np.ndarray | None = None
    boxes: list[np.ndarray] | None = None
    masks: list[MaskPaths] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_path(self, index: int) -> Path:
        return self.image_root / self.image_ids[index]

    def scaled_boxes(self, index: int) -> np.ndarray:
        """Ground-truth boxes of image `index` at the evaluation's 224 x 224, (n, 4) int."""
        return resize_boxes(self.boxes[index], self.sizes[index])

    def subset(self, keep: Sequence[int]) -> "SplitMetadata":
        """The same split with only these images."""
        def pick(values):
            return None if values is None else [values[i] for i in keep]
        sizes = None if self.sizes is None else self.sizes[list(keep)]
        return SplitMetadata(self.split, pick(self.image_ids), self.labels[list(keep)], self.image_root,
                             self.mask_root, sizes, pick(self.boxes), pick(self.masks))


def read_split(folder: Path, split: str, image_root: Path, mask_root: Path, ids_file: str = "image_ids.txt",
               wants_localization: bool = True) -> SplitMetadata:
    """Read `<folder>/<split>/*.txt` and check that the files agree with each other.

    Raises:
        InputError: a file is missing, a line is malformed (file:line), an image
            has no label, or an evaluated image has no box and no mask.
    """
    folder = Path(folder) / split
    image_ids = []
    for number, image_id in _lines(folder / ids_file):
        if Path(image_id).is_absolute() or ".." in Path(image_id).parts:    # maps are written under this name
            raise InputError(f"{folder / ids_file}:{number}: '{image_id}' leads out of the data set's folder")
        image_ids.append(image_id)
    if not image_ids:
        raise InputError(f"{folder / ids_file} lists no image")
    position = {image_id: i for i, image_id in enumerate(image_ids)}
    if len(position) < len(image_ids):
        twice = next(x for i, x in enumerate(image_ids) if position[x] != i)
        raise InputError(f"{folder / ids_file} lists {twice} twice")
    metadata = SplitMetadata(split, image_ids, _read_labels(folder / "class_labels.txt", position),
                             Path(image_root), Path(mask_root))
    if wants_localization:
        metadata.sizes = _read_sizes(folder / "image_sizes.txt", position)
        _read_localization(folder, position, metadata)
    return metadata


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, stripped line) of the lines that are not empty."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line := line.strip():
                    yield number, line
    except FileNotFoundError:
        raise InputError(f"{path} is missing; see metadata/README.md for the format and where to get it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None


def _fields(path: Path, position: dict[str, int], count: int, what: str) -> Iterator[tuple[str, int, list[str]]]:
    """("file:line", image index, fields behind the id) of the lines about images of this split.

    Ids may hold commas, so fields are split off from the right. Lines of images
    that image_ids.txt leaves out (a proxy set) are passed over.
    """
    for number, line in _lines(path):
        image_id, *fields = line.rsplit(",", count)
        where = f"{path}:{number}"
        if len(fields) != count:
            raise InputError(f"{where}: '{line}' is not {what}")
        if image_id in position:
            yield where, position[image_id], fields


def _integers(where: str, fields: list[str], what: str) -> list[int]:
    try:
        return [int(field) for field in fields]
    except ValueError:
        raise InputError(f"{where}: '{','.join(fields)}' is not {what} in whole numbers") from None


def _read_labels(path: Path, position: dict[str, int]) -> np.ndarray:
    labels = np.full(len(position), -1, dtype=np.int64)
    for where, index, fields in _fields(path, position, 1, "path,class_index"):
        (label,) = _integers(where, fields, "a class index")
        if label < 0:
            raise InputError(f"{where}: class index {label} is negative; classes count from 0")
        labels[index] = label
    if (labels < 0).any():
        raise InputError(f"{path} has no line for {list(position)[int(np.argmin(labels))]}")
    return labels


def _read_sizes(path: Path, position: dict[str, int]) -> np.ndarray | None:
    if not path.exists():
        return None
    sizes = np.zeros((len(position), 2), dtype=np.int64)
    for where, index, fields in _fields(path, position, 2, "path,width,height"):
        sizes[index] = _integers(where, fields, "width,height")
        if sizes[index].min() < 1:
            raise InputError(f"{where}: width and height must be at least 1")
    return sizes if sizes.any() else None


def _read_localization(folder: Path, position: dict[str, int], metadata: SplitMetadata) -> None:
    """Boxes or masks from localization.txt, told apart by its first line, and masks from masks.txt."""
    path = folder / "localization.txt"
    first = next(_lines(path), None) if path.exists() else None
    if first is not None:
        if _is_box_line(first[1]):
            metadata.boxes = _read_boxes(path, position, metadata.sizes)
        else:
            metadata.masks = _read_masks(path, position)
    if (folder / "masks.txt").exists() and next(_lines(folder / "masks.txt"), None):
        metadata.masks = _read_masks(folder / "masks.txt", position)


def _is_box_line(line: str) -> bool:
    return len(line.split(",")) >= 5 and all(f.strip().lstrip("-").isdigit() for f in line.split(",")[-4:])


def _read_boxes(path: Path, position: dict[str, int], sizes: np.ndarray | None) -> list[np.ndarray]:
    boxes: list[list] = [[] for _ in position]
    for where, index, fields in _fields(path, position, 4, "path,x0,y0,x1,y1"):
        x0, y0, x1, y1 = box = _integers(where, fields, "x0,y0,x1,y1")
        if x0 > x1 or y0 > y1:
            raise InputError(f"{where}: box {x0},{y0},{x1},{y1} has its corners in the wrong order (x0,y0,x1,y1)")
        boxes[index].append(box)
    for image_id, i in position.items():
        if not boxes[i]:
            raise InputError(f"{path} has no box for {image_id}")
        if sizes is None or not sizes[i].all():
            raise InputError(f"{path.parent / 'image_sizes.txt'} has no width,height for {image_id}, "
                             "which its boxes need")
    return [np.array(b, dtype=np.int64) for b in boxes]


def _read_masks(path: Path, position: dict[str, int]) -> list[MaskPaths]:
    foreground: list[list[str]] = [[] for _ in position]
    ignore = [""] * len(position)
    for where, index, (mask, ignore_mask) in _fields(path, position, 2, "path,mask.png,ignore.png"):
        if not mask:
            raise InputError(f"{where}: no mask file is named")
        if not foreground[index]:       # the ignore mask stands on an image's first line only
            ignore[index] = ignore_mask
        foreground[index].append(mask)
    for image_id, i in position.items():
        if not foreground[i]:
            raise InputError(f"{path} has no mask for {image_id}")
    return [MaskPaths(tuple(f), i) for f, i in zip(foreground, ignore, strict=True)]


# --------------------------------------------------------------------------- a data set

@dataclass
class WsolData:
    """The splits that a run needs and the names of the classes."""
    name: str
    splits: dict[str, SplitMetadata]
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def is_made_when_used(dataset_name: str, metadata_root: str) -> bool:
    """Would load_data write this data set now?"""
    return dataset_facts(dataset_name).make is not None and not (Path(metadata_root) / dataset_name).is_dir()


def load_data(dataset_name: str, data_root: str, metadata_root: str, mask_root: str, *, splits: Sequence[str],
              proxy_training_set: bool = False, num_val_sample_per_class: int = 0, seed: int = 0) -> WsolData:
    """Read the metadata of the splits a run needs ("val" is left out where there is none).

    The data set `Synthetic` is written first if it is not there. The class count
    is the data set's own, or else the highest index in any of the splits plus 1.

    Raises:
        InputError: see read_split; the data set's folders are missing; no image exists where ids point.
    """
    facts = dataset_facts(dataset_name)
    folder = Path(metadata_root) / dataset_name
    if is_made_when_used(dataset_name, metadata_root):
        facts.make(Path(data_root), Path(metadata_root), Path(mask_root))
    if not folder.is_dir():
        raise InputError(f"no metadata for the data set '{dataset_name}': {folder} is missing; "
                         f"see metadata/README.md, or name another with --dataset_name or --metadata_root"
                         f" (built in: {', '.join(DATASETS)})")
    found = {}
    for split in splits:
        if split == "val" and not (folder / "val").is_dir():
            continue
        ids_file = "image_ids_proxy.txt" if split == "train" and proxy_training_set else "image_ids.txt"
        image_root = Path(data_root) / dataset_name / facts.image_folder(split)
        found[split] = read_split(folder, split, image_root, Path(mask_root) / dataset_name, ids_file,
                                  wants_localization=split != "train")
        _check_first_image(found[split])
        if split != "train" and found[split].boxes is None and found[split].masks is None:
            raise InputError(f"{folder / split} has neither boxes nor masks: localization.txt is missing or empty")
    if num_val_sample_per_class and "val" in found:
        found["val"] = sample_per_class(found["val"], num_val_sample_per_class, seed)
    names = _class_names(folder, found, facts.num_classes)
    return WsolData(dataset_name, found, names)


def _check_first_image(metadata: SplitMetadata) -> None:
    """A wrong --data_root shows at the first image; better now than after the network is built."""
    path = metadata.image_path(0)
    if not path.is_file():
        raise InputError(f"the first image of the {metadata.split} split is missing: {path}; "
                         "check --data_root (and --dataset_name)")


def sample_per_class(metadata: SplitMetadata, count: int, seed: int) -> SplitMetadata:
    """At most `count` images of each class, drawn with a seed, in their old order."""
    random = np.random.default_rng(seed)
    keep = []
    for label in np.unique(metadata.labels):
        members = np.flatnonzero(metadata.labels == label)
        keep.extend(random.permutation(members)[:count])
    return metadata.subset(sorted(keep))


def _class_names(folder: Path, splits: dict[str, SplitMetadata], num_classes: int | None) -> list[str]:
    """From classes.txt, else from the images' folders where each class has its own, else "class 7"."""
    highest = max(int(metadata.labels.max()) for metadata in splits.values())
    if (folder / "classes.txt").exists():
        names = [line for _, line in _lines(folder / "classes.txt")]
        if len(names) <= highest:
            raise InputError(f"{folder / 'classes.txt'} names {len(names)} classes, but class_labels.txt goes up to "
                             f"index {highest}")
        return names
    count = num_classes or highest + 1
    if highest >= count:
        raise InputError(f"class_labels.txt of {folder.name} goes up to index {highest}, "
                         f"but this data set has {count} classes")
    parents: dict[int, set[str]] = {}
    for metadata in splits.values():
        for image_id, label in zip(metadata.image_ids, metadata.labels, strict=True):
            parents.setdefault(int(label), set()).add(Path(image_id).parent.name)
    own_folder = all(len(p) == 1 for p in parents.values()) and len(set.union(*parents.values())) == len(parents) > 1
    return [parents[k].copy().pop() if own_folder and k in parents else f"class {k}" for k in range(count)]


# --------------------------------------------------------------------------- images and masks

def load_image(path: Path) -> Image.Image:
    """An RGB PIL image; an InputError that names the file where it is missing or broken."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"image {path} is missing; check --data_root") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"image {path} cannot be read ({error}); replace the file or take it out of "
                         "image_ids.txt") from None


def load_mask(mask_root: Path, paths: MaskPaths, size: int = RESOLUTION) -> np.ndarray:
    """One image's masks as (size, size) uint8: 1 foreground, 0 background, 255 ignore.

    Files are resized by nearest neighbour; values above 0.5 of 0..255 count. The
    ignore region is the ignore mask without the foreground (wsolevaluation).
    """
    foreground = np.zeros((size, size), dtype=bool)
    for path in paths.foreground:
        foreground |= _load_binary(mask_root / path, size)
    mask = foreground.astype(np.uint8)
    if paths.ignore:
        mask[_load_binary(mask_root / paths.ignore, size) & ~foreground] = 255
    return mask


def _load_binary(path: Path, size: int) -> np.ndarray:
    values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if values is None:
        raise InputError(f"mask {path} is missing or broken; check --mask_root")
    return cv2.resize(values.astype(np.float32), (size, size), interpolation=cv2.INTER_NEAREST) > 0.5


def eval_tensor(image: Image.Image, crop_size: int, mean, std) -> torch.Tensor:
    """The evaluation's view of an image: resized to a square, (3, crop_size, crop_size), normalised."""
    return TF.normalize(TF.to_tensor(TF.resize(image, [crop_size, crop_size])), mean, std)


class ImageDataset(Dataset):
    """(image (3, crop, crop) float32 normalised, label, index) of one split.

    With `augment="crop_flip"`: resize to resize_size squared, random crop,
    horizontal flip; the draw depends on (seed, moment, index) alone, so it is the
    same with any number of workers and after a resumed run. The moment is (stage,
    epoch), see set_epoch.
    """

    def __init__(self, metadata: SplitMetadata, *, crop_size: int, mean, std, augment: str = "none",
                 resize_size: int = 256, seed: int = 0):
        self.metadata, self.crop_size, self.resize_size = metadata, crop_size, resize_size
        self.mean, self.std, self.augment, self.seed, self.moment = mean, std, augment, seed, (0, 0)

    def __len__(self) -> int:
        return len(self.metadata)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        image = load_image(self.metadata.image_path(index))
        label = int(self.metadata.labels[index])
        if self.augment == "none":
            return eval_tensor(image, self.crop_size, self.mean, self.std), label, index
        random = np.random.default_rng((self.seed, *self.moment, 1, index))
        top, left = random.integers(0, self.resize_size - self.crop_size + 1, size=2)
        image = TF.crop(TF.resize(image, [self.resize_size] * 2), top, left, self.crop_size, self.crop_size)
        if random.random() < 0.5:
            image = TF.hflip(image)
        return TF.normalize(TF.to_tensor(image), self.mean, self.std), label, index


class EpochShuffle(Sampler):
    """A permutation that depends on (seed, moment) alone; call set_epoch before each epoch."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.moment = length, seed, (0, 0)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, *self.moment, 0)).permutation(self.length).tolist())


def make_loader(dataset: Dataset, batch_size: int, workers: int, shuffle_seed: int | None = None) -> DataLoader:
    """A loader that shuffles (training) if it is given a seed, and keeps the order (evaluation) otherwise.

    BatchNorm cannot learn from a single image: a last training batch of one is left out, a different image each epoch.
    """
    sampler = None if shuffle_seed is None else EpochShuffle(len(dataset), shuffle_seed)
    lonely = sampler is not None and len(dataset) > batch_size > 1 and len(dataset) % batch_size == 1
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=min(workers, len(os.sched_getaffinity(0))),
                      drop_last=lonely, pin_memory=torch.cuda.is_available())


def set_epoch(loader: DataLoader, moment: tuple[int, int]) -> None:
    """Tell shuffling and augmentation the moment, (number of the stage, epoch), that their draws depend on."""
    for part in (loader.sampler, loader.dataset):
        if hasattr(part, "moment"):
            part.moment = moment
