"""The figures of an evaluation: grids of maps over test images, and box accuracy over the threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib

matplotlib.use("Agg")  # files only: a GPU node has no screen
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from wsol.cam import NO_HEAD, Variant
from wsol.datasets.images import load_image
from wsol.datasets.masks import load_mask
from wsol.evaluation.split import Evaluation
from wsol.metrics.boxes import box_at
from wsol.run.overlay import overlay

_TRUTH_COLOUR, _BOX_COLOUR = "#39ff6a", "#ff3860"
_REFINED_STYLE = ":"  # in the head's colour
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

    image: (H, W, 3) uint8 RGB. title: its class. maps: variant → (224, 224) score map in [0, 1]. boxes: (n, 4) ground
    truth in the image's pixels, or None. mask: (224, 224) of 0/1/255, or None.
    """

    image: NDArray[np.uint8]
    title: str
    maps: Mapping[Variant, NDArray[np.float32]]
    boxes: NDArray[np.int64] | None = None
    mask: NDArray[np.uint8] | None = None


def draw_results(
    folder: Path,
    evaluation: Evaluation,
    rows: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    loc_threshold: float,
) -> list[Path]:
    """A grid of maps per method and, where there are boxes, the curves; returns the files.

    Args:
        folder: where the figures are written.
        evaluation: of the test split; its `examples` are shown.
        rows: of results.json. Boxes are drawn at the threshold that was best on val, or at `loc_threshold`.
    """
    split = evaluation.metadata
    examples = [
        Example(
            image=np.asarray(load_image(split.image_path(index))),
            title=class_names[split.labels[index]],
            maps=maps,
            boxes=None if split.boxes is None else split.boxes[index],
            mask=None if split.masks is None else load_mask(split.mask_root, split.masks[index]),
        )
        for index, maps in evaluation.examples.items()
    ]
    taus = {
        variant: row.get("tau", {}).get("gt_loc_val", loc_threshold)
        for variant, row in zip(evaluation.rows, rows, strict=True)
    }
    paths = []
    for method in dict.fromkeys(variant.method for variant in taus):
        of_method = {variant: tau for variant, tau in taus.items() if variant.method == method}
        paths.append(map_grid(folder / f"maps_{method}.png", method, examples, of_method))
    curves = {
        variant: localization.boxes.curve()
        for variant, localization in evaluation.rows.items()
        if localization.boxes is not None
    }
    if curves:
        paths.append(box_accuracy_curves(folder / "box_accuracy.png", curves))
    return paths


# --------------------------------------------------------------------------- grids of maps


def map_grid(path: Path, method: str, examples: Sequence[Example], taus: Mapping[Variant, float]) -> Path:
    """One row per image: the image with its ground truth, then the method's map of each head with its box.

    Args:
        taus: variant → score map threshold at which its box is drawn (largest contour).
    """
    columns = list(taus)
    figure, axes = plt.subplots(
        len(examples),
        1 + len(columns),
        squeeze=False,
        layout="constrained",
        figsize=(2.5 * (1 + len(columns)), 2.3 * len(examples)),
    )
    for line, example in zip(axes, examples, strict=True):
        _show(line[0], example.image, example.title)
        _draw_truth(line[0], example)
        for axis, variant in zip(line[1:], columns, strict=True):
            _show(axis, overlay(example.image, example.maps[variant]))
            _draw_truth(axis, example)
            _draw_box(axis, _to_pixels(box_at(example.maps[variant], taus[variant]), example), _BOX_COLOUR)
    for axis, variant in zip(axes[0, 1:], columns, strict=True):
        axis.set_title(f"{variant.head_label}\nbox at {taus[variant]:.2f}", fontsize=9)
    figure.suptitle(f"{method}: ground truth green, box of the map red", fontsize=10)
    return _save(figure, path)


def _show(axis: Any, image: NDArray[np.uint8], title: str | None = None) -> None:
    axis.imshow(image)
    axis.set_axis_off()
    if title is not None:
        axis.set_title(title, fontsize=9, parse_math=False)  # a class may be called "a$b"


def _to_pixels(box: ArrayLike, example: Example) -> NDArray[np.floating]:
    """A box at the maps' scale in the image's own pixels."""
    height, width = example.image.shape[:2]
    map_height, map_width = next(iter(example.maps.values())).shape
    return np.asarray(box) * np.array([width / map_width, height / map_height] * 2)


def _draw_truth(axis: Any, example: Example) -> None:
    if example.boxes is not None:
        for box in example.boxes:
            _draw_box(axis, box, _TRUTH_COLOUR)
    elif example.mask is not None:
        height, width = example.image.shape[:2]
        mask = cv2.resize((example.mask == 1).astype(np.float32), (width, height))
        axis.contour(mask, [0.5], colors=_TRUTH_COLOUR, linewidths=1.5)


def _draw_box(axis: Any, box: NDArray[np.number], colour: str) -> None:
    x0, y0, x1, y1 = box
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.8))


# --------------------------------------------------------------------------- curves


def box_accuracy_curves(path: Path, curves: Mapping[Variant, Mapping[str, Any]]) -> Path:
    """Box accuracy (mean over its IoU thresholds, multi-contour) over the score map threshold.

    One panel per method, one line per head. curves: variant → what BoxAccuracy.curve() returns.
    """
    methods = list(dict.fromkeys(variant.method for variant in curves))
    columns = min(len(methods), 3)
    rows = -(-len(methods) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
        figsize=(3.6 * columns, 2.8 * rows),
    )
    for number, axis in enumerate(axes.flat):
        if number >= len(methods):
            axis.set_visible(False)
        elif number + columns >= len(methods):
            axis.tick_params(labelbottom=True)  # no panel below it
    for axis, method in zip(axes.flat, methods, strict=False):
        for variant, curve in curves.items():
            if variant.method == method:
                colour, style = _STYLES[variant.head_option]
                if variant.refined:
                    style = _REFINED_STYLE
                axis.plot(
                    curve["tau"],
                    np.mean(list(curve["maxboxacc"].values()), axis=0),
                    style,
                    color=colour,
                    linewidth=1.4,
                    label=variant.head_label,
                )
        axis.set_title(method, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    figure.supxlabel("score map threshold", fontsize=9)
    deltas = ", ".join(str(delta) for delta in next(iter(curves.values()))["maxboxacc"])
    figure.supylabel(f"% of images with a right box\n(mean over IoU ≥ {deltas} %)", fontsize=9)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
