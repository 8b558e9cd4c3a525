"""Decoding image files. Every error names the file and the remedy."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from wsol.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}

# What to do about a broken file: one that image_ids.txt lists, and one that was named on the command line.
LISTED_IMAGE = "replace the file, take it out of image_ids.txt, or give --skip_bad_images"
NAMED_PICTURE = "replace the file, or give --skip_bad_images"
MASK = "it is a mask; replace the file, or give --skip_bad_images"
# Pillow decodes up to 179 million pixels and refuses more; at half of that it merely warns.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def load_image(path: Path) -> Image.Image:
    """A data set's image as RGB, with its pixels as they are stored, because boxes refer to those.

    Raises:
        InputError: the file is missing or broken.
    """
    with _naming_file(path, LISTED_IMAGE), Image.open(path) as image:
        return _to_eight_bits(image).convert("RGB")


def load_picture(path: Path) -> Image.Image:
    """A picture as RGB, as viewers show it: turned upright (EXIF), first frame, transparency over white.

    Raises:
        InputError: the file is missing or broken.
    """
    with _naming_file(path, NAMED_PICTURE), Image.open(path) as image:
        upright = _to_eight_bits(_upright(image))
        if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return upright.convert("RGB")


def check_image(path: Path, remedy: str = LISTED_IMAGE) -> None:
    """Decode an image only to see whether it can be; a JPEG at an eighth of its size, which takes a third of the time.

    Raises:
        InputError: the file is missing or broken; the message ends with `remedy`.
    """
    with _naming_file(path, remedy), Image.open(path) as image:
        image.draft("RGB", (image.width // 8, image.height // 8))
        image.convert("RGB")


def image_size(path: Path, remedy: str = LISTED_IMAGE) -> tuple[int, int]:
    """Width and height of an image as its pixels are stored, from its header.

    Raises:
        InputError: the file is missing, no image, or has more pixels than Pillow decodes; the message ends with
            `remedy`.
    """
    with _naming_file(path, remedy), Image.open(path) as image:
        return image.size


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF entry says; unchanged if that entry is damaged."""
    try:
        image.getexif()
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error):
        return image
    return ImageOps.exif_transpose(image)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit greyscale to 8 bits, which Pillow's `convert` would clip at 255; other images are unchanged."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


@contextmanager
def _naming_file(path: Path, remedy: str) -> Iterator[None]:
    """Turn Pillow's errors into an InputError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"image {path} is missing; check --data_root") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's own text for an unknown format would name the file a second time.
        reason = "not an image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"image {path} cannot be read ({reason}); {remedy}") from None
