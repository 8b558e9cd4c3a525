"""The figures of an evaluation: grids of maps over test images, and box accuracy over the threshold.

Whatever must be told apart differs in form, not only in colour: the ground truth is a solid line and a map's box a
dashed one, both in black and white, so that they stand out from any colour map, in grey print, too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib

matplotlib.use("Agg")  # files only: a GPU node has no screen
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import ArrayLike, NDArray

from wsol.cam import NO_HEAD, Variant
from wsol.datasets.images import load_image
from wsol.datasets.masks import load_mask
from wsol.evaluation.split import Evaluation
from wsol.files import write_file
from wsol.geometry import box_iou, resize_boxes
from wsol.metrics.boxes import box_at
from wsol.run.figure_options import DEFAULT_COLORMAP
from wsol.run.overlay import colour_scale, overlay

# Text stays text in a PDF (TrueType instead of Type 3, which journals refuse), and file names do not change with time.
_SAVING: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "wsol"}
_LINE, _CASING = 1.8, 3.6  # widths in points of a line and of the casing around it
_TRUTH: dict[str, Any] = {"color": "white", "linestyle": "-"}
_BOX: dict[str, Any] = {"color": "black", "linestyle": (0, (2.2, 1.4))}
_CASINGS = {"white": "black", "black": "white"}
# head → colour (Okabe and Ito's, which colour-blind readers tell apart) and dashes, which differ in grey print, too.
_HEAD_STYLES: dict[str, tuple[str, Any]] = {
    "softmax": ("#000000", "-"),
    "softmax_clamped": ("#0072b2", (0, (5, 1.5))),
    "sigmoid": ("#e69f00", (0, (1, 1))),
    "sigmoid_clamped": ("#d55e00", (0, (6, 1.5, 1, 1.5))),
    NO_HEAD: ("#000000", "-"),
}
CONFIDENCE_CURVES = {"insertion": "inserted (higher is better)", "deletion": "deleted (lower is better)"}
_REFINED_MARKER = "^"  # on the line of the same head
_CENTER_STYLE: dict[str, Any] = {"color": "#999999", "linestyle": "-", "linewidth": 2.5, "zorder": 0}


class BoxThreshold(NamedTuple):
    """The threshold at which a variant's boxes are drawn, and the metric that counts these boxes."""

    tau: float
    metric: str  # "GT-Loc@val" or "GT-Loc"; empty for a data set with masks alone, whose metric has no threshold


@dataclass
class Example:
    """An image for the grids.

    image: (H, W, 3) uint8 RGB. title: its class, and what is predicted. maps: variant → (224, 224) score map in [0, 1].
    boxes: (n, 4) ground truth in the image's pixels, or None. mask: (224, 224) of 0/1/255, or None. first_box: only the
    first box counts (`--gt_boxes first`).
    """

    image: NDArray[np.uint8]
    title: str
    maps: Mapping[Variant, NDArray[np.float32]]
    boxes: NDArray[np.int64] | None = None
    mask: NDArray[np.uint8] | None = None
    first_box: bool = False


class Curve(NamedTuple):
    """Box accuracy over the threshold: tau (T,), shares (T,) in per cent, and the threshold to mark, if any."""

    tau: NDArray[np.floating]
    shares: NDArray[np.floating]
    marked: float | None = None


def draw_results(
    folder: Path,
    evaluation: Evaluation,
    rows: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    loc_threshold: float,
    *,
    colormap: str = DEFAULT_COLORMAP,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """A grid of maps per method and, where there are boxes, the curves; returns the files.

    Args:
        folder: where the figures are written.
        evaluation: of the test split, with records; its `examples` are shown.
        rows: of results.json. Boxes are drawn at the threshold that was best on val, or at `loc_threshold`.
        colormap: of COLORMAPS.
        formats: of FIGURE_FORMATS; each figure is saved in each of them.
    """
    thresholds = {
        variant: BoxThreshold(row["tau"]["gt_loc_val"], "GT-Loc@val")
        if "gt_loc_val" in row
        else BoxThreshold(loc_threshold, "GT-Loc" if "gt_loc" in row else "")
        for variant, row in zip(evaluation.rows, rows, strict=True)
    }
    examples = _examples(evaluation, class_names)
    paths = []
    for method in dict.fromkeys(variant.method for variant in thresholds):
        of_method = {variant: threshold for variant, threshold in thresholds.items() if variant.method == method}
        figure = map_grid(method, examples, of_method, colormap)
        paths += _save(figure, folder / f"maps_{method}", formats)
    curves = {
        variant: _curve(localization.boxes, thresholds[variant].tau)
        for variant, localization in evaluation.rows.items()
        if localization.boxes is not None
    }
    if curves:
        center = None
        if evaluation.center is not None and evaluation.center.boxes is not None:
            center = _curve(evaluation.center.boxes)
        deltas = next(loc.boxes.iou_thresholds for loc in evaluation.rows.values() if loc.boxes is not None)
        metric = next(iter(thresholds.values())).metric
        figure = box_accuracy_curves(curves, center, deltas=deltas, marked=f"threshold of {metric}")
        paths += _save(figure, folder / "box_accuracy", formats)
    confidences = {
        Variant.from_record(row): {
            key: of_head[f"{key}_curve"] for key in CONFIDENCE_CURVES if f"{key}_curve" in of_head
        }
        for row in rows
        if (of_head := row.get("fidelity", {}).get("softmax", {}))
    }
    if any(confidences.values()):
        paths += _save(confidence_curves(confidences), folder / "confidence", formats)
    return paths


def _examples(evaluation: Evaluation, class_names: Sequence[str]) -> list[Example]:
    """The images whose maps the evaluation kept, with what the network says of them."""
    split = evaluation.metadata
    indices = np.concatenate(evaluation.images.get("indices", [np.empty(0, np.int64)])).tolist()
    predictions = np.concatenate(evaluation.images.get("predictions", [np.empty(0, np.int64)])).tolist()
    predicted = dict(zip(indices, predictions, strict=True))

    def title(index: int) -> str:
        label, prediction = split.labels[index], predicted.get(index, -1)
        said = class_names[prediction] if prediction >= 0 else "nothing, its logits are not finite"
        return f"{class_names[label]}\npredicted: {said}"

    return [
        Example(
            image=np.asarray(load_image(split.image_path(index))),
            title=title(index),
            maps=maps,
            boxes=None if split.boxes is None else split.boxes[index],
            mask=None if split.masks is None else load_mask(split.mask_root, split.masks[index]),
            first_box=any(localization.first_box is not None for localization in evaluation.rows.values()),
        )
        for index, maps in evaluation.examples.items()
    ]


# --------------------------------------------------------------------------- grids of maps


def map_grid(
    method: str,
    examples: Sequence[Example],
    thresholds: Mapping[Variant, BoxThreshold],
    colormap: str = DEFAULT_COLORMAP,
) -> Any:
    """One row per image: the image with its ground truth, then the method's map of each head with its box.

    Args:
        thresholds: variant → where its box (the largest contour's) is drawn.

    Returns:
        The figure.
    """
    columns = list(thresholds)
    side = 2.2  # inches, a panel's width
    heights = [side * min(example.image.shape[0] / example.image.shape[1], 1.3) for example in examples]
    captions = 0.3 * len(examples) + 1.5
    figure, axes = plt.subplots(
        len(examples),
        1 + len(columns),
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
        figsize=(side * (1 + len(columns)), sum(heights) + captions),
    )
    for line, example in zip(axes, examples, strict=True):
        _show(line[0], example.image, example.title)
        _draw_truth(line[0], example)
        for axis, variant in zip(line[1:], columns, strict=True):
            scoremap = example.maps[variant]
            box = box_at(scoremap, thresholds[variant].tau)
            _show(axis, overlay(example.image, scoremap, colormap), _iou_caption(box, example))
            _draw_truth(axis, example)
            _draw_box(axis, _to_pixels(box, scoremap.shape, example), **_BOX)
    for axis, variant in zip(axes[0, 1:], columns, strict=True):
        threshold = thresholds[variant]
        heading = f"{variant.head_label}\nbox at tau {threshold.tau:.3g}"
        axis.set_title("\n".join(filter(None, [heading, axis.get_title()])), fontsize=8)
    metric = next(iter(thresholds.values())).metric
    chosen = "the best on val" if metric == "GT-Loc@val" else "fixed"
    figure.suptitle(f"{method}\nboxes of {metric or 'each map'}: tau is {chosen}", fontsize=10)
    legend = [Line2D([], [], label="ground truth", **_cased(**_TRUTH))]
    legend.append(Line2D([], [], label="box of the map (largest contour)", **_cased(**_BOX)))
    figure.legend(handles=legend, loc="outside lower center", ncols=2, fontsize=8, frameon=False, handlelength=4)
    _add_colour_bar(figure, colormap)
    return figure


def _show(axis: Any, image: NDArray[np.uint8], title: str) -> None:
    axis.imshow(image)
    axis.set_axis_off()
    axis.set_title(title, fontsize=8, parse_math=False)  # a class may be called "a$b"


def _iou_caption(box: NDArray[np.int64], example: Example) -> str:
    """The IoU by which GT-Loc judges a box at the maps' scale; empty without ground-truth boxes."""
    if example.boxes is None or len(example.boxes) == 0:
        return ""
    height, width = example.image.shape[:2]
    boxes = resize_boxes(example.boxes[:1] if example.first_box else example.boxes, (width, height))
    return f"IoU {box_iou(box[None], boxes).max():.2f}"


def _to_pixels(box: ArrayLike, map_shape: tuple[int, ...], example: Example) -> NDArray[np.floating]:
    """A box at the maps' scale in the image's own pixels."""
    height, width = example.image.shape[:2]
    map_height, map_width = map_shape
    return np.asarray(box) * np.array([width / map_width, height / map_height] * 2)


def _draw_truth(axis: Any, example: Example) -> None:
    if example.boxes is not None:
        for box in example.boxes:
            _draw_box(axis, box, **_TRUTH)
    elif example.mask is not None:
        height, width = example.image.shape[:2]
        mask = cv2.resize((example.mask == 1).astype(np.float32), (width, height))
        style = _cased(**_TRUTH)
        lines = axis.contour(mask, [0.5], colors=style["color"], linewidths=style["linewidth"])
        lines.set_path_effects(style["path_effects"])


def _draw_box(axis: Any, box: NDArray[np.number], **style: Any) -> None:
    x0, y0, x1, y1 = box
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **_cased(**style)))


def _cased(color: str, linestyle: Any) -> dict[str, Any]:
    """The style of a line on a solid casing of the opposite lightness: one of the two stands out from any ground."""
    return {
        "color": color,
        "linestyle": linestyle,
        "linewidth": _LINE,
        "path_effects": [_SolidStroke(linewidth=_CASING, foreground=_CASINGS[color]), Normal()],
    }


class _SolidStroke(Stroke):
    """A stroke without dashes, whatever the line's own."""

    def draw_path(self, renderer: Any, gc: Any, *path: Any) -> None:
        solid = renderer.new_gc()
        solid.copy_properties(gc)
        solid.set_dashes(0, None)
        super().draw_path(renderer, solid, *path)


def _add_colour_bar(figure: Any, colormap: str) -> None:
    """A bar below all panels, in the colours that maps have over a grey image."""
    scale = colour_scale(colormap, 1, 256)[0] / 255
    mappable = plt.cm.ScalarMappable(cmap=matplotlib.colors.ListedColormap(scale))
    bar = figure.colorbar(mappable, ax=figure.axes, location="bottom", fraction=0.02, aspect=40, shrink=0.5, pad=0.01)
    bar.set_label("score (colours over a grey image)", fontsize=8)
    bar.ax.tick_params(labelsize=7)


# --------------------------------------------------------------------------- curves


def _curve(boxes: Any, marked: float | None = None) -> Curve:
    """The mean over the IoU thresholds of a BoxAccuracy."""
    curve = boxes.curve()
    return Curve(curve["tau"], np.mean(list(curve["maxboxacc"].values()), axis=0), marked)


def box_accuracy_curves(
    curves: Mapping[Variant, Curve], center: Curve | None, *, deltas: Sequence[float], marked: str
) -> Any:
    """Box accuracy (mean over its IoU thresholds, multi-contour) over the score map threshold.

    One panel per method, one line per head.

    Args:
        curves: of each variant.
        center: of the centre baseline, drawn in each panel.
        deltas: the IoU thresholds in per cent.
        marked: what the marked thresholds are, for the legend.

    Returns:
        The figure.
    """
    methods = list(dict.fromkeys(variant.method for variant in curves))
    columns = 2 if len(methods) == 4 else min(len(methods), 3)
    rows = -(-len(methods) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
        figsize=(max(3.4 * columns, 4.5), 2.6 * rows + 1.2),
    )
    for number, axis in enumerate(axes.flat):
        if number >= len(methods):
            axis.set_visible(False)
        elif number + columns >= len(methods):
            axis.tick_params(labelbottom=True)  # no panel below it
    legend: dict[str, Any] = {}  # label → one of its lines
    for axis, method in zip(axes.flat, methods, strict=False):
        if center is not None:
            (legend["centre Gaussian"],) = axis.plot(center.tau, center.shares, **_CENTER_STYLE)
        for variant, curve in curves.items():
            if variant.method == method:
                (legend[variant.head_label],) = _plot(axis, variant, curve)
        axis.set_title(method, fontsize=10)
        axis.grid(alpha=0.3)
    if any(curve.marked is not None for curve in curves.values()):
        legend[marked] = Line2D([], [], color="white", marker="o", markeredgecolor="black", linestyle="")
    figure.legend(
        legend.values(), legend.keys(), loc="outside upper center", ncols=3, fontsize=8, frameon=False, handlelength=4
    )
    figure.supxlabel("score map threshold", fontsize=9)
    figure.supylabel(f"% of images with a right box\n(mean over IoU ≥ {', '.join(map(str, deltas))} %)", fontsize=9)
    return figure


def confidence_curves(curves: Mapping[Variant, Mapping[str, Sequence[float]]]) -> Any:
    """Mean confidence of the softmax head over the share of pixels inserted or deleted, most relevant first.

    One row of panels per method, one column per measure, one line per head.

    Args:
        curves: variant → "insertion" or "deletion" → confidences at equally spaced shares.

    Returns:
        The figure.
    """
    methods = list(dict.fromkeys(variant.method for variant in curves))
    shown = [name for name in CONFIDENCE_CURVES if any(name in of_variant for of_variant in curves.values())]
    figure, axes = plt.subplots(
        len(methods),
        len(shown),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
        figsize=(3.6 * len(shown) + 0.6, 2.3 * len(methods) + 1.0),
    )
    legend: dict[str, Any] = {}  # label → one of its lines
    for line, method in enumerate(methods):
        for axis, name in zip(axes[line], shown, strict=True):
            for variant, of_variant in curves.items():
                if variant.method == method and name in of_variant:
                    confidences = np.asarray(of_variant[name])
                    curve = Curve(np.linspace(0, 100, len(confidences)), confidences)
                    (legend[variant.head_label],) = _plot(axis, variant, curve)
            axis.set_title(f"{method}: {CONFIDENCE_CURVES[name]}", fontsize=10)
            axis.grid(alpha=0.3)
    figure.legend(
        legend.values(), legend.keys(), loc="outside upper center", ncols=3, fontsize=8, frameon=False, handlelength=4
    )
    figure.supxlabel("% of the pixels, most relevant first", fontsize=9)
    figure.supylabel("mean confidence of the softmax head", fontsize=9)
    return figure


def _plot(axis: Any, variant: Variant, curve: Curve) -> list[Any]:
    colour, dashes = _HEAD_STYLES[variant.head_option]
    if curve.marked is not None:
        share = np.interp(curve.marked, curve.tau, curve.shares)
        axis.plot(curve.marked, share, "o", color="white", markeredgecolor=colour, markersize=6, zorder=3)
    return axis.plot(
        curve.tau,
        curve.shares,
        color=colour,
        linestyle=dashes,
        linewidth=1.4,
        marker=_REFINED_MARKER if variant.refined else None,
        markevery=0.12,
        markersize=4.5,
    )


def _save(figure: Any, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure as `stem` with the ending of each format, and close it."""
    paths = []
    for kind in formats:
        content = io.BytesIO()
        no_date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same figure gives the same file
        with matplotlib.rc_context(_SAVING):
            figure.savefig(content, format=kind, dpi=150, metadata=no_date.get(kind))
        paths.append(write_file(stem.with_name(f"{stem.name}.{kind}"), content.getvalue()))
    plt.close(figure)
    return paths
