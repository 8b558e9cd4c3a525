"""Data sets in wsolevaluation's metadata format: reading, checking, loading.

    <metadata_root>/<dataset_name>/<split>/{image_ids,class_labels,image_sizes,localization,masks}.txt
    <data_root>/<dataset_name>/<image id>        <mask_root>/<dataset_name>/<mask path>

Format: clovaai/wsolevaluation, README "Metadata"; `masks.txt` and `classes.txt`
are additions. wsol/datasets/reader.py reads a split; every error names the file
and the line.
"""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import functional as TF

from wsol.datasets.files import broken_files, looks_whole, require_files
from wsol.datasets.masks import load_mask, load_mask_image
from wsol.datasets.reader import SplitMetadata, read_lines, read_split
from wsol.datasets.synthetic import make_synthetic
from wsol.datasets.writer import SPLITS
from wsol.errors import InputError
from wsol.run_folder import log
from wsol.wsolevaluation import (  # noqa: F401  (this module's names in wsolevaluation, for code written against them)
    configure_metadata,
    get_bounding_boxes,
    get_class_labels,
    get_image_ids,
    get_image_sizes,
    get_mask_paths,
)

MOST_FILES_OPENED = 100_000  # to look at the end of each before a run: seconds on a disk, minutes on a slow share


# --------------------------------------------------------------------------- the data sets that are known by name


@dataclass(frozen=True)
class DatasetFacts:
    """What cannot be read off a data set's folder.

    num_classes: None counts them in class_labels.txt. imagenet: its classes are
    those of ImageNet heads. image_folder(split): where ids start, below the data
    set's folder. augment: the default of --augment. make(data_root,
    metadata_root, mask_root): writes the data set where it does not exist yet.
    how_to_get: the remedy where it is missing.
    """

    num_classes: int | None = None
    imagenet: bool = False
    image_folder: Callable[[str], str] = lambda split: ""
    augment: str = "crop_flip"
    make: Callable[[Path, Path, Path], None] | None = None
    how_to_get: str = ""


DATASETS: dict[str, DatasetFacts] = {
    "ILSVRC": DatasetFacts(num_classes=1000, imagenet=True),
    "CUB": DatasetFacts(num_classes=200),
    "OpenImages": DatasetFacts(num_classes=100),
    "CARS": DatasetFacts(num_classes=196, image_folder=lambda split: f"cars_{split}"),
    # Composed images: places, sides and sizes vary already, and without random
    # crops the frozen trunk's features need computing only once.
    "Synthetic": DatasetFacts(augment="none", make=make_synthetic),
    "CUTOUTS": DatasetFacts(augment="none", how_to_get="make it with scripts/prepare_cutouts.py"),
}


def dataset_facts(name: str) -> DatasetFacts:
    """The facts of a named data set, or those of a user's own folder in the format."""
    return DATASETS.get(name, DatasetFacts())


# --------------------------------------------------------------------------- a data set


@dataclass
class WsolData:
    """The splits that a run needs and the names of the classes.

    skipped: {split: images left out by skip_bad}, empty where none was.
    """

    name: str
    splits: dict[str, SplitMetadata]
    class_names: list[str]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def is_made_when_used(dataset_name: str, metadata_root: str) -> bool:
    """Would load_data write this data set now?"""
    return dataset_facts(dataset_name).make is not None and not (Path(metadata_root) / dataset_name).is_dir()


def load_data(
    dataset_name: str,
    data_root: str,
    metadata_root: str,
    mask_root: str,
    *,
    splits: Sequence[str],
    proxy_training_set: bool = False,
    num_val_sample_per_class: int = 0,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int = 1,
) -> WsolData:
    """Read the metadata of the splits a run needs ("val" is left out where there is none) and look for their files.

    The data set `Synthetic` is written first if it is not there. The class count
    is the data set's own, or else the highest index in any of the splits plus 1.
    skip_bad: every image and mask is decoded once, by `workers` threads; what is
    missing or broken is reported and left out.

    Raises:
        InputError: see read_split; the data set's folders are missing; images or
            masks are missing; --num_val_sample_per_class without a val split.
    """
    facts = dataset_facts(dataset_name)
    folder = Path(metadata_root) / dataset_name
    if is_made_when_used(dataset_name, metadata_root):
        facts.make(Path(data_root), Path(metadata_root), Path(mask_root))
    if not folder.is_dir():
        remedy = facts.how_to_get or "see metadata/README.md, or name another with --dataset_name or --metadata_root"
        raise InputError(
            f"no metadata for the data set '{dataset_name}': {folder} is missing; {remedy} "
            f"(built in: {', '.join(DATASETS)})"
        )
    found = {}
    for split in splits:
        if not (folder / split).is_dir():
            _check_split_is_optional(folder, split, num_val_sample_per_class)
            continue
        ids_file = "image_ids_proxy.txt" if split == "train" and proxy_training_set else "image_ids.txt"
        image_root = Path(data_root) / dataset_name / facts.image_folder(split)
        found[split] = read_split(
            folder, split, image_root, Path(mask_root) / dataset_name, ids_file, wants_localization=split != "train"
        )
        if split != "train" and found[split].boxes is None and found[split].masks is None:
            raise InputError(f"{folder / split} has neither boxes nor masks: localization.txt is missing or empty")
    if num_val_sample_per_class and "val" in found:
        found["val"] = sample_per_class(found["val"], num_val_sample_per_class, seed)
    data = WsolData(dataset_name, found, _class_names(folder, found, facts.num_classes))
    for split, metadata in found.items():
        _check_first_image(metadata)
        if skip_bad:
            data.splits[split] = leave_out_bad(metadata, workers)
            if len(data.splits[split]) < len(metadata):
                data.skipped[split] = len(metadata) - len(data.splits[split])
        else:
            check_files(metadata, workers)
    _warn_of_empty_classes(data)
    return data


def _check_split_is_optional(folder: Path, split: str, num_val_sample_per_class: int) -> None:
    """Only val may be missing, and only where no setting needs it."""
    present = ", ".join(s for s in SPLITS if (folder / s).is_dir()) or "none"
    if split != "val":
        raise InputError(
            f"{folder} has no {split} split (present: {present}), which this run needs; see metadata/README.md"
        )
    if num_val_sample_per_class:
        raise InputError(
            f"{folder} has no val split (present: {present}), and --num_val_sample_per_class "
            f"{num_val_sample_per_class} samples one; leave that flag out"
        )


def _check_first_image(metadata: SplitMetadata) -> None:
    """A wrong --data_root, said as what it is rather than as a million missing images."""
    path = metadata.image_path(0)
    if not path.is_file() and not metadata.image_root.is_dir():
        raise InputError(
            f"the first image of the {metadata.split} split is missing: {path}; check --data_root (and --dataset_name)"
        )


def check_files(metadata: SplitMetadata, workers: int = 1) -> None:
    """InputError that counts the images and masks of a split that are missing or cut short and names the first few.

    The ends of up to MOST_FILES_OPENED images and masks are read; of more (ILSVRC's training set) only presence is
    checked, and a broken file is named when its turn comes.
    """
    split, skip = metadata.split, "--skip_bad_images leaves them out"
    require_files(metadata.image_root, metadata.image_ids, f"{split} images", f"check --data_root; {skip}")
    check_masks(metadata, f"; {skip}")
    for root, names, decode, what in (
        (metadata.image_root, metadata.image_ids, check_image, "images"),
        (metadata.mask_root, metadata.mask_names, load_mask_image, "masks"),
    ):
        if len(names) > MOST_FILES_OPENED:
            continue

        def check(i: int) -> None:
            path = root / names[i]
            if not looks_whole(path):
                decode(path)

        bad = broken_files(check, range(len(names)), f"checking {split} {what}", max(workers, 4))  # mostly waiting
        if len(bad) == 1:
            raise InputError(next(iter(bad.values())))
        if bad:
            raise InputError(
                f"{len(bad):,} of {len(names):,} {split} {what} are broken; the first: {next(iter(bad.values()))}"
            )


def check_masks(metadata: SplitMetadata, or_else: str = "") -> None:
    """InputError that counts the masks of a split that are not there and names the first few."""
    require_files(metadata.mask_root, metadata.mask_names, f"{metadata.split} masks", f"check --mask_root{or_else}")


def leave_out_bad(metadata: SplitMetadata, workers: int = 1) -> SplitMetadata:
    """The split without the images that are missing, broken, or whose masks are; each is named in the log.

    Every file is decoded once, before training: so a run with bad images is, to
    the last digit, a run on the data set without them.

    Raises:
        InputError: nothing is left.
    """

    def check(index: int) -> None:
        check_image(metadata.image_path(index))
        if metadata.masks is not None:
            load_mask(metadata.mask_root, metadata.masks[index])

    bad = broken_files(check, range(len(metadata)), f"decoding {metadata.split}", workers)
    if not bad:
        return metadata
    for reason in list(bad.values())[:20]:
        log.warning("skipped (%s): %s", metadata.split, reason)
    log.warning(
        "--skip_bad_images: %s of %s images of the %s split are left out%s",
        f"{len(bad):,}",
        f"{len(metadata):,}",
        metadata.split,
        "; the first 20 are named above" if len(bad) > 20 else "",
    )
    if len(bad) == len(metadata):
        raise InputError(f"no image of the {metadata.split} split can be used; the first: {next(iter(bad.values()))}")
    return metadata.subset([i for i in range(len(metadata)) if i not in bad])


def _warn_of_empty_classes(data: WsolData) -> None:
    """A class without images is unusual, but no error: thresholds and scores are defined without it."""
    for split, metadata in data.splits.items():
        counts = np.bincount(metadata.labels, minlength=data.num_classes)
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            names = ", ".join(data.class_names[k] for k in empty[:3]) + (", ..." if len(empty) > 3 else "")
            log.warning(
                "%s of %s classes have no image in the %s split: %s",
                f"{len(empty):,}",
                f"{data.num_classes:,}",
                split,
                names,
            )


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
        names = read_lines(folder / "classes.txt")
        if len(names) <= highest:
            raise InputError(
                f"{folder / 'classes.txt'} names {len(names)} classes, but class_labels.txt goes up to index {highest}"
            )
        if num_classes and len(names) != num_classes:
            raise InputError(
                f"{folder / 'classes.txt'} names {len(names)} classes, but {folder.name} has {num_classes}"
            )
        return names
    count = num_classes or highest + 1
    if highest >= count:
        raise InputError(
            f"class_labels.txt of {folder.name} goes up to index {highest}, but this data set has {count} classes"
        )
    parents: dict[int, set[str]] = {}
    for metadata in splits.values():
        folders = (image_id.rpartition("/")[0].rpartition("/")[2] for image_id in metadata.image_ids)
        for label, parent in set(zip(metadata.labels.tolist(), folders, strict=True)):
            parents.setdefault(label, set()).add(parent)
    own_folder = all(len(p) == 1 for p in parents.values()) and len(set.union(*parents.values())) == len(parents) > 1
    return [parents[k].copy().pop() if own_folder and k in parents else f"class {k}" for k in range(count)]


# --------------------------------------------------------------------------- images and masks

_OF_PICTURES = "or give --skip_bad_images"  # the remedy for files that a person named


def load_image(path: Path) -> Image.Image:
    """An RGB PIL image; an InputError that names the file where it is missing or broken."""
    with _naming(path), Image.open(path) as image:
        return _eight_bits(image).convert("RGB")


def load_picture(path: Path) -> Image.Image:
    """A picture as a person sees it, RGB: upright (EXIF), the first frame, what is transparent over white.

    Images of data sets are read by load_image: their boxes refer to the stored pixels.

    Raises:
        InputError: as load_image does.
    """
    with _naming(path, _OF_PICTURES), Image.open(path) as image:
        upright = _eight_bits(_upright(image))
        if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return upright.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF entry says; as it is where that entry is damaged."""
    try:
        image.getexif()
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error):
        return image
    return ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale as 8-bit, anything else as it is: PIL's convert would cut at 255 instead of scaling."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def check_image(path: Path) -> None:
    """Decode an image for its errors alone; a JPEG at an eighth of its size, which takes a third of the time."""
    with _naming(path):
        _check(path)


def check_picture(path: Path) -> None:
    """check_image for files that no image_ids.txt lists."""
    with _naming(path, _OF_PICTURES):
        _check(path)


def _check(path: Path) -> None:
    with Image.open(path) as image:
        image.draft("RGB", (image.width // 8, image.height // 8))
        image.convert("RGB")


@contextmanager
def _naming(path: Path, remedy: str = "take it out of image_ids.txt, or give --skip_bad_images"):
    """Errors of PIL become an InputError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"image {path} is missing; check --data_root") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL would name the file a second time.
        reason = "it is no image that PIL knows" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"image {path} cannot be read ({reason}); replace the file, {remedy}") from None


def eval_tensor(image: Image.Image, crop_size: int, mean, std) -> torch.Tensor:
    """The evaluation's view of an image: resized to a square, (3, crop_size, crop_size), normalised."""
    return normalized(TF.resize(image, [crop_size, crop_size]), mean, std)


def normalized(image: Image.Image, mean, std) -> torch.Tensor:
    """An RGB image as a (3, H, W) float32 tensor, (x / 255 - mean) / std a channel.

    Bit for bit torchvision's normalize(to_tensor(image)), in place: one array of the result's size instead of three.
    """
    pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= np.float32(255)
    pixels -= np.asarray(mean, dtype=np.float32)[:, None, None]
    pixels /= np.asarray(std, dtype=np.float32)[:, None, None]
    return torch.from_numpy(pixels)


class ImageDataset(Dataset):
    """(image (3, crop, crop) float32 normalised, label, index) of one split.

    With `augment="crop_flip"`: resize to resize_size squared, random crop,
    horizontal flip; the draw depends on (seed, moment, index) alone, so it is the
    same with any number of workers and after a resumed run. The moment is (stage,
    epoch), see set_epoch.
    """

    def __init__(
        self,
        metadata: SplitMetadata,
        *,
        crop_size: int,
        mean,
        std,
        augment: str = "none",
        resize_size: int = 256,
        seed: int = 0,
    ):
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
        return normalized(image, self.mean, self.std), label, index


class Pictures(Dataset):
    """(image (3, crop, crop) float32 normalised, index) of picture files, squeezed to a square as for evaluation."""

    def __init__(self, paths: Sequence[Path], crop_size: int, mean, std):
        self.paths, self.crop_size, self.mean, self.std = paths, crop_size, mean, std

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return eval_tensor(load_picture(self.paths[index]), self.crop_size, self.mean, self.std), index


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
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=min(workers, len(os.sched_getaffinity(0))),
        drop_last=lonely,
        pin_memory=torch.cuda.is_available(),
    )


def set_epoch(loader: DataLoader, moment: tuple[int, int]) -> None:
    """Tell shuffling and augmentation the moment, (number of the stage, epoch), that their draws depend on."""
    for part in (loader.sampler, loader.dataset):
        if hasattr(part, "moment"):
            part.moment = moment
