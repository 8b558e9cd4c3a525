"""Views of an image, scaled and mirrored: their sum by hand, what every method gives, both commands."""

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import METHODS, TinyNet, arguments
from PIL import Image
from torch import nn

import inference
import main
from wsol import CamExtractor, dualize
from wsol.cam import Meter, Variant
from wsol.cam.views import PLAIN, View, add_views, make_views
from wsol.errors import InputError

HEADS = ["softmax", "softmax_clamped", "sigmoid_clamped"]


def trained_dual():
    """A dual network whose two heads differ."""
    dual = dualize(TinyNet(5), target_layer="features.6").double()
    nn.init.normal_(dual.sigmoid_head.weight)
    return dual.eval()


def maps_of(model, images, methods, **settings):
    """The maps of classes 1 and 3."""
    with CamExtractor(model, methods, heads=HEADS, **settings) as extract:
        return extract(images, [1, 3])


# ------------------------------------------------------------------- the parts


def test_views_in_their_order_each_once():
    assert make_views([1.0, 0.5, 1.0], flip=True) == [View(), View(1.0, True), View(0.5), View(0.5, True)]
    assert make_views([2], flip=False) == [View(2)] and View() == PLAIN


@pytest.mark.parametrize("scales", [[], [0.0], [-1.0], [math.inf], [math.nan]])
def test_scales_are_positive_numbers(scales):
    with pytest.raises(InputError, match="scales must be positive numbers"):
        make_views(scales, flip=False)
    with pytest.raises(InputError, match="scales must be positive numbers"):
        CamExtractor(trained_dual(), ["cam"], scales=scales)


def test_a_view_and_its_way_back():
    images = torch.randn(2, 3, 40, 30)
    assert View(0.5).of(images).shape == (2, 3, 20, 15) and View(0.01).of(images).shape == (2, 3, 1, 1)
    mirrored = View(1.0, True)
    assert torch.equal(mirrored.of(images), images.flip(-1))
    assert torch.equal(mirrored.undo(mirrored.of(images)[:, 0]), images[:, 0])
    wide = torch.arange(8.0).expand(1, 3, 8, 8)  # a half as large, each place is the mean of its surroundings
    assert torch.allclose(View(0.5).of(wide)[0, 0, 0, 1:3], torch.tensor([2.5, 4.5]))


def test_a_sum_by_hand():
    """[1, 3] at twice the size is [1, 1.5, 2.5, 3] (bilinear, pixel centres)."""
    small, large = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[10.0, 20.0, 30.0, 40.0]]])
    total = add_views([{"a": small}, {"a": large}], [PLAIN, View(2.0)])
    assert torch.equal(total["a"], torch.tensor([[[11.0, 21.5, 32.5, 43.0]]]))


# ------------------------------------------------------------------- the extractor


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"scorecam", "ablationcam"}))
def test_mirrored_maps_are_added_for_every_method(method):
    dual, images = trained_dual(), torch.randn(2, 3, 48, 40).double()
    both = maps_of(dual, images, [method], flip=True, refine=["none", "affinity"])
    plain = maps_of(dual, images, [method], refine=["none", "affinity"])
    mirrored = maps_of(dual, images.flip(-1), [method], refine=["none", "affinity"])
    assert list(both) == list(plain)
    for variant, maps in both.items():
        assert torch.allclose(maps, plain[variant] + mirrored[variant].flip(-1), atol=1e-10), variant


def test_scaled_maps_are_brought_to_the_largest_size():
    dual, images = trained_dual(), torch.randn(2, 3, 48, 48).double()
    both = maps_of(dual, images, ["cam"], scales=[0.5, 1.5])
    half, larger = (F.interpolate(images, (side, side), mode="bilinear", antialias=True) for side in (24, 72))
    small, large = maps_of(dual, half, ["cam"]), maps_of(dual, larger, ["cam"])
    for variant, maps in both.items():
        assert maps.shape == (2, 9, 9) and small[variant].shape == (2, 3, 3)
        resized = F.interpolate(small[variant][:, None], (9, 9), mode="bilinear")[:, 0]
        assert torch.allclose(maps, resized + large[variant], atol=1e-12)


def test_behind_pooling_gradients_and_weights_give_the_same_map_at_all_scales():
    """cam's weights do not depend on the number of places, gradcam's gradients are 1/P of them."""
    dual, images = trained_dual(), torch.randn(2, 3, 48, 48).double()
    maps = maps_of(dual, images, ["cam", "gradcam", "layercam"], scales=[0.5, 1.0, 2.0], flip=True)
    for head in HEADS:
        cam, gradcam = (maps[Variant.of(method, head)] for method in ("cam", "gradcam"))
        assert torch.allclose(gradcam * 36, cam, atol=1e-10)  # 6 x 6 places at scale 1
    assert torch.allclose(maps[Variant("layercam", "sigmoid")], maps[Variant("gradcam", "sigmoid", True)], atol=1e-10)


def test_logits_and_classes_are_those_of_the_image_itself():
    dual, images = trained_dual(), torch.randn(2, 3, 48, 48).double()
    meter = Meter()
    with CamExtractor(dual, ["gradcam"], scales=[0.5, 2.0], flip=True, meter=meter) as extract:
        extract(images)
        predicted = extract.output.logits.argmax(dim=1)
    with torch.no_grad():
        assert torch.equal(extract.output.logits, dual(images).logits)
    named = CamExtractor(dual, ["gradcam"], scales=[0.5, 2.0], flip=True)
    with named as extract, CamExtractor(dual, ["gradcam"], scales=[0.5, 2.0], flip=True) as unnamed:
        assert torch.equal(extract(images, predicted)["gradcam"], unnamed(images)["gradcam"])
    assert list(meter.costs) == ["forward", "views", "gradcam"]


# ------------------------------------------------------------------- the commands


def test_a_run_with_views(shapes):
    wanted = ["--methods", "cam,layercam", "--epochs", "1", "--bootstrap", "0"]
    plain = main.main(arguments(shapes, *wanted, name="plain"))
    views = main.main(arguments(shapes, *wanted, "--scales", "0.5,1", "--flip", name="views"))
    assert "views" in views["cost"] and "views" not in plain["cost"]
    assert views["config"]["scales"] == [0.5, 1.0] and views["config"]["flip"] is True
    assert views["classification"] == plain["classification"] and views["rows"] != plain["rows"]
    again = ["--root", str(shapes / "runs"), "--experiment_name", "views", "--eval_only"]
    assert main.main(again)["rows"] == views["rows"]
    assert main.main([*again, "--scales", "1", "--flip", "FALSE"])["rows"] == plain["rows"]


def test_views_of_pictures(tmp_path):
    Image.fromarray(np.random.randint(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    common = [str(tmp_path / "a.png"), "--architecture", "tiny", "--crop_size", "48", "--save_npy", "--workers", "0"]
    inference.main([*common, "--methods", "gradcam", "--out", str(tmp_path / "m"), "--scales", "1,2", "--flip"])
    assert np.load(tmp_path / "m" / "gradcam_softmax" / "a.npy").shape == (12, 12)


def test_a_network_of_one_size_refuses_other_scales_before_training(shapes, monkeypatch):
    from wsol.backbones import ARCHITECTURES, Architecture
    from wsol.classifier import Classifier

    def vit(options):
        network = timm.create_model("vit_tiny_patch16_224", img_size=48, embed_dim=24, num_heads=2, depth=2)
        return Classifier(network, "head", target_layer="blocks.0", pooled_layer="blocks.1")

    monkeypatch.setitem(ARCHITECTURES, "small_vit", Architecture("small_vit", vit))
    with pytest.raises(InputError, match=r"--crop_size 48 times 0\.5 of --scales: VisionTransformer does not take"):
        main.main(arguments(shapes, "--architecture", "small_vit", "--methods", "gradcam", "--scales", "0.5,1"))
    assert not (shapes / "runs").exists()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "9", "x", "1,y"])
def test_the_flag_takes_numbers(value, capsys):
    with pytest.raises(SystemExit):
        main.parse_args([f"--scales={value}"])
    assert "--scales" in capsys.readouterr().err


def test_no_scale_at_all_is_an_error():
    with pytest.raises(InputError, match="--scales is empty"):
        main.parse_args(["--scales", ","])
