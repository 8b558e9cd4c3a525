"""Further figures of one picture for inference.py: the channels of a map, concepts, and guided backpropagation."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsol.run.contact_sheet import remark, thumbnail, write_line
from wsol.run.overlay import overlay

_GAP, _TOP = 8, 44


class Channel(NamedTuple):
    """A channel of a map: its number, its weight, its share of the map's absolute sum, and activations in [0, 1]."""

    number: int
    weight: float
    share: float
    activations: NDArray[np.float32]


def strongest_channels(weights: NDArray, activations: NDArray, count: int) -> list[Channel]:
    """The channels that add or take most: by |w_c| times the sum of |A_c|.

    Args:
        weights: (C,). activations: (C, h, w).
        count: how many; all if there are fewer.
    """
    adds = np.abs(weights) * np.abs(activations).sum(axis=(1, 2))
    total = adds.sum() or 1.0
    channels = []
    for c in np.argsort(-adds, kind="stable")[:count]:
        low, high = activations[c].min(), activations[c].max()
        stretched = (activations[c] - low) / (high - low) if high > low else np.zeros_like(activations[c])
        channels.append(Channel(int(c), float(weights[c]), float(adds[c] / total), stretched.astype(np.float32)))
    return channels


def channel_sheet(
    image: NDArray[np.uint8],
    heading: str,
    scoremap: NDArray[np.floating],
    channels: Sequence[Channel],
    colormap: str,
) -> NDArray[np.uint8]:
    """The map and, beside it, its strongest channels over the picture, each with its weight and its share of the map.

    Args:
        image: (H, W, 3) uint8 RGB. scoremap: (h, w) in [0, 1].
    """
    small = thumbnail(image)
    cells = [(overlay(small, scoremap, colormap), "the map")]
    cells += [
        (
            overlay(small, channel.activations, colormap),
            f"channel {channel.number}: {channel.weight:+.3g}, {100 * channel.share:.1f} %",
        )
        for channel in channels
    ]
    return _grid(cells, heading)


def concept_sheet(
    image: NDArray[np.uint8], heading: str, maps: NDArray[np.floating], captions: Sequence[str]
) -> NDArray[np.uint8]:
    """The picture, all concepts over it, each place in the colour of its strongest one, and each concept by itself.

    Args:
        image: (H, W, 3) uint8 RGB. maps: (N, h, w) >= 0. captions: of each concept.
    """
    small = thumbnail(image)
    height, width = small.shape[:2]
    highest = maps.max(axis=(1, 2), keepdims=True)
    scaled = [cv2.resize(m.astype(np.float32), (width, height)) for m in maps / np.where(highest > 0, highest, 1)]
    colours = [np.array(colorsys.hsv_to_rgb(n / len(scaled), 0.85, 0.95), np.float32) * 255 for n in range(len(scaled))]
    strongest, strength = np.argmax(scaled, axis=0), np.max(scaled, axis=0)[..., None].clip(0, 1)
    together = 0.35 * small + 0.65 * strength * np.stack(colours)[strongest]
    cells = [(small, "the picture"), (together.astype(np.uint8), "the strongest concept at each place")]
    for concept, colour, caption in zip(scaled, colours, captions, strict=True):
        cells.append(((0.35 * small + 0.65 * concept[..., None].clip(0, 1) * colour).astype(np.uint8), caption))
    return _grid(cells, heading)


def guided_sheet(
    image: NDArray[np.uint8],
    heading: str,
    gradients: NDArray[np.floating],
    gradcam: NDArray[np.floating],
) -> NDArray[np.uint8]:
    """The picture, guided backpropagation, and its product with Grad-CAM's map: grey is no gradient.

    Args:
        image: (H, W, 3) uint8 RGB. gradients: (3, h, w), signed. gradcam: (h', w') in [0, 1].
    """
    small = thumbnail(image)
    height, width = small.shape[:2]
    signal = np.stack([cv2.resize(channel.astype(np.float32), (width, height)) for channel in gradients], axis=2)
    product = signal * cv2.resize(gradcam.astype(np.float32), (width, height))[..., None]
    cells = [
        (small, "the picture"),
        (_in_grey(signal), "guided backpropagation"),
        (_in_grey(product), "guided Grad-CAM"),
    ]
    return _grid(cells, heading)


def _in_grey(signal: NDArray) -> NDArray[np.uint8]:
    """A signed signal around middle grey, its standard deviation a tenth of the range (grad-cam's deprocess_image)."""
    spread = (signal - signal.mean()) / (signal.std() + 1e-5)
    return (255 * (0.1 * spread + 0.5).clip(0, 1)).astype(np.uint8)


def _grid(cells: Sequence[tuple[NDArray[np.uint8], str]], heading: str) -> NDArray[np.uint8]:
    """Pictures of one size, at most five in a line, each with a few words on it, below a heading."""
    height, width = cells[0][0].shape[:2]
    cell_width = max(width, 150)
    columns = min(len(cells), 5)
    size = (
        columns * (cell_width + _GAP) + _GAP,
        _TOP + math.ceil(len(cells) / columns) * (height + _GAP),
    )
    sheet = Image.new("RGB", size, "white")
    write_line(ImageDraw.Draw(sheet), (_GAP, 10), heading, sheet.width - 2 * _GAP, 18, bold=True)
    for number, (pixels, words) in enumerate(cells):
        line, column = divmod(number, columns)
        place = (_GAP + column * (cell_width + _GAP), _TOP + line * (height + _GAP))
        sheet.paste(Image.fromarray(pixels), place)
        remark(sheet, place, (cell_width, height), words)
    return np.asarray(sheet)
