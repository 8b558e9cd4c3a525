"""Concepts, guided backpropagation, a map's channels, and curves of confidence: numbers, figures, refusals."""

import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import arguments
from PIL import Image
from torch import nn

import inference as program
import main as training
from wsol.cam import CAM_METHODS, CamExtractor
from wsol.cam.factorization import concept_logits, factorize
from wsol.cam.guided import guided_backpropagation
from wsol.errors import InputError
from wsol.metrics.measures import STEPS
from wsol.run.picture_figures import concept_sheet, strongest_channels

peers = pytest.importorskip("pytorch_grad_cam")


def test_concepts_agree_with_grad_cam():
    from pytorch_grad_cam.feature_factorization.deep_feature_factorization import dff

    activations = torch.rand(2, 12, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.2
    activations[0, 3, 1, 1] = torch.nan
    embeddings, maps = dff(activations.numpy().copy(), n_components=4)
    found = factorize(activations, 4)
    assert np.allclose(found.embeddings, embeddings.T, atol=1e-8) and np.allclose(found.maps, maps, atol=1e-8)
    whole = np.einsum("nc,bnhw->bchw", found.embeddings, found.maps)
    assert whole.shape == activations.shape and (found.maps >= 0).all()


def test_concepts_that_cannot_be():
    for count in (0, 13):
        with pytest.raises(InputError, match=f"{count} concepts cannot be found in 12 channels at 30 places"):
            factorize(torch.rand(1, 12, 5, 6), count)


def test_what_heads_say_of_a_concept():
    embeddings = np.random.default_rng(0).normal(size=(3, 8))
    linear, conv = nn.Linear(8, 5), nn.Conv2d(8, 5, 1)
    conv.load_state_dict({"weight": linear.weight.data[:, :, None, None], "bias": linear.bias.data})
    expected = embeddings @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    for head in (linear, conv):
        assert np.allclose(concept_logits(head, embeddings), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_guided_backpropagation_agrees_with_grad_cam(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=7).eval()
    images = torch.randn(2, 3, 64, 64)
    found = guided_backpropagation(model, images, [5, 0])
    for b, k in enumerate((5, 0)):
        theirs = peers.GuidedBackpropReLUModel(model)(images[b : b + 1].clone(), k).transpose(2, 0, 1)
        assert np.abs(found[b].numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert all(not module._forward_hooks for module in model.modules())


def test_guided_backpropagation_of_predictions_and_of_other_rectifiers():
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()  # ReLU6
    images = torch.randn(1, 3, 64, 64)
    predicted = int(model(images).argmax())
    assert torch.equal(guided_backpropagation(model, images), guided_backpropagation(model, images, [predicted]))
    with pytest.raises(InputError, match="needs ReLUs, and VisionTransformer has none"):
        guided_backpropagation(timm.create_model("vit_tiny_patch16_224"), torch.zeros(1, 3, 224, 224))


def test_the_strongest_channels_by_hand():
    activations = np.zeros((4, 1, 2))
    activations[0], activations[1], activations[2] = [[1, 3]], [[0, 2]], [[5, 5]]
    channels = strongest_channels(np.array([1.0, -3.0, 0.1, 9.0]), activations, 3)
    # |w| sum |A|: 4, 6, 1, 0 of 11
    assert [(c.number, c.weight, round(c.share, 6)) for c in channels] == [
        (1, -3.0, round(6 / 11, 6)),
        (0, 1.0, round(4 / 11, 6)),
        (2, 0.1, round(1 / 11, 6)),
    ]
    assert channels[0].activations.tolist() == [[0, 1]] and channels[2].activations.tolist() == [[0, 0]]


def test_weights_of_a_map_are_those_of_the_image_itself():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    with CamExtractor(model, ["gradcam", "layercam"], target_layer="layer4", flip=True) as extract:
        extract(images, [0, 1])
        weights, activations = extract.weights, extract.activations["gradcam"]
    with CamExtractor(model, ["gradcam"], target_layer="layer4") as extract:
        maps = extract(images, [0, 1])["gradcam"]
    assert list(weights) == ["gradcam"]
    assert torch.allclose(torch.einsum("bc,bchw->bhw", weights["gradcam"], activations), maps, atol=1e-6)


def test_a_concept_s_colour_is_where_it_is():
    maps = np.zeros((2, 2, 2))
    maps[0, 0], maps[1, 1] = 1, 0.5
    sheet = concept_sheet(np.zeros((40, 40, 3), np.uint8), "heading", maps, ["one", "two"])
    assert sheet.ndim == 3 and sheet.shape[1] > 4 * 150 and (sheet.reshape(-1, 3).std(axis=1) > 20).any()


# ------------------------------------------------------------------- the command

FAST = ("--architecture", "tiny", "--crop_size", "48", "--workers", "0", "--methods", "gradcam,layercam")


@pytest.fixture
def picture(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = ["--explain_channels", "3", "--concepts", "4", "--guided_backprop"]


def test_a_file_of_each_kind(picture, monkeypatch):
    program.main(["x.png", "--out", "out", *FAST, *ALL])
    files = {str(path.relative_to(picture / "out")) for path in (picture / "out").rglob("*.jpg")}
    assert files >= {"channels/gradcam_softmax/x.jpg", "concepts/x.jpg", "guided/x.jpg"}
    assert not any("channels/layercam" in name for name in files)
    for name in files:
        assert np.asarray(Image.open(picture / "out" / name)).std() > 5
    with pytest.raises(InputError, match="exists; replace"):
        program.main(["x.png", "--out", "out", *FAST, "--concepts", "4"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--methods", "layercam", "--explain_channels", "2"], "needs a method that weights channels: cam, "),
        (["--concepts", "30", "--crop_size", "32"], "--concepts 30 is more than the 16 places"),
        ("--architecture deit_tiny_patch16_224 --crop_size 224 --pretrained FALSE --guided_backprop".split(),
         "guided backpropagation needs ReLUs"),
        (["--cam_levels", "0,7", "--methods", "refinecam"], "has no level 7"),
        (["--aug_smooth", "--flip"], "--aug_smooth has views of its own"),
    ],
)  # fmt: skip
def test_refused_before_any_work(picture, monkeypatch, flags, message):
    with pytest.raises(InputError, match=message):
        program.main(["x.png", "--out", "out", *FAST, *flags])
    assert not (picture / "out").exists()


def test_smoothed_maps_in_both_commands(shapes, monkeypatch):
    flags = ["--methods", "cam,gradcam,refinecam,layercam", "--epochs", "1", "--save_scoremaps", "--cam_levels", "0,1"]
    rows = {}
    for name, more in {"plain": [], "eigen": ["--eigen_smooth"], "aug": ["--aug_smooth"]}.items():
        results = training.main(arguments(shapes, *flags, *more, name=name))
        assert {row["method"] for row in results["rows"]} == {"cam", "gradcam", "refinecam", "layercam"}
        rows[name] = {
            method: np.load(next((shapes / f"runs/{name}/scoremaps/test/{method}_softmax").rglob("*.npy")))
            for method in ("cam", "gradcam", "refinecam", "layercam")
        }
    for method in ("cam", "gradcam", "layercam"):
        assert not np.allclose(rows["plain"][method], rows["eigen"][method], atol=1e-3), method
        assert not np.allclose(rows["plain"][method], rows["aug"][method], atol=1e-3), method
    assert np.array_equal(rows["plain"]["refinecam"], rows["eigen"]["refinecam"])  # sums over no channel by itself
    monkeypatch.chdir(shapes)
    image = next((shapes / "dataset").rglob("0.png"))
    program.main([str(image), "--out", "out", *FAST, "--aug_smooth", "--eigen_smooth"])


def test_baselines_are_worse_than_methods_that_know_the_class(shapes):
    results = training.main(arguments(shapes, "--methods", "randomcam,sobelcam,gradcam", "--epochs", "1"))
    heads = {row["method"]: row["head"] for row in results["rows"]}
    assert heads["randomcam"] == heads["sobelcam"] == "none"
    assert {"randomcam", "sobelcam", "segeigencam", "refinecam"} <= set(CAM_METHODS)


def test_curves_of_confidence(shapes):
    results = training.main(
        arguments(shapes, "--methods", "gradcam,layercam", "--epochs", "1", "--crop_size", "32", "--fidelity",
                  "insertion,deletion")
    )  # fmt: skip
    for row in results["rows"]:
        for head in ("softmax", "sigmoid"):
            figures = row["fidelity"][head]
            for name in ("insertion", "deletion"):
                curve = np.array(figures[f"{name}_curve"])
                assert len(curve) == STEPS + 1 and ((0 <= curve) & (curve <= 1)).all()
                area = ((curve[0] + curve[-1]) / 2 + curve[1:-1].sum()) / STEPS
                assert figures[name] == pytest.approx(area, abs=1e-8)
            # Inserting ends, and deleting begins, with the image itself.
            assert figures["insertion_curve"][-1] == figures["deletion_curve"][0]
    folder = shapes / "runs/run"
    assert (folder / "figures/confidence.png").stat().st_size > 10_000
    assert "curve" not in (folder / "results.csv").read_text()
    kept = json.loads((folder / "results.json").read_text())["rows"][0]["fidelity"]
    assert kept == results["rows"][0]["fidelity"]
