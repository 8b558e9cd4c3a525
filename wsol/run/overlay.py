"""A score map laid over an image."""

from __future__ import annotations

import io

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_TURBO = (matplotlib.colormaps["turbo"](np.arange(256))[:, :3] * 255).astype(np.float32)


def overlay(image: NDArray[np.uint8], scoremap: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A score map (h, w) in [0, 1] over an RGB image (H, W, 3), from blue (0) to red (1).

    The higher the score the stronger the colour, so that the image shows through where the map is low.
    """
    height, width = image.shape[:2]
    scaled = cv2.resize(scoremap, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)[..., None]
    colours = _TURBO[np.minimum(scaled[..., 0] * 256, 255).astype(np.uint8)]
    strength = 0.3 + 0.35 * scaled
    return (strength * colours + (1 - strength) * image).astype(np.uint8)


def jpeg_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """An (H, W, 3) RGB image as a JPEG file with colours at full resolution."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "jpeg", quality=90, subsampling=0)
    return content.getvalue()
