"""Mask images: files → arrays at the evaluation's resolution."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.datasets.reader import MaskPaths, SplitMetadata
from wsol.errors import InputError
from wsol.geometry import RESOLUTION


def load_mask(mask_root: Path, paths: MaskPaths, size: int = RESOLUTION) -> NDArray[np.uint8]:
    """One image's masks as (size, size) uint8: 1 foreground, 0 background, 255 ignore.

    Files are resized by nearest neighbour; values above 0.5 of 0..255 count. The
    ignore region is the ignore mask without the foreground (wsolevaluation).
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
    """A grey image in 0..255, resized by nearest neighbour to (width, height): (height, width) float32."""
    values = cv2.imread(str(file_path), cv2.IMREAD_GRAYSCALE)
    if values is None:
        raise InputError(f"mask {file_path} is missing or broken; check --mask_root, or give --skip_bad_images")
    return cv2.resize(values.astype(np.float32), resize_size, interpolation=cv2.INTER_NEAREST)


def load_masks(metadata: SplitMetadata, indices: Sequence[int]) -> np.ndarray:
    """Masks of some images, (B, 224, 224) uint8, see load_mask; files are decoded by threads."""
    with ThreadPoolExecutor(4) as pool:
        return np.stack(list(pool.map(lambda i: load_mask(metadata.mask_root, metadata.masks[i]), indices)))
