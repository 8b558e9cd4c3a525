"""BroadCAM's figure of one class in one picture: methods by proportions of the training images, beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsol.geometry import RESOLUTION
from wsol.run.contact_sheet import thumbnail, write_line
from wsol.run.figure_options import DEFAULT_COLORMAP
from wsol.run.overlay import colour_scale, overlay

_GAP, _LABEL, _TOP, _BAR = 6, 26, 66, 40
_TRUTH, _SHADE = (40, 220, 90), 0.35


class Truth(NamedTuple):
    """boxes: (n, 4) x0, y0, x1, y1, and mask: (224, 224) bool, both at 224 x 224 pixels; None where there are none."""

    boxes: NDArray[np.int64] | None = None
    mask: NDArray[np.bool_] | None = None


def seeds_sheet(
    image: NDArray[np.uint8],
    heading: str,
    maps: Mapping[str, Sequence[NDArray[np.floating]]],
    columns: Sequence[str],
    truth: Truth | None = None,
    colormap: str = DEFAULT_COLORMAP,
) -> NDArray[np.uint8]:
    """A row for each method, a column for each of its maps, and left of them the picture and below it the truth.

    Args:
        image: (H, W, 3) uint8 RGB.
        heading: the title line.
        maps: method → a score map in [0, 1] for each column, of any size.
        columns: their titles.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    small = thumbnail(image)
    height, width = small.shape[:2]
    beside = [small] if truth is None else [small, with_truth(small, truth)]
    rows = max(len(maps), len(beside))
    left = width + 2 * _GAP
    size = (left + _GAP + len(columns) * (width + _GAP), _TOP + rows * (height + _LABEL) + _BAR)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    write_line(draw, (_GAP, 10), heading, sheet.width - 2 * _GAP, 20, bold=True)
    for number, (cell, title) in enumerate(zip(beside, ("picture", "ground truth"), strict=False)):
        y = _TOP + number * (height + _LABEL)
        write_line(draw, (_GAP, y), title, width, 14)
        sheet.paste(Image.fromarray(cell), (_GAP, y + _LABEL - 4))
    for column, title in enumerate(columns):
        x = left + _GAP + column * (width + _GAP)
        write_line(draw, (x, _TOP - 24), title, width, 16, bold=True)
        for row, (method, of_method) in enumerate(maps.items()):
            y = _TOP + row * (height + _LABEL)
            write_line(draw, (x, y), method, width, 14)
            sheet.paste(Image.fromarray(overlay(small, of_method[column], colormap)), (x, y + _LABEL - 4))
    x, y = left + _GAP, size[1] - _BAR + 6
    sheet.paste(Image.fromarray(colour_scale(colormap, 14, width)), (x, y))
    write_line(draw, (x + width + 8, y), "score, 0 to 1; columns: share of the training images", size[0], 13)
    return np.asarray(sheet)


def with_truth(image: NDArray[np.uint8], truth: Truth) -> NDArray[np.uint8]:
    """The image with what is no object darker, the outline of its mask, and its boxes."""
    height, width = image.shape[:2]
    drawn = image.copy()
    if truth.mask is not None:
        mask = cv2.resize(truth.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        drawn[mask == 0] = (drawn[mask == 0] * _SHADE).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, _TRUTH, 1)
    for box in [] if truth.boxes is None else truth.boxes:
        x0, y0, x1, y1 = (np.asarray(box) * np.tile([width, height], 2) / RESOLUTION).round().astype(int).tolist()
        cv2.rectangle(drawn, (x0, y0), (x1, y1), _TRUTH, 2)
    return drawn
