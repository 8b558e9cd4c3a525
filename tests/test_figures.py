"""The figures: lines that stand out from every colour map for everybody, captions that say what the table says."""

import numpy as np
import pytest
import torch
from conftest import TinyNet, arguments, write_dataset
from matplotlib import colors
from PIL import Image

import main as program
from config import DEFAULT_METHODS, parse_args
from wsol import CamExtractor, dualize, to_scoremaps
from wsol.cam import Variant
from wsol.classifier import Classifier
from wsol.errors import InputError
from wsol.evaluation.split import Evaluation
from wsol.run import figures
from wsol.run.contact_sheet import contact_sheet
from wsol.run.figure_options import COLORMAPS
from wsol.run.figures import BoxThreshold, Curve, Example
from wsol.run.overlay import colour_scale, overlay

ROWS = [Variant("cam", "softmax"), Variant("cam", "sigmoid", clamped=True)]
# How a reader without green cones sees linear RGB (Machado et al., IEEE TVCG 2009, deuteranomaly of severity 1).
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
GREY = np.array([[0.2126, 0.7152, 0.0722]] * 3)
SIGHT = {"normal": np.eye(3), "deuteranopia": DEUTERANOPIA, "grey print": GREY}


def linear(rgb) -> np.ndarray:
    """sRGB (..., 3) in 0..1 → linear RGB."""
    rgb = np.asarray(rgb, dtype=np.float64)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a, b, sight: np.ndarray) -> np.ndarray:
    """WCAG's contrast ratio, 1 to 21, of sRGB colours as somebody sees them."""
    light, dark = ((linear(colour) @ sight.T).clip(0, 1) @ GREY[0] + 0.05 for colour in (a, b))
    return np.maximum(light, dark) / np.minimum(light, dark)


def example(truth: str = "boxes", **more) -> Example:
    """A grey image whose map has the box (60, 50)..(120, 150), half of the ground truth's."""
    scoremap = np.zeros((224, 224), np.float32)
    scoremap[50:150, 60:120] = 1
    mask = np.zeros((224, 224), np.uint8)
    mask[50:150, 60:180] = 1
    return Example(
        np.full((224, 224, 3), 90, np.uint8),
        "a$b\npredicted: c$d",
        dict.fromkeys(ROWS, scoremap),
        np.array([[60, 50, 120, 250], [0, 0, 9, 9]]) if truth == "boxes" else None,
        mask if truth == "mask" else None,
        **more,
    )


def texts(figure) -> str:
    """All titles of a figure."""
    return "\n".join([figure.get_suptitle(), *(axis.get_title() for axis in figure.axes)])


def grid(*examples: Example, metric: str = "GT-Loc@val"):
    return figures.map_grid("cam", examples, {row: BoxThreshold(0.125, metric) for row in ROWS})


# ------------------------------------------------------------------- lines and colours


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("colormap", COLORMAPS)
def test_both_lines_stand_out_from_every_map_and_from_each_other(colormap, sight):
    """Line or casing has the contrast that WCAG 2.1 asks of graphics, 3, over maps on black, grey and white images."""
    for ground in (0, 128, 255):
        image = np.full((1, 256, 3), ground, np.uint8)
        painted = overlay(image, np.linspace(0, 1, 256, dtype=np.float32)[None], colormap)[0] / 255
        for style in (figures._TRUTH, figures._BOX):
            line, casing = (colors.to_rgb(colour) for colour in (style["color"], figures._CASINGS[style["color"]]))
            seen = [contrast(painted, colour, SIGHT[sight]) for colour in (line, casing)]
            assert np.maximum(*seen).min() > 3
    truth, box = (colors.to_rgb(style["color"]) for style in (figures._TRUTH, figures._BOX))
    assert contrast(truth, box, SIGHT[sight]) > 3 and figures._TRUTH["linestyle"] != figures._BOX["linestyle"]


def test_lines_of_curves_differ_in_grey_print():
    """Heads differ in their dashes, refined maps have a marker, the centre baseline is a broad line."""
    dashes = [str(dash) for head, (_, dash) in figures._HEAD_STYLES.items() if head != "none"]
    assert len(set(dashes)) == len(dashes) == 4
    assert figures._CENTER_STYLE["linewidth"] > 2


@pytest.mark.parametrize("colormap", sorted(set(COLORMAPS) - {"turbo"}))
def test_uniform_maps_keep_their_order_in_grey_print(colormap):
    grey = linear(colour_scale(colormap, 1, 256)[0] / 255) @ GREY[0]
    assert (np.diff(grey[::8]) > 0).all()


def test_the_overlay_takes_its_colours_from_the_map():
    image, scoremap = np.full((8, 8, 3), 128, np.uint8), np.ones((8, 8), np.float32)
    assert (overlay(image, scoremap, "viridis") != overlay(image, scoremap)).any()


# ------------------------------------------------------------------- grids of maps


@pytest.mark.parametrize("truth", ["boxes", "mask", "none"])
def test_a_grid_has_one_legend_and_a_colour_bar(tmp_path, truth):
    figure = grid(example(truth), example(truth))
    assert len(figure.legends) == 1 and not any(axis.get_legend() for axis in figure.axes)
    assert figure.legends[0].get_texts()[0].get_text() == "ground truth"
    assert "score" in figure.axes[-1].get_xlabel()
    (path,) = figures._save(figure, tmp_path / "new" / "maps", ["png"])
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert path.name == "maps.png" and (pixels == 0).all(axis=-1).sum() > 1000  # black dashes and casings


def test_captions_say_threshold_prediction_and_iou():
    """The IoU is GT-Loc's, at the resolution of the maps; with --gt_boxes first that of the first box."""
    text = texts(grid(example()))
    assert text.startswith("cam\nboxes of GT-Loc@val: tau is the best on val\n")
    assert "box at tau 0.125" in text and "a$b\npredicted: c$d" in text
    # Ground truth 61 x 201 pixels, box 61 x 101 (its upper bounds belong to it), inside.
    assert "IoU 0.50" in text
    assert "boxes of GT-Loc: tau is fixed\n" in texts(grid(example(), metric="GT-Loc"))
    moved = example(first_box=True)
    moved.boxes = moved.boxes[::-1]
    assert "IoU 0.00" in texts(grid(moved))
    masked = texts(grid(example("mask"), metric=""))  # masks alone: no metric of the table counts boxes
    assert "IoU" not in masked and "boxes of each map: tau is fixed\n" in masked


def test_titles_and_legends_fit_into_a_narrow_figure():
    """A single map beside its image, as of a network with one head."""
    figure = figures.map_grid("gradcamelementwise", [example()], {ROWS[0]: BoxThreshold(0.125, "GT-Loc@val")})
    figure.draw_without_rendering()
    for part in (figure._suptitle, figure.legends[0]):
        extent = part.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1


# ------------------------------------------------------------------- curves


def test_curves_mark_the_chosen_threshold_and_the_centre_baseline():
    """One legend for all panels; the mark lies on its curve."""
    tau = np.linspace(0, 1, 11)
    curves = {
        row._replace(method=method): Curve(tau, 100 - 50 * tau, 0.2 + 0.1 * k)
        for k, row in enumerate(ROWS)
        for method in ("cam", "gradcam")
    }
    center = Curve(tau, 30 * tau)
    figure = figures.box_accuracy_curves(curves, center, deltas=(30, 50), marked="threshold of GT-Loc@val")
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["centre Gaussian", "softmax", "sigmoid, clamped", "threshold of GT-Loc@val"]
    for axis in figure.axes:
        lines = [np.transpose(line.get_data()).tolist() for line in axis.get_lines()]
        assert [[0.2, 90.0]] in lines and [[pytest.approx(0.3), pytest.approx(85.0)]] in lines
        assert any(np.allclose(line, np.stack([tau, 30 * tau], axis=1)) for line in lines if len(line) == 11)
    bare = figures.box_accuracy_curves({ROWS[0]: Curve(tau, tau)}, None, deltas=(50,), marked="x")
    assert [text.get_text() for text in bare.legends[0].get_texts()] == ["softmax"]


# ------------------------------------------------------------------- the command


def test_the_command_draws_in_the_formats_and_at_the_threshold_of_the_table(shapes, monkeypatch):
    """--figure_format and --colormap; boxes are those of GT-Loc@val, whose thresholds results.json names."""
    drawn = {}
    real = figures.map_grid

    def note(method, examples, thresholds, colormap):
        drawn[method] = examples, thresholds, colormap
        return real(method, examples, thresholds, colormap)

    monkeypatch.setattr(figures, "map_grid", note)
    flags = ["--methods", "cam", "--epochs", "1", "--figure_format", "png,pdf,svg", "--colormap", "viridis"]
    results = program.main(arguments(shapes, *flags))
    folder = shapes / "runs/run/figures"
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in ("maps_cam", "box_accuracy") for kind in ("png", "pdf", "svg")
    }
    assert (folder / "maps_cam.pdf").read_bytes().startswith(b"%PDF")
    examples, thresholds, colormap = drawn["cam"]
    assert colormap == "viridis"
    assert [threshold.tau for threshold in thresholds.values()] == [row["tau"]["gt_loc_val"] for row in results["rows"]]
    assert {threshold.metric for threshold in thresholds.values()} == {"GT-Loc@val"}
    assert all("\npredicted: " in shown.title for shown in examples)


def test_unknown_formats_and_colours_are_refused_before_any_work(capsys):
    with pytest.raises(InputError, match=r"--figure_format: unknown name 'bmp' \(known: png, pdf, svg\)"):
        parse_args(["--figure_format", "png,bmp"])
    with pytest.raises(SystemExit) as ended:
        parse_args(["--colormap", "jet"])
    assert ended.value.code == 2 and "viridis" in capsys.readouterr().err


def test_without_a_val_split_boxes_are_those_of_the_fixed_threshold(tmp_path, monkeypatch):
    write_dataset(tmp_path, "Shapes", splits=("train", "test"))
    thresholds = []
    real = figures.map_grid
    monkeypatch.setattr(figures, "map_grid", lambda *args: (thresholds.extend(args[2].values()), real(*args))[1])
    program.main(arguments(tmp_path, "--methods", "cam", "--epochs", "1", "--loc_threshold", "0.3"))
    assert set(thresholds) == {BoxThreshold(0.3, "GT-Loc")}


def test_the_same_figure_gives_the_same_file(tmp_path):
    """A PDF or SVG has no date and no random names, so that a repeated run leaves the same files."""
    for kind in ("pdf", "svg"):
        files = [figures._save(grid(example()), tmp_path / name, [kind])[0].read_bytes() for name in "ab"]
        assert files[0] == files[1]


def test_val_is_measured_without_the_centre_baseline(shapes, monkeypatch):
    """It does not depend on the network, and nobody reads it there."""
    centers = {}
    real = Evaluation.update

    def update(self, batch, truth):
        centers.setdefault(self.metadata.split, set()).add(self.center is not None)
        return real(self, batch, truth)

    monkeypatch.setattr(Evaluation, "update", update)
    program.main(arguments(shapes, "--methods", "cam", "--epochs", "1"))
    assert centers == {"val": {False}, "test": {True}}


def test_the_contact_sheet_has_a_colour_bar():
    """In the colours of its maps, below the list of classes."""
    image = np.full((60, 60, 3), 128, np.uint8)
    maps = {ROWS[0]: np.zeros((7, 7), np.float32)}
    for colormap in ("turbo", "viridis"):
        sheet = contact_sheet(image, "x", [("cat", 0.9)], maps, ["softmax"], colormap=colormap)
        end = colour_scale(colormap, 14, 270)[0, -1]
        assert (sheet == end).all(axis=-1).any()


# ------------------------------------------------------------------- default methods


def test_each_default_method_differs_from_the_others_on_the_default_network():
    """Behind global average pooling and one linear layer xgradcam is gradcam, and layercam is clamped gradcam."""
    torch.manual_seed(0)
    model = dualize(Classifier(TinyNet(5), "fc", target_layer="features.6"))
    model.eval()
    images = torch.rand(2, 3, 64, 64)
    methods = [*DEFAULT_METHODS, "xgradcam", "layercam"]
    with CamExtractor(model, methods, heads=["softmax", "softmax_clamped"]) as extract:
        raw = extract(images)
    maps = {variant: to_scoremaps(values, variant.method, (64, 64))[0] for variant, values in raw.items()}

    def differ(a: Variant, b: Variant) -> bool:
        return (maps[a] - maps[b]).abs().mean() > 1e-3

    assert not differ(Variant("xgradcam", "softmax"), Variant("gradcam", "softmax"))
    assert not differ(Variant("layercam", "softmax"), Variant("gradcam", "softmax", True))
    shown = [variant for variant in maps if variant.method in DEFAULT_METHODS]
    for variant in shown:
        others = [other for other in shown if other.method != variant.method]
        assert all(differ(variant, other) for other in others)
