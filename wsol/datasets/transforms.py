"""From an RGB image to the tensor that a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as TF


def eval_tensor(image: Image.Image, crop_size: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """The image as evaluation sees it: resized to a square and normalized, (3, crop_size, crop_size) float32."""
    return normalized(TF.resize(image, [crop_size, crop_size]), mean, std)


def normalized(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """An RGB image as a (3, H, W) float32 tensor: (x / 255 - mean) / std for each channel.

    Equal to torchvision's normalize(to_tensor(image)) bit for bit, but in place: one array of that size, not three.
    """
    pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= np.float32(255)
    pixels -= np.asarray(mean, dtype=np.float32)[:, None, None]
    pixels /= np.asarray(std, dtype=np.float32)[:, None, None]
    return torch.from_numpy(pixels)
