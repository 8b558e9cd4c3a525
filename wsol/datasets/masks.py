"""Decoding mask images, at the evaluation's resolution."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.datasets.reader import MaskPaths, SplitMetadata
from wsol.errors import InputError
from wsol.geometry import RESOLUTION


def load_masks(metadata: SplitMetadata, indices: Sequence[int]) -> NDArray[np.uint8]:
    """The masks of some images of a split, (B, 224, 224) uint8 as `load_mask` gives them; threads decode the files."""
    assert metadata.masks is not None
    masks = metadata.masks
    with ThreadPoolExecutor(4) as pool:
        return np.stack(list(pool.map(lambda i: load_mask(metadata.mask_root, masks[i]), indices)))


def load_mask(mask_root: Path, paths: MaskPaths, size: int = RESOLUTION) -> NDArray[np.uint8]:
    """One image's masks as a (size, size) uint8 array: 1 foreground, 0 background, 255 ignore.

    Files are resized by nearest neighbour. A pixel is foreground in a file if its value is above 0.5 (of 0..255), and
    foreground if it is so in any file. The ignore region is the ignore mask minus the foreground (wsolevaluation).
    """
    foreground = np.zeros((size, size), dtype=bool)
    for path in paths.foreground:
        foreground |= load_mask_image(mask_root / path, (size, size)) > 0.5
    mask = foreground.astype(np.uint8)
    if paths.ignore:
        mask[(load_mask_image(mask_root / paths.ignore, (size, size)) > 0.5) & ~foreground] = 255
    return mask


def load_mask_image(
    file_path: str | Path, resize_size: tuple[int, int] = (RESOLUTION, RESOLUTION)
) -> NDArray[np.float32]:
    """A greyscale image, values 0..255, resized by nearest neighbour to (width, height): (height, width) float32.

    Raises:
        InputError: the file is missing or broken.
    """
    try:
        values = cv2.imread(str(file_path), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:  # more pixels than it decodes
        raise InputError(
            f"mask {file_path} cannot be read ({error.err}); replace it, or give --skip_bad_images"
        ) from None
    if values is None:
        raise InputError(f"mask {file_path} is missing or broken; check --mask_root, or give --skip_bad_images")
    resized = cv2.resize(values.astype(np.float32), resize_size, interpolation=cv2.INTER_NEAREST)
    return resized.astype(np.float32, copy=False)
