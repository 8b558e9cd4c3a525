"""Photo composites: cutouts of real objects (RGBA pictures) pasted on real photographs, with exact boxes and masks.

The cutouts come from any folder with one folder a class, or from Debian's `tuxpaint-stamps-default`; nothing of them is
part of this repository. Cutouts are divided between train, val and test before anything is composed, so that no split
shows an object of another.
Command: scripts/prepare_cutouts.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsol.datasets.drawing.painting import natural_noise
from wsol.datasets.publish import publish_dataset
from wsol.datasets.registry import SPLITS
from wsol.datasets.writer import DatasetFolders, DatasetMetadata, Record, save_example, write_metadata
from wsol.errors import InputError
from wsol.log import progress

Pixels = NDArray[np.uint8]
Background = Callable[[Generator], Pixels]  # gives a photograph, RGB (H, W, 3), any size

LAYOUTS = ("tuxpaint", "folders")
TUXPAINT_CLASSES = {
    "bird": "animals/birds",
    "bovine": "animals/mammals/bovines",
    "fish": "animals/fish",
    "insect": "animals/insects",
    "rodent": "animals/mammals/rodents",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
}
TUXPAINT_PLACES = (
    "usr/share/tuxpaint/stamps",
    "share/tuxpaint/stamps",
    "stamps",
    ".",
)  # below the folder that the user names
# Photographs that scikit-image ships inside its package; the others it would download.
SKIMAGE_PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "rocket")
CUTOUT_SUFFIXES = {".png", ".webp", ".tif", ".tiff"}
PHOTO_SUFFIXES = CUTOUT_SUFFIXES | {".jpg", ".jpeg", ".bmp"}

SIDES = (300, 500)  # image sides in pixels
MAX_ASPECT = 1.6  # longer side / shorter side
OBJECT_SIDE = (0.35, 0.80)  # max(box width / W, box height / H)
NOISE_SHARE = 0.2  # share of images on noise where there are photographs too
VAL_SHARE, TEST_SHARE = 0.15, 0.25  # shares of a class's cutouts
MIN_OPAQUE = 64  # pixels; fewer is no object


# ---------------------------------------------------------------- finding and reading


def detect_layout(folder: str | Path) -> str:
    """'tuxpaint' where the stamps' folders are found, else 'folders'."""
    return "tuxpaint" if _stamps(Path(folder)) else "folders"


def find_cutouts(folder: str | Path, layout: str | None = None) -> dict[str, list[Path]]:
    """The cutouts of every class, sorted; class names in the order of their numbers. `layout` None: detect.

    Raises InputError for a missing folder, an unknown layout, fewer than two classes.
    """
    folder = Path(folder)
    layout = layout or detect_layout(folder)
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is unknown; choose one of: {', '.join(LAYOUTS)}")
    if not folder.is_dir():
        raise InputError(
            f"cutouts folder {folder} does not exist; name a folder with one folder of RGBA pictures a class"
        )
    stamps = _stamps(folder)
    if layout == "tuxpaint" and stamps is None:
        raise InputError(
            f"{folder} holds no Tux Paint stamps (animals/birds ...); "
            "unpack tuxpaint-stamps-default there with dpkg -x, or use --layout folders"
        )
    if layout == "tuxpaint":
        found = {name: _images(stamps / place, CUTOUT_SUFFIXES) for name, place in TUXPAINT_CLASSES.items()}
        return {
            name: [p for p in paths if "cartoon" not in p.relative_to(stamps).parts] for name, paths in found.items()
        }
    found = {child.name: _images(child, CUTOUT_SUFFIXES) for child in sorted(folder.iterdir()) if child.is_dir()}
    found = {name: paths for name, paths in found.items() if paths}
    if len(found) < 2:
        suffixes = ", ".join(sorted(CUTOUT_SUFFIXES))
        raise InputError(
            f"{folder} holds {len(found)} class folder(s) with pictures ({suffixes}); "
            "at least two are needed, one folder a class"
        )
    return found


def _stamps(folder: Path) -> Path | None:
    return next(
        (folder / place for place in TUXPAINT_PLACES if (folder / place / TUXPAINT_CLASSES["bird"]).is_dir()), None
    )


def _images(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())


def load_cutout(path: str | Path) -> Pixels:
    """Read one cutout: RGBA (H, W, 4), cropped to where alpha > 127.

    Grey and palette pictures with transparency are read too.
    Raises InputError where the file is no picture, is transparent all over, or nowhere.
    """
    try:
        with Image.open(path) as image:
            rgba = np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError) as error:
        reason = type(error).__name__
        raise InputError(
            f"{path} cannot be read as a picture ({reason}); remove it or save it again as RGBA PNG"
        ) from error
    opaque = rgba[..., 3] > 127
    if opaque.sum() < MIN_OPAQUE:
        raise InputError(
            f"{path} is transparent all over (alpha > 127 in {opaque.sum()} pixels); "
            "remove it or save it again with its alpha channel"
        )
    if opaque.all():
        raise InputError(
            f"{path} has no transparent background (alpha > 127 everywhere); "
            "cut the object out and save it as RGBA PNG, or remove it"
        )
    x, y, width, height = cv2.boundingRect(opaque.astype(np.uint8))
    return rgba[y : y + height, x : x + width]


def split_cutouts(paths: Sequence[Path], rng: Generator, name: str = "class") -> dict[str, list[Path]]:
    """Divide one class's cutouts between train, val and test: 60, 15 and 25 %, at least one each.

    Equal files count once: a copy under another name would put one object into two splits.
    Raises InputError where there are fewer than three different ones.
    """
    unique = list({hashlib.sha256(path.read_bytes()).digest(): path for path in reversed(paths)}.values())[::-1]
    if len(unique) < len(SPLITS):
        raise InputError(
            f"class {name!r} has {len(unique)} different cutout(s), and train, val and test need one each: "
            "add pictures or remove the class"
        )
    shuffled = [unique[i] for i in rng.permutation(len(unique))]
    num_val, num_test = (max(1, round(share * len(unique))) for share in (VAL_SHARE, TEST_SHARE))
    return {
        "val": shuffled[:num_val],
        "test": shuffled[num_val : num_val + num_test],
        "train": shuffled[num_val + num_test :],
    }


# ---------------------------------------------------------------- backgrounds


def find_backgrounds(sources: Sequence[str | Path] = ("skimage", "noise")) -> list[Background]:
    """Backgrounds from folders of photographs, from scikit-image ('skimage'), and natural noise ('noise').

    Raises InputError for a folder that is missing or holds no photo, and where scikit-image is wanted but missing.
    """
    photos: list[Background] = []
    noise: list[Background] = []
    for source in sources:
        if str(source) == "noise":
            noise = [_noise_photo]
        elif str(source) == "skimage":
            photos += [lambda rng, photo=photo: photo for photo in _skimage_photos()]
        elif not Path(source).is_dir():
            raise InputError(
                f"backgrounds folder {source} does not exist; name a folder of photos, or use: skimage, noise"
            )
        elif not (paths := _images(Path(source), PHOTO_SUFFIXES)):
            raise InputError(f"backgrounds folder {source} holds no picture; name another, or use: skimage, noise")
        else:
            photos += [lambda rng, path=path: _read_photo(path) for path in paths]
    if not photos and not noise:
        raise InputError("no background is given; name a folder of photographs, or use: skimage, noise")
    if not photos:
        return noise
    repeats = max(1, round(len(photos) * NOISE_SHARE / (1 - NOISE_SHARE)))  # draws are uniform over this list
    return photos + noise * repeats


def _read_photo(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(
            f"background {path} cannot be read as a picture ({type(error).__name__}); remove it"
        ) from error


def _skimage_photos() -> list[Pixels]:
    try:
        from skimage import data
    except ImportError as error:
        raise InputError(
            "backgrounds 'skimage' need scikit-image: pip install scikit-image, "
            "or use --backgrounds with a folder of photographs, or noise"
        ) from error
    photos = [getattr(data, name)() for name in SKIMAGE_PHOTOS]
    return [np.stack([p] * 3, -1) if p.ndim == 2 else p[..., :3] for p in photos]


def _noise_photo(rng: Generator) -> Pixels:
    """Two muted colours mixed by natural noise, with some noise of their own in each channel. (400, 400, 3)"""
    share = natural_noise(rng, 400, 400, 0.65)[..., None]
    tint = cv2.merge([natural_noise(rng, 400, 400, 0.65) for _ in range(3)]) - 0.5
    first, second = (rng.uniform(30, 220) + rng.uniform(-35, 35, 3) for _ in range(2))
    return np.clip(first + share * (second - first) + 60 * tint, 0, 255).astype(np.uint8)


def crop_background(photo: Pixels, size: tuple[int, int], rng: Generator) -> NDArray[np.float32]:
    """A random crop of a photo, mirrored or not, its light changed a little, scaled to `size` (W, H). (H, W, 3)"""
    width, height = size
    room = min(photo.shape[1] / width, photo.shape[0] / height)  # crop pixels per image pixel, at most
    scale = room * rng.uniform(0.5, 0.98)
    crop = np.maximum(np.int32((scale * width, scale * height)), 1)
    x, y = rng.integers(0, np.array(photo.shape[1::-1]) - crop + 1)
    patch = photo[y : y + crop[1], x : x + crop[0]][:, :: rng.choice([-1, 1])]
    patch = cv2.resize(
        np.ascontiguousarray(patch), size, interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    )
    return patch.astype(np.float32) * np.float32(rng.uniform(0.7, 1.1) * rng.uniform(0.92, 1.08, 3))


# ---------------------------------------------------------------- composing


def compose(cutout: Pixels, photo: Pixels, rng: Generator) -> tuple[Pixels, Pixels]:
    """Paste a cutout, RGBA (h, w, 4), on a background, RGB: image (H, W, 3) and mask (H, W), 255 where alpha > 127.

    Random: image size, crop of the background; the object's size, place, rotation (15 degrees at most), mirroring and
    brightness.
    """
    width, height = (int(v) for v in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    width, height = max(width, int(height / MAX_ASPECT)), max(height, int(width / MAX_ASPECT))
    canvas = crop_background(photo, (width, height), rng)
    for _ in range(8):
        layer = _place(cutout, (width, height), rng)
        alpha = layer[..., 3:]
        mask = np.where(alpha[..., 0] > 127, 255, 0).astype(np.uint8)
        if mask.any():  # thin objects can fade away when they are made much smaller
            break
    else:
        size = f"{cutout.shape[1]}x{cutout.shape[0]}"
        raise InputError(f"a cutout of {size} pixels vanishes at the size of the images; remove such thin objects")
    image = canvas * (1 - alpha / 255) + layer[..., :3] * np.float32(rng.uniform(0.8, 1.15))
    return np.clip(np.round(image), 0, 255).astype(np.uint8), mask


def _place(cutout: Pixels, size: tuple[int, int], rng: Generator) -> NDArray[np.float32]:
    """Scale, turn, mirror and move a cutout onto an empty layer of `size` (W, H): premultiplied RGBA, 0..255."""
    angle = np.deg2rad(rng.uniform(-15, 15))
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(
        [rng.choice([-1.0, 1.0]), 1.0]
    )
    rows, columns = np.nonzero(cutout[..., 3] > 127)
    low, extent = _extent(np.stack([columns, rows], 1) @ linear.T)
    room = np.array(size) - 4.0  # two pixels free at each side
    scale = min(rng.uniform(*OBJECT_SIDE) / max(extent / size), *(room / extent))
    target = 2 + rng.random(2) * (room - scale * extent)
    shrink = min(1.0, 1.5 * scale)  # bilinear sampling skips pixels below half size: average first
    source = cutout.astype(np.float32)
    source[..., :3] *= (
        source[..., 3:] / 255
    )  # premultiplied: no dark or bright fringe from the colour of transparent pixels
    if shrink < 1:
        source = cv2.resize(source, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    ratio = np.array(cutout.shape[1::-1]) / np.array(source.shape[1::-1])  # cutout pixels per source pixel
    matrix = np.concatenate([scale * linear * ratio, (target - scale * low)[:, None]], 1)
    layer = cv2.warpAffine(
        source, matrix, size, flags=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR, borderValue=(0, 0, 0, 0)
    )
    return np.clip(layer, 0, 255)


def _extent(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest corner and size of the box around points (N, 2)."""
    return points.min(0), np.maximum(np.ptp(points, axis=0), 1.0)


# ---------------------------------------------------------------- the data set


def make_cutouts(
    cutouts: str | Path,
    data_root: str | Path,
    metadata_root: str | Path,
    mask_root: str | Path | None = None,
    name: str = "CUTOUTS",
    layout: str | None = None,
    backgrounds: Sequence[str | Path] = ("skimage", "noise"),
    seed: int = 0,
    images_per_class: tuple[int, int, int] = (60, 15, 30),
) -> bool:
    """Compose the data set, boxes and masks for all splits, unless it is there already.

    images_per_class: numbers for train, val and test. Returns True if something was written.
    Raises InputError for pictures that cannot be used, numbers below 1, another data set's folder in the way.
    """
    if len(images_per_class) != len(SPLITS) or min(images_per_class) < 1:
        raise InputError(f"images a class must be at least 1 in train, val and test, got {images_per_class}")
    classes = find_cutouts(cutouts, layout)
    divided = [
        split_cutouts(paths, np.random.default_rng((seed, c)), key) for c, (key, paths) in enumerate(classes.items())
    ]
    pictures = _load_all([path for paths in classes.values() for path in paths])
    slugs = _slugs(list(classes))
    photos = find_backgrounds(backgrounds)
    jobs = [(s, c, i) for s, number in enumerate(images_per_class) for c in range(len(slugs)) for i in range(number)]

    def fill(folders: DatasetFolders) -> None:
        records: dict[str, list[Record]] = {split: [] for split in SPLITS}
        for s, c, i in progress(jobs, f"composing {name}", unit="image"):
            rng, split = np.random.default_rng((seed, s, c, i)), SPLITS[s]
            path = divided[c][split][i % len(divided[c][split])]
            image, mask = compose(pictures[path], photos[rng.integers(len(photos))](rng), rng)
            records[split].append(save_example(folders, f"{split}/{slugs[c]}/{i:04d}", c, image, [mask]))
        write_metadata(folders.metadata, DatasetMetadata(records, list(classes)))

    return publish_dataset(DatasetFolders.named(name, data_root, metadata_root, mask_root), fill)


def _load_all(paths: Sequence[Path]) -> Mapping[Path, Pixels]:
    """Read every cutout before anything is written; the error counts all that are bad."""
    pictures, errors = {}, []
    for path in paths:
        try:
            pictures[path] = load_cutout(path)
        except InputError as error:
            errors.append(str(error))
    if errors:
        more = f" (and {len(errors) - 1} more files like this)" if len(errors) > 1 else ""
        raise InputError(errors[0] + more)
    return pictures


def _slugs(names: Sequence[str]) -> list[str]:
    """Folder names without spaces, commas or other special characters, one for each class."""
    slugs = [re.sub(r"[^\w.-]+", "_", name).strip("_.") or f"class_{i}" for i, name in enumerate(names)]
    if len(set(slugs)) < len(slugs):
        twin = next(i for i, slug in enumerate(slugs) if slug in slugs[:i])
        first = names[slugs.index(slugs[twin])]
        raise InputError(f"class folders {first!r} and {names[twin]!r} differ in special characters only: rename one")
    return slugs
