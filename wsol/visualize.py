"""Pictures: overlays, grids of maps, curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")       # files only: a GPU node has no screen
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from wsol.cam.base import NO_HEAD, Row  # noqa: E402
from wsol.metrics.boxes import box_at  # noqa: E402

TRUTH, FOUND = "#39ff6a", "#ff3860"
_STYLES = {"softmax": ("#444444", "-"), "softmax_clamped": ("#1f77b4", "--"),
           "sigmoid": ("#ff9f1c", "-."), "sigmoid_clamped": ("#d62728", "-"), NO_HEAD: ("#444444", "-")}


@dataclass
class Example:
    """An image for the grids.

    image: PIL or (H, W, 3) uint8 RGB. title: its class. maps: row → (224, 224) score map
    in [0, 1]. boxes: (n, 4) ground truth in the image's pixels, or None. mask:
    (224, 224) of 0/1/255, or None.
    """
    image: np.ndarray
    title: str
    maps: dict[Row, np.ndarray]
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
    colours = plt.get_cmap("turbo")(scaled[..., 0])[..., :3] * 255
    strength = 0.3 + 0.35 * scaled
    return (strength * colours + (1 - strength) * image).astype(np.uint8)


def map_grid(path: Path, method: str, examples: Sequence[Example], taus: dict[Row, float]) -> Path:
    """One line an image: the image with its ground truth, then the method's map of each head with its box.

    Args:
        taus: row → score map threshold at which its box is drawn (largest contour).
    """
    rows = list(taus)
    figure, axes = plt.subplots(len(examples), 1 + len(rows), squeeze=False, layout="constrained",
                                figsize=(2.5 * (1 + len(rows)), 2.3 * len(examples)))
    for line, example in zip(axes, examples, strict=True):
        _show(line[0], example.image, example.title)
        _draw_truth(line[0], example)
        for axis, row in zip(line[1:], rows, strict=True):
            _show(axis, overlay(example.image, example.maps[row]))
            _draw_truth(axis, example)
            _draw_box(axis, _to_pixels(box_at(example.maps[row], taus[row]), example), FOUND)
    for axis, row in zip(axes[0, 1:], rows, strict=True):
        axis.set_title(f"{row.label}\nbox at {taus[row]:.2f}", fontsize=9)
    figure.suptitle(f"{method}: ground truth green, box of the map red", fontsize=10)
    return _save(figure, path)


def _show(axis, image: np.ndarray, title: str | None = None) -> None:
    axis.imshow(image)
    axis.set_axis_off()
    if title is not None:
        axis.set_title(title, fontsize=9, parse_math=False)     # a class may be called "a$b"


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


def box_accuracy_curves(path: Path, curves: dict[Row, dict]) -> Path:
    """Box accuracy (mean over its IoU thresholds, multi-contour) over the score map threshold.

    A panel a method, a line a head. curves: row → what BoxAccuracy.curve() gives.
    """
    methods = list(dict.fromkeys(row.method for row in curves))
    columns = min(len(methods), 3)
    lines = -(-len(methods) // columns)
    figure, axes = plt.subplots(lines, columns, squeeze=False, sharex=True, sharey=True, layout="constrained",
                                figsize=(3.6 * columns, 2.8 * lines))
    for number, axis in enumerate(axes.flat):
        if number >= len(methods):
            axis.set_visible(False)
        elif number + columns >= len(methods):
            axis.tick_params(labelbottom=True)      # nothing is shown below it
    for axis, method in zip(axes.flat, methods, strict=False):
        for row, curve in curves.items():
            if row.method == method:
                colour, style = _STYLES[row.head]
                axis.plot(curve["tau"], np.mean(list(curve["maxboxacc"].values()), axis=0), style, color=colour,
                          linewidth=1.4, label=row.label)
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
