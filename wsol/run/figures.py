"""Pictures: overlays, grids of maps, contact sheets, curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")  # files only: a GPU node has no screen
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from wsol.cam import NO_HEAD, Variant, variants  # noqa: E402
from wsol.metrics.boxes import box_at  # noqa: E402

TRUTH, FOUND = "#39ff6a", "#ff3860"
_TURBO = (plt.get_cmap("turbo")(np.arange(256))[:, :3] * 255).astype(np.float32)
_STYLES = {
    "softmax": ("#444444", "-"),
    "softmax_clamped": ("#1f77b4", "--"),
    "sigmoid": ("#ff9f1c", "-."),
    "sigmoid_clamped": ("#d62728", "-"),
    NO_HEAD: ("#444444", "-"),
}


@dataclass
class Example:
    """An image for the grids.

    image: PIL or (H, W, 3) uint8 RGB. title: its class. maps: row → (224, 224) score map
    in [0, 1]. boxes: (n, 4) ground truth in the image's pixels, or None. mask:
    (224, 224) of 0/1/255, or None.
    """

    image: np.ndarray
    title: str
    maps: dict[Variant, np.ndarray]
    boxes: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __post_init__(self):
        self.image = np.asarray(self.image)


def overlay(image: np.ndarray, scoremap: np.ndarray) -> np.ndarray:
    """A score map in [0, 1] laid over an RGB image (H, W, 3) uint8, from blue (0) to red (1).

    The higher the score the stronger the colour, so that the image shows where the map is silent.
    """
    height, width = image.shape[:2]
    scaled = cv2.resize(scoremap, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)[..., None]
    colours = _TURBO[np.minimum(scaled[..., 0] * 256, 255).astype(np.uint8)]
    strength = 0.3 + 0.35 * scaled
    return (strength * colours + (1 - strength) * image).astype(np.uint8)


def map_grid(path: Path, method: str, examples: Sequence[Example], taus: dict[Variant, float]) -> Path:
    """One line an image: the image with its ground truth, then the method's map of each head with its box.

    Args:
        taus: row → score map threshold at which its box is drawn (largest contour).
    """
    rows = list(taus)
    figure, axes = plt.subplots(
        len(examples),
        1 + len(rows),
        squeeze=False,
        layout="constrained",
        figsize=(2.5 * (1 + len(rows)), 2.3 * len(examples)),
    )
    for line, example in zip(axes, examples, strict=True):
        _show(line[0], example.image, example.title)
        _draw_truth(line[0], example)
        for axis, row in zip(line[1:], rows, strict=True):
            _show(axis, overlay(example.image, example.maps[row]))
            _draw_truth(axis, example)
            _draw_box(axis, _to_pixels(box_at(example.maps[row], taus[row]), example), FOUND)
    for axis, row in zip(axes[0, 1:], rows, strict=True):
        axis.set_title(f"{row.head_label}\nbox at {taus[row]:.2f}", fontsize=9)
    figure.suptitle(f"{method}: ground truth green, box of the map red", fontsize=10)
    return _save(figure, path)


def _show(axis, image: np.ndarray, title: str | None = None) -> None:
    axis.imshow(image)
    axis.set_axis_off()
    if title is not None:
        axis.set_title(title, fontsize=9, parse_math=False)  # a class may be called "a$b"


def _to_pixels(box: Sequence[float], example: Example) -> np.ndarray:
    """A box at the maps' scale in the image's own pixels."""
    height, width = example.image.shape[:2]
    map_height, map_width = next(iter(example.maps.values())).shape
    return np.asarray(box) * np.array([width / map_width, height / map_height] * 2)


def _draw_truth(axis, example: Example) -> None:
    if example.boxes is not None:
        for box in example.boxes:
            _draw_box(axis, box, TRUTH)
    elif example.mask is not None:
        height, width = example.image.shape[:2]
        mask = cv2.resize((example.mask == 1).astype(np.float32), (width, height))
        axis.contour(mask, [0.5], colors=TRUTH, linewidths=1.5)


def _draw_box(axis, box: Sequence[float], colour: str) -> None:
    x0, y0, x1, y1 = box
    axis.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.8))


# --------------------------------------------------------------------------- the contact sheet of one picture

_CELL_AREA, _LONGEST_SIDE = 230 * 230, 460  # pixels of a thumbnail
_GAP, _MOST_COLUMNS = 8, 4  # few enough for a page's width
_INK, _FAINT, _BAR = "#1a1a1a", "#777777", "#cfe3fa"


def contact_sheet(
    image: np.ndarray,
    heading: str,
    classes: Sequence[tuple[str, float]],
    maps: Mapping[Variant, np.ndarray],
    heads: Sequence[str],
    silent: Sequence[Variant] = (),
) -> np.ndarray:
    """A picture with its likeliest classes, and beside it a map for each method (columns) and head (lines).

    Drawn with PIL: a folder of pictures needs thousands of these, and matplotlib takes a second for each.

    Args:
        image: (H, W, 3) uint8 RGB. heading: the line above all.
        classes: (name, probability in [0, 1]), likeliest first.
        maps: row → score map in [0, 1], of any size.
        heads: the lines, as they were asked for; a method without channel weights shows its plain map there.
        silent: rows whose map tells nothing (constant or not finite).

    Returns:
        (H', W', 3) uint8 RGB.
    """
    thumbnail = _thumbnail(image)
    height, width = thumbnail.shape[:2]
    columns = _columns(maps, heads)
    bands = math.ceil(len(columns) / _MOST_COLUMNS)
    across = math.ceil(len(columns) / bands)
    cell_width, cell_height = max(width, 150), max(height, 130 if len(heads) > 1 else 1)
    label = 24 if len(heads) > 1 else 0
    panel = max(width, 270)
    band_height = 26 + len(heads) * (cell_height + _GAP) + _GAP
    top = 44
    left = panel + 3 * _GAP + label  # where the maps begin
    size = (
        left + across * (cell_width + _GAP),
        top + max(26 + height + 2 * _GAP + 26 * len(classes), bands * band_height) + _GAP,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP, 10), heading, sheet.width - 2 * _GAP, 20, bold=True)
    sheet.paste(Image.fromarray(thumbnail), (_GAP, top + 26))
    _list_classes(draw, (_GAP, top + 26 + height + _GAP), panel, classes)
    for number, (method, cells) in enumerate(columns.items()):
        band, column = divmod(number, across)
        x, y = left + column * (cell_width + _GAP), top + band * band_height
        _write(draw, (x, y + 3), method, cell_width, 16, bold=True)
        for line, cell in enumerate(cells):
            place = (x, y + 26 + line * (cell_height + _GAP))
            if column == 0 and label:
                _write_upwards(sheet, (x - label, place[1]), heads[line].replace("_", ", "), cell_height)
            if cell is None:
                _write(draw, (place[0], place[1] + 3), "as above", cell_width, 14, colour=_FAINT)
            else:
                row, remark = cell
                sheet.paste(Image.fromarray(overlay(thumbnail, maps[row])), place)
                _remark(sheet, place, (width, height), "no map: constant" if row in silent else remark)
    return np.asarray(sheet)


def _columns(maps: Mapping[Variant, np.ndarray], heads: Sequence[str]) -> dict[str, list[tuple[Variant, str] | None]]:
    """method → for each head the row to show and a remark; None where it would be one that is shown above."""
    columns: dict[str, list] = {}
    for method in dict.fromkeys(row.method for row in maps):
        shown, cells = set(), []
        for head in heads:
            row = variants([method], [head])[0]
            remark = "sees no head" if row.head == NO_HEAD else "not clamped" if row.head_option != head else ""
            cells.append(None if row in shown else (row, remark))
            shown.add(row)
        columns[method] = cells
    return columns


def _thumbnail(image: np.ndarray) -> np.ndarray:
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


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    width: int,
    size: int,
    *,
    bold: bool = False,
    colour: str = _INK,
) -> None:
    """One line of text; what does not fit into `width` pixels is cut off behind an ellipsis."""
    font = _font(size, bold)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    fitting = text
    while fitting and draw.textlength(fitting + ("…" if fitting != text else ""), font) > width:
        fitting = fitting[:-1]
    draw.text(place, fitting + ("…" if fitting != text else ""), font=font, fill=colour)


def _write_upwards(sheet: Image.Image, place: tuple[int, int], text: str, length: int) -> None:
    """A line's label, read from below, beside a cell of this height."""
    strip = Image.new("RGB", (length, 20), "white")
    draw = ImageDraw.Draw(strip)
    start = max((length - draw.textlength(text, _font(14, False))) / 2, 0)
    _write(draw, (round(start), 0), text, length, 14, colour=_FAINT)
    sheet.paste(strip.rotate(90, expand=True), place)


def _list_classes(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], width: int, classes: Sequence[tuple[str, float]]
) -> None:
    """Classes with their probabilities, each over a bar of that share of the width."""
    x, y = place
    for name, probability in classes:
        draw.rectangle((x, y + 1, x + max(round(probability * width), 1), y + 22), fill=_BAR)
        draw.text((x + 62, y + 4), f"{100 * probability:.1f} %", font=_font(14, False), fill=_INK, anchor="ra")
        _write(draw, (x + 72, y + 4), name, width - 77, 14)
        y += 26


def _remark(sheet: Image.Image, place: tuple[int, int], size: tuple[int, int], text: str) -> None:
    """A few words at the bottom of a cell, on a dark strip."""
    if text:
        x, y = place[0], place[1] + size[1] - 20
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((x, y, x + size[0] - 1, y + 19), fill="#303030")
        _write(draw, (x + 5, y + 3), text, size[0] - 10, 12, colour="white")


# --------------------------------------------------------------------------- curves


def box_accuracy_curves(path: Path, curves: dict[Variant, dict]) -> Path:
    """Box accuracy (mean over its IoU thresholds, multi-contour) over the score map threshold.

    A panel a method, a line a head. curves: row → what BoxAccuracy.curve() gives.
    """
    methods = list(dict.fromkeys(row.method for row in curves))
    columns = min(len(methods), 3)
    lines = -(-len(methods) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
        figsize=(3.6 * columns, 2.8 * lines),
    )
    for number, axis in enumerate(axes.flat):
        if number >= len(methods):
            axis.set_visible(False)
        elif number + columns >= len(methods):
            axis.tick_params(labelbottom=True)  # nothing is shown below it
    for axis, method in zip(axes.flat, methods, strict=False):
        for row, curve in curves.items():
            if row.method == method:
                colour, style = _STYLES[row.head_option]
                axis.plot(
                    curve["tau"],
                    np.mean(list(curve["maxboxacc"].values()), axis=0),
                    style,
                    color=colour,
                    linewidth=1.4,
                    label=row.head_label,
                )
        axis.set_title(method, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    figure.supxlabel("score map threshold", fontsize=9)
    deltas = ", ".join(str(delta) for delta in next(iter(curves.values()))["maxboxacc"])
    figure.supylabel(f"% of images with a right box\n(mean over IoU ≥ {deltas} %)", fontsize=9)
    return _save(figure, path)


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
