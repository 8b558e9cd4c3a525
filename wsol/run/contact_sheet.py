"""The contact sheet of one picture: its most likely classes, and its maps of all methods and heads side by side.

Drawn with Pillow: a folder of pictures needs thousands of sheets, and matplotlib takes a second for each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsol.cam import NO_HEAD, Variant, variants
from wsol.run.figure_options import DEFAULT_COLORMAP
from wsol.run.overlay import colour_scale, overlay

_CELL_AREA, _LONGEST_SIDE = 230 * 230, 460  # pixels of a thumbnail
_GAP, _MOST_COLUMNS = 8, 4  # few enough for a page's width
_COLOUR_BAR = 36  # height of the colour bar with its numbers
_INK, _FAINT, _BAR = "#1a1a1a", "#777777", "#cfe3fa"


def contact_sheet(
    image: NDArray,
    heading: str,
    classes: Sequence[tuple[str, float]],
    maps: Mapping[Variant, NDArray],
    heads: Sequence[str],
    degenerate: Sequence[Variant] = (),
    refine: Sequence[str] = ("none",),
    colormap: str = DEFAULT_COLORMAP,
) -> NDArray:
    """A picture with its most likely classes, and beside it a map for each method (column) and head (row).

    With several refinements there are rows for the heads of the first, then for those of the second.

    Args:
        image: (H, W, 3) uint8 RGB. heading: the title line.
        classes: (name, probability in [0, 1]), most likely first.
        maps: variant → score map in [0, 1], of any size.
        heads: as requested; a method without channel weights shows its plain map there.
        degenerate: variants whose map is constant or not finite.
        refine: as requested.
        colormap: of the maps and the colour bar, of COLORMAPS.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    small = thumbnail(image)
    height, width = small.shape[:2]
    columns = _columns(maps, heads, refine)
    labels = [Variant.of("", head, refinement).head_label for refinement in refine for head in heads]
    bands = math.ceil(len(columns) / _MOST_COLUMNS)
    across = math.ceil(len(columns) / bands)
    cell_width, cell_height = max(width, 150), max(height, 130 if len(labels) > 1 else 1)
    label = 24 if len(labels) > 1 else 0
    panel = max(width, 270)
    band_height = 26 + len(labels) * (cell_height + _GAP) + _GAP
    top = 44
    left = panel + 3 * _GAP + label  # where the maps begin
    size = (
        left + across * (cell_width + _GAP),
        top + max(26 + height + 2 * _GAP + 26 * len(classes) + _GAP + _COLOUR_BAR, bands * band_height) + _GAP,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    write_line(draw, (_GAP, 10), heading, sheet.width - 2 * _GAP, 20, bold=True)
    sheet.paste(Image.fromarray(small), (_GAP, top + 26))
    _list_classes(draw, (_GAP, top + 26 + height + _GAP), panel, classes)
    _colour_bar(sheet, (_GAP, top + 26 + height + 2 * _GAP + 26 * len(classes)), panel, colormap)
    for number, (method, cells) in enumerate(columns.items()):
        band, column = divmod(number, across)
        x, y = left + column * (cell_width + _GAP), top + band * band_height
        write_line(draw, (x, y + 3), method, cell_width, 16, bold=True)
        for line, cell in enumerate(cells):
            place = (x, y + 26 + line * (cell_height + _GAP))
            if column == 0 and label:
                _write_upwards(sheet, (x - label, place[1]), labels[line], cell_height)
            if cell is None:
                write_line(draw, (place[0], place[1] + 3), "as above", cell_width, 14, colour=_FAINT)
            else:
                variant, words = cell
                sheet.paste(Image.fromarray(overlay(small, maps[variant], colormap)), place)
                remark(sheet, place, (width, height), "no map: constant" if variant in degenerate else words)
    return np.asarray(sheet)


def _columns(
    maps: Mapping[Variant, NDArray], heads: Sequence[str], refine: Sequence[str] = ("none",)
) -> dict[str, list[tuple[Variant, str] | None]]:
    """method → for each refinement and head the variant to show and a remark; None where it is already shown above."""
    columns: dict[str, list] = {}
    for method in dict.fromkeys(variant.method for variant in maps):
        shown, cells = set(), []
        for refinement, head in itertools.product(refine, heads):
            (variant,) = variants([method], [head], [refinement])
            words = "sees no head" if variant.head == NO_HEAD else "" if variant.head_option == head else "not clamped"
            cells.append(None if variant in shown else (variant, words))
            shown.add(variant)
        columns[method] = cells
    return columns


def thumbnail(image: NDArray) -> NDArray:
    """The image at a cell's area, its proportions kept, no side longer than a cell may be."""
    height, width = image.shape[:2]
    scale = min(math.sqrt(_CELL_AREA / (height * width)), _LONGEST_SIDE / max(height, width))
    return cv2.resize(
        image,
        (max(round(width * scale), 1), max(round(height * scale), 1)),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)


def write_line(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    width: int,
    size: int,
    *,
    bold: bool = False,
    colour: str = _INK,
) -> None:
    """One line of text; what does not fit into `width` pixels is replaced by an ellipsis."""
    font = _font(size, bold)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    fitting = text
    while fitting and draw.textlength(fitting + ("…" if fitting != text else ""), font) > width:
        fitting = fitting[:-1]
    draw.text(place, fitting + ("…" if fitting != text else ""), font=font, fill=colour)


def _write_upwards(sheet: Image.Image, place: tuple[int, int], text: str, length: int) -> None:
    """A row's label, written upwards beside a cell of this height."""
    strip = Image.new("RGB", (length, 20), "white")
    draw = ImageDraw.Draw(strip)
    start = max((length - draw.textlength(text, _font(14, False))) / 2, 0)
    write_line(draw, (round(start), 0), text, length, 14, colour=_FAINT)
    sheet.paste(strip.rotate(90, expand=True), place)


def _list_classes(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], width: int, classes: Sequence[tuple[str, float]]
) -> None:
    """Classes with their probabilities, each over a bar whose length is its probability."""
    x, y = place
    for name, probability in classes:
        draw.rectangle((x, y + 1, x + max(round(probability * width), 1), y + 22), fill=_BAR)
        draw.text((x + 62, y + 4), f"{100 * probability:.1f} %", font=_font(14, False), fill=_INK, anchor="ra")
        write_line(draw, (x + 72, y + 4), name, width - 77, 14)
        y += 26


def _colour_bar(sheet: Image.Image, place: tuple[int, int], width: int, colormap: str) -> None:
    """The colours of scores from 0 to 1, with these numbers below."""
    x, y = place
    sheet.paste(Image.fromarray(colour_scale(colormap, 14, width)), place)
    draw = ImageDraw.Draw(sheet)
    for share, text, anchor in ((0, "0", "la"), (0.5, "score", "ma"), (1, "1", "ra")):
        draw.text((x + share * width, y + 18), text, font=_font(13, False), fill=_FAINT, anchor=anchor)


def remark(sheet: Image.Image, place: tuple[int, int], size: tuple[int, int], text: str) -> None:
    """A few words at the bottom of a cell, on a dark strip."""
    if text:
        x, y = place[0], place[1] + size[1] - 20
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((x, y, x + size[0] - 1, y + 19), fill="#303030")
        write_line(draw, (x + 5, y + 3), text, size[0] - 10, 12, colour="white")
