"""The data set `CUTOUTS`: cut-out objects (RGBA pictures) pasted on photographs, with exact boxes and masks.

The cutouts come from a folder with one subfolder per class, or from Debian's `tuxpaint-stamps-default`; none of them
are part of this repository. They are divided between train, val and test before anything is composed, so no object
appears in two splits.
Command: scripts/prepare_cutouts.py.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
Background = Callable[[Generator], Pixels]  # returns a photograph, RGB (H, W, 3) of any size

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
# Where the stamps may be below the folder that the user names.
TUXPAINT_PLACES = ("usr/share/tuxpaint/stamps", "share/tuxpaint/stamps", "stamps", ".")
# Photographs that are part of the scikit-image package; it would download the others.
SKIMAGE_PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "rocket")
CUTOUT_SUFFIXES = {".png", ".webp", ".tif", ".tiff"}
PHOTO_SUFFIXES = CUTOUT_SUFFIXES | {".jpg", ".jpeg", ".bmp"}

SIDES = (300, 500)  # image sides in pixels
MAX_ASPECT = 1.6  # longer side / shorter side
OBJECT_SIDE = (0.35, 0.80)  # max(box width / W, box height / H)
NOISE_SHARE = 0.2  # share of images on noise if there are photographs, too
VAL_SHARE, TEST_SHARE = 0.15, 0.25  # shares of a class's cutouts
MIN_OPAQUE = 64  # pixels; fewer do not count as an object
FEATHER = 1.5  # seamless: standard deviation in pixels of the object's soft edge
MATCH = 0.5  # seamless: share of the way from the object's mean colour to that of its ground
BLUR, NOISE, JPEG_QUALITY = 1.2, 7.0, 75  # seamless, of the whole image: pixels, grey levels, and quality


# ---------------------------------------------------------------- finding and reading


def detect_layout(folder: str | Path) -> str:
    """The layout of a folder of cutouts: "tuxpaint" if it contains the stamps' folders, else "folders"."""
    return "tuxpaint" if _stamps(Path(folder)) else "folders"


def find_cutouts(folder: str | Path, layout: str | None = None) -> dict[str, list[Path]]:
    """{class name: sorted cutouts}, in the order of the class indices. Without `layout`, it is detected.

    Raises:
        InputError: the folder is missing, the layout is unknown, or there are fewer than two classes.
    """
    folder = Path(folder)
    layout = layout or detect_layout(folder)
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is unknown; choose one of: {', '.join(LAYOUTS)}")
    if not folder.is_dir():
        raise InputError(
            f"cutouts folder {folder} does not exist; name a folder with one subfolder of RGBA pictures per class"
        )
    stamps = _stamps(folder)
    if layout == "folders":
        return _find_class_folders(folder)
    if stamps is None:
        raise InputError(
            f"{folder} has no Tux Paint stamps (animals/birds ...); "
            "unpack tuxpaint-stamps-default there with dpkg -x, or use --layout folders"
        )
    return {
        name: [p for p in _images(stamps / place, CUTOUT_SUFFIXES) if "cartoon" not in p.relative_to(stamps).parts]
        for name, place in TUXPAINT_CLASSES.items()
    }


def _find_class_folders(folder: Path) -> dict[str, list[Path]]:
    cutouts = {child.name: _images(child, CUTOUT_SUFFIXES) for child in sorted(folder.iterdir()) if child.is_dir()}
    cutouts = {name: paths for name, paths in cutouts.items() if paths}
    if len(cutouts) < 2:
        suffixes = ", ".join(sorted(CUTOUT_SUFFIXES))
        raise InputError(
            f"{folder} has {len(cutouts)} class folder(s) with pictures ({suffixes}); "
            "at least two are needed, one subfolder per class"
        )
    return cutouts


def _stamps(folder: Path) -> Path | None:
    """The folder of Tux Paint's stamps in `folder`, if there is one."""
    return next(
        (folder / place for place in TUXPAINT_PLACES if (folder / place / TUXPAINT_CLASSES["bird"]).is_dir()), None
    )


def _images(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())


def load_cutout(path: str | Path) -> Pixels:
    """Read one cutout: RGBA (H, W, 4), cropped to where alpha > 127.

    Grey and palette pictures with transparency are read, too.

    Raises:
        InputError: the file is not a picture, or has no transparent or no opaque part.
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
            f"{path} is transparent everywhere (alpha > 127 in only {opaque.sum()} pixels); "
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

    Equal files count once, as a copy under another name would put one object into two splits.

    Raises:
        InputError: there are fewer than three different cutouts.
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
    """Backgrounds from folders of photographs, from scikit-image ("skimage"), and natural noise ("noise").

    Raises:
        InputError: a folder is missing or has no photograph, or "skimage" is given without scikit-image installed.
    """
    photos: list[Background] = []
    noise: list[Background] = []
    for source in sources:
        if str(source) == "noise":
            noise = [_noise_photo]
        elif str(source) == "skimage":
            photos += map(_in_memory, _skimage_photos())
        elif not Path(source).is_dir():
            raise InputError(
                f"backgrounds folder {source} does not exist; name a folder of photos, or use: skimage, noise"
            )
        elif not (paths := _images(Path(source), PHOTO_SUFFIXES)):
            raise InputError(f"backgrounds folder {source} has no picture; name another, or use: skimage, noise")
        else:
            photos += map(_from_file, paths)
    if not photos and not noise:
        raise InputError("no background is given; name a folder of photographs, or use: skimage, noise")
    if not photos:
        return noise
    repeats = max(1, round(len(photos) * NOISE_SHARE / (1 - NOISE_SHARE)))  # draws are uniform over this list
    return photos + noise * repeats


def _in_memory(photo: Pixels) -> Background:
    return lambda rng: photo


def _from_file(path: Path) -> Background:
    return lambda rng: _read_photo(path)


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
    """Two muted colours mixed by natural noise, with further noise in each channel: (400, 400, 3)."""
    share = natural_noise(rng, 400, 400, 0.65)[..., None]
    tint = cv2.merge([natural_noise(rng, 400, 400, 0.65) for _ in range(3)]) - 0.5
    first, second = (rng.uniform(30, 220) + rng.uniform(-35, 35, 3) for _ in range(2))
    return np.clip(first + share * (second - first) + 60 * tint, 0, 255).astype(np.uint8)


def crop_background(photo: Pixels, size: tuple[int, int], rng: Generator) -> NDArray[np.float32]:
    """A random crop of a photo, scaled to `size` (W, H), maybe mirrored, its light changed a little: (H, W, 3)."""
    width, height = size
    room = min(photo.shape[1] / width, photo.shape[0] / height)  # crop pixels per image pixel, at most
    scale = room * rng.uniform(0.5, 0.98)
    crop = np.maximum(np.array((scale * width, scale * height)).astype(np.int32), 1)
    x, y = rng.integers(0, np.array(photo.shape[1::-1]) - crop + 1)
    patch = np.ascontiguousarray(photo[y : y + crop[1], x : x + crop[0]][:, :: rng.choice([-1, 1])])
    scaled = cv2.resize(patch, size, interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC)
    return scaled.astype(np.float32) * np.float32(rng.uniform(0.7, 1.1) * rng.uniform(0.92, 1.08, 3))


# ---------------------------------------------------------------- composing


def compose(cutout: Pixels, photo: Pixels, rng: Generator, seamless: bool = False) -> tuple[Pixels, Pixels]:
    """Paste a cutout, RGBA (h, w, 4), on a photo, RGB.

    Random are the image size, the crop of the photo, and the object's size, place, rotation (at most 15 degrees),
    mirroring and brightness.

    Args:
        seamless: hide what tells the object from its ground besides its content: see `_soften`, and `_develop`.

    Returns:
        The image (H, W, 3), and the mask (H, W): 255 where alpha > 127, else 0.

    Raises:
        InputError: the object is so thin that nothing is left of it at the image's size.
    """
    width, height = (int(v) for v in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    width, height = max(width, int(height / MAX_ASPECT)), max(height, int(width / MAX_ASPECT))
    canvas = crop_background(photo, (width, height), rng)
    for _ in range(8):
        layer = _place(cutout, (width, height), rng)
        alpha = layer[..., 3:]
        mask = np.where(alpha[..., 0] > 127, 255, 0).astype(np.uint8)
        if mask.any():  # thin objects can vanish when they are scaled down a lot
            break
    else:
        size = f"{cutout.shape[1]}x{cutout.shape[0]}"
        raise InputError(f"a cutout of {size} pixels vanishes at the size of the images; remove such thin objects")
    layer[..., :3] *= np.float32(rng.uniform(0.8, 1.15))
    if seamless:
        layer = _soften(layer, canvas)
        mask = np.where(layer[..., 3] > 127, 255, 0).astype(np.uint8) if (layer[..., 3] > 127).any() else mask
    image = canvas * (1 - layer[..., 3:] / 255) + layer[..., :3]
    return _develop(image, rng) if seamless else np.clip(np.round(image), 0, 255).astype(np.uint8), mask


def _soften(layer: NDArray[np.float32], canvas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Feather an object's edge inwards, and bring its mean colour nearer to that of the ground that it covers.

    layer: premultiplied RGBA (H, W, 4); canvas: RGB (H, W, 3).
    """
    alpha = layer[..., 3:] / 255
    colour = layer[..., :3] / np.maximum(alpha, 1e-3)
    radius = round(2 * FEATHER)  # the blur, cut off there, stays where the object has a colour
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    side = 2 * radius + 1
    soft = cv2.GaussianBlur(cv2.erode(alpha, kernel), (side, side), FEATHER)[..., None]
    if soft.max() < 0.5:  # too thin to lose its edge
        soft = alpha
    shift = MATCH * (soft * (canvas - colour)).sum((0, 1)) / soft.sum()
    return np.concatenate([soft * np.clip(colour + shift, 0, 255), 255 * soft], 2).astype(np.float32)


def _develop(image: NDArray[Any], rng: Generator) -> Pixels:
    """Blur an image, add noise, and compress it, the same everywhere: RGB (H, W, 3)."""
    noisy = cv2.GaussianBlur(image, (0, 0), BLUR) + rng.normal(0, NOISE, image.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(file).convert("RGB"))


def _place(cutout: Pixels, size: tuple[int, int], rng: Generator) -> NDArray[np.float32]:
    """Scale, turn, mirror and move a cutout onto an empty layer of `size` (W, H): premultiplied RGBA (H, W, 4)."""
    angle = np.deg2rad(rng.uniform(-15, 15))
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(
        [rng.choice([-1.0, 1.0]), 1.0]
    )
    rows, columns = np.nonzero(cutout[..., 3] > 127)
    low, extent = _extent(np.stack([columns, rows], 1) @ linear.T)
    room = np.array(size) - 4.0  # two pixels stay free at each side
    scale = min(rng.uniform(*OBJECT_SIDE) / max(extent / size), *(room / extent))
    target = 2 + rng.random(2) * (room - scale * extent)
    shrink = min(1.0, 1.5 * scale)  # below half size, bilinear sampling skips pixels: average first
    source: NDArray[Any] = cutout.astype(np.float32)
    source[..., :3] *= source[..., 3:] / 255  # premultiplied: the colour of transparent pixels leaves no fringe
    if shrink < 1:
        source = cv2.resize(source, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    ratio = np.array(cutout.shape[1::-1]) / np.array(source.shape[1::-1])  # cutout pixels per source pixel
    matrix = np.concatenate([scale * linear * ratio, (target - scale * low)[:, None]], 1)
    layer = cv2.warpAffine(
        source, matrix, size, flags=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR, borderValue=(0, 0, 0, 0)
    )
    return np.clip(layer, 0, 255)


def _extent(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest corner and size (at least 1) of the box around points (N, 2)."""
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
    seamless: bool = False,
) -> bool:
    """Compose and write the data set, with boxes and masks for all splits, unless it exists already.

    Args:
        cutouts: folder of the cutouts.
        data_root: folder of the images of all data sets.
        metadata_root: folder of the metadata of all data sets.
        mask_root: folder of the masks of all data sets (default: data_root).
        name: the data set's name.
        layout: one of LAYOUTS (default: detected).
        backgrounds: folders of photographs, "skimage", "noise"; see `find_backgrounds`.
        seed: seed of everything that is drawn.
        images_per_class: numbers for train, val and test.
        seamless: soft edges, matched colours, the same blur, noise and compression everywhere; see `compose`.

    Returns:
        True if something was written.

    Raises:
        InputError: a picture cannot be used, a number is below 1, or a folder with other files is in the way.
    """
    if len(images_per_class) != len(SPLITS) or min(images_per_class) < 1:
        raise InputError(f"images per class must be at least 1 in train, val and test, got {images_per_class}")
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
            image, mask = compose(pictures[path], photos[rng.integers(len(photos))](rng), rng, seamless)
            records[split].append(save_example(folders, f"{split}/{slugs[c]}/{i:04d}", c, image, [mask]))
        write_metadata(folders.metadata, DatasetMetadata(records, list(classes)))

    return publish_dataset(DatasetFolders.named(name, data_root, metadata_root, mask_root), fill)


def _load_all(paths: Sequence[Path]) -> Mapping[Path, Pixels]:
    """Read every cutout before anything is written; the error counts all bad ones."""
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
    """A folder name for each class, without spaces, commas or other special characters."""
    slugs = [re.sub(r"[^\w.-]+", "_", name).strip("_.") or f"class_{i}" for i, name in enumerate(names)]
    if len(set(slugs)) < len(slugs):
        twin = next(i for i, slug in enumerate(slugs) if slug in slugs[:i])
        first = names[slugs.index(slugs[twin])]
        raise InputError(f"class folders {first!r} and {names[twin]!r} differ only in special characters: rename one")
    return slugs
