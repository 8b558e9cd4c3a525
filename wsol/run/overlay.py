"""A score map laid over an image."""

from __future__ import annotations

import io
from functools import lru_cache

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsol.run.figure_options import DEFAULT_COLORMAP


def overlay(
    image: NDArray[np.uint8], scoremap: NDArray[np.floating], colormap: str = DEFAULT_COLORMAP
) -> NDArray[np.uint8]:
    """A score map (h, w) in [0, 1] over an RGB image (H, W, 3), in the colours of a matplotlib colour map.

    The higher the score the stronger the colour, so that the image shows through where the map is low.
    """
    height, width = image.shape[:2]
    scaled = cv2.resize(scoremap, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)[..., None]
    colours = _colours(colormap)[np.minimum(scaled[..., 0] * 256, 255).astype(np.uint8)]
    strength = 0.3 + 0.35 * scaled
    return (strength * colours + (1 - strength) * image).astype(np.uint8)


def colour_scale(colormap: str, height: int, width: int) -> NDArray[np.uint8]:
    """The colours of scores from 0 (left) to 1 (right) over a grey image: (height, width, 3) RGB, for a colour bar."""
    scores = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    return overlay(np.full((height, width, 3), 128, np.uint8), scores, colormap)


@lru_cache
def _colours(colormap: str) -> NDArray[np.float32]:
    """(256, 3) in 0..255."""
    return (matplotlib.colormaps[colormap](np.arange(256))[:, :3] * 255).astype(np.float32)


def jpeg_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """An (H, W, 3) RGB image as a JPEG file with colours at full resolution."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "jpeg", quality=90, subsampling=0)
    return content.getvalue()
