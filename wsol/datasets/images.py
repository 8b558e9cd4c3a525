"""Image files → arrays and tensors; every error names the file."""

import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import functional as TF

from wsol.errors import InputError

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
