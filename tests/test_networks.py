"""The four published networks: parameter names and shapes, logits, map sizes, learning rates, checkpoints, weights."""

import sys

import pytest
import timm
import torch
import torchvision
from conftest import ROOT
from safetensors.torch import save_file
from test_checkpoint import Evil
from torch import nn

from config import UNFREEZE
from wsol import CamExtractor, build, dualize
from wsol.cam import Variant
from wsol.classifier import linear_layers
from wsol.errors import InputError
from wsol.run import checkpoint
from wsol.training import make_optimizer

sys.path.insert(0, str(ROOT / "scripts"))
import export_checkpoint

K = 7
NORM = ("weight", "bias", "running_mean", "running_var")


# ------------------------------------------------------------------- tensor names of wsolevaluation and Dual-CAM


def layer(name: str, *shape: int) -> dict[str, tuple]:
    """A convolution or Linear with a bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def conv_norm(conv: str, norm: str, *shape: int) -> dict[str, tuple]:
    """A convolution without bias and its BatchNorm."""
    return {
        f"{conv}.weight": shape,
        **{f"{norm}.{part}": shape[:1] for part in NORM},
        f"{norm}.num_batches_tracked": (),
    }


def vgg_features(indices) -> dict[str, tuple]:
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    return {
        k: v
        for i, index in enumerate(indices)
        for k, v in layer(f"features.{index}", widths[i + 1], widths[i], 3, 3).items()
    }


VGG_14 = vgg_features([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28])
VGG_28 = vgg_features([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 23, 25, 27])
CONV6 = layer("conv6", 1024, 512, 3, 3)


def vgg_classifier(name: str) -> dict[str, tuple]:
    return layer(f"{name}.0", 4096, 25088) | layer(f"{name}.3", 4096, 4096) | layer(f"{name}.6", K, 4096)


def resnet_trunk() -> dict[str, tuple]:
    names = conv_norm("conv1", "bn1", 64, 3, 7, 7)
    inputs = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(blocks):
            at = f"layer{stage}.{block}."
            names |= conv_norm(at + "conv1", at + "bn1", width, inputs, 1, 1)
            names |= conv_norm(at + "conv2", at + "bn2", width, width, 3, 3)
            names |= conv_norm(at + "conv3", at + "bn3", 4 * width, width, 1, 1)
            if block == 0:
                names |= conv_norm(at + "downsample.0", at + "downsample.1", 4 * width, inputs, 1, 1)
            inputs = 4 * width
    return names


def inception_trunk() -> dict[str, tuple]:
    """Conv2d_1a to Mixed_6e: (outputs, inputs, kernel height, width) of each branch."""
    layers = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
    }
    for name, c, pool in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        layers |= {
            f"{name}.branch1x1": (64, c, 1, 1),
            f"{name}.branch5x5_1": (48, c, 1, 1),
            f"{name}.branch5x5_2": (64, 48, 5, 5),
            f"{name}.branch3x3dbl_1": (64, c, 1, 1),
            f"{name}.branch3x3dbl_2": (96, 64, 3, 3),
            f"{name}.branch3x3dbl_3": (96, 96, 3, 3),
            f"{name}.branch_pool": (pool, c, 1, 1),
        }
    layers |= {
        "Mixed_6a.branch3x3": (384, 288, 3, 3),
        "Mixed_6a.branch3x3dbl_1": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_2": (96, 64, 3, 3),
        "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
    }
    for name, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        layers |= {
            f"{name}.branch1x1": (192, 768, 1, 1),
            f"{name}.branch7x7_1": (c, 768, 1, 1),
            f"{name}.branch7x7_2": (c, c, 1, 7),
            f"{name}.branch7x7_3": (192, c, 7, 1),
            f"{name}.branch7x7dbl_1": (c, 768, 1, 1),
            f"{name}.branch7x7dbl_2": (c, c, 7, 1),
            f"{name}.branch7x7dbl_3": (c, c, 1, 7),
            f"{name}.branch7x7dbl_4": (c, c, 7, 1),
            f"{name}.branch7x7dbl_5": (192, c, 1, 7),
            f"{name}.branch_pool": (192, 768, 1, 1),
        }
    return {k: v for name, shape in layers.items() for k, v in conv_norm(f"{name}.conv", f"{name}.bn", *shape).items()}


def inception_tail() -> dict[str, tuple]:
    """Mixed_7a to Mixed_7c, which only the original form has."""
    layers = {
        "Mixed_7a.branch3x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
        "Mixed_7a.branch7x7x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    }
    for name, c in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        layers |= {
            f"{name}.branch1x1": (320, c, 1, 1),
            f"{name}.branch3x3_1": (384, c, 1, 1),
            f"{name}.branch3x3_2a": (384, 384, 1, 3),
            f"{name}.branch3x3_2b": (384, 384, 3, 1),
            f"{name}.branch3x3dbl_1": (448, c, 1, 1),
            f"{name}.branch3x3dbl_2": (384, 448, 3, 3),
            f"{name}.branch3x3dbl_3a": (384, 384, 1, 3),
            f"{name}.branch3x3dbl_3b": (384, 384, 3, 1),
            f"{name}.branch_pool": (192, c, 1, 1),
        }
    return {k: v for name, shape in layers.items() for k, v in conv_norm(f"{name}.conv", f"{name}.bn", *shape).items()}


INCEPTION_CAM = (
    inception_trunk()
    | layer("SPG_A3_1b.0", 1024, 768, 3, 3)
    | layer("SPG_A3_2b.0", 1024, 1024, 3, 3)
    | layer("SPG_A4", K, 1024, 1, 1)
)


def vit_trunk() -> dict[str, tuple]:
    names = {"features.cls_token": (1, 1, 192), "features.pos_embed": (1, 197, 192)}
    names |= layer("features.patch_embed.proj", 192, 3, 16, 16)
    for block in range(12):
        at = f"features.blocks.{block}."
        names |= {f"{at}{norm}.{part}": (192,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        names |= layer(at + "attn.qkv", 576, 192) | layer(at + "attn.proj", 192, 192)
        names |= layer(at + "mlp.fc1", 768, 192) | layer(at + "mlp.fc2", 192, 768)
    return names | {"features.norm.weight": (192,), "features.norm.bias": (192,)}


# (architecture, form, large_feature_map, last_layer) → the softmax network's tensors, and the sigmoid branch's
PUBLISHED = {
    ("vgg16", "cam", False, "fc"): (VGG_14 | CONV6 | layer("fc", K, 1024), layer("fc2", K, 1024)),
    ("vgg16", "cam", True, "fc"): (VGG_28 | CONV6 | layer("fc", K, 1024), layer("fc2", K, 1024)),
    ("vgg16", "cam", False, "conv"): (VGG_14 | CONV6 | layer("conv", K, 1024, 1, 1), layer("conv2", K, 1024, 1, 1)),
    ("vgg16", "original", False, "fc"): (VGG_14 | vgg_classifier("classifier"), vgg_classifier("classifier_2")),
    ("resnet50", "cam", False, "fc"): (resnet_trunk() | layer("fc", K, 2048), layer("fc2", K, 2048)),
    ("resnet50", "original", True, "fc"): (resnet_trunk() | layer("fc", K, 2048), layer("fc2", K, 2048)),
    ("resnet50", "cam", False, "conv"): (resnet_trunk() | layer("conv", K, 2048, 1, 1), layer("conv2", K, 2048, 1, 1)),
    ("inception_v3", "cam", False, "fc"): (INCEPTION_CAM, layer("SPG_A4_2", K, 1024, 1, 1)),
    ("inception_v3", "cam", True, "fc"): (INCEPTION_CAM, layer("SPG_A4_2", K, 1024, 1, 1)),
    ("inception_v3", "original", False, "fc"): (
        inception_trunk() | inception_tail() | layer("fc", K, 2048),
        layer("fc2", K, 2048),
    ),
    ("vit", "cam", False, "fc"): (vit_trunk() | layer("head", K, 192), layer("head2", K, 192)),
}


def make(
    architecture: str, form: str = "cam", large: bool = False, last_layer: str = "fc", classes: int | None = K, **more
):
    return build(
        architecture,
        classes,
        **{"pretrained": False} | more,
        classifier_form=form,
        large_feature_map=large,
        last_layer=last_layer,
    )


@pytest.mark.parametrize("key", PUBLISHED, ids=lambda key: "-".join(map(str, key)))
def test_names_and_shapes_are_the_published_ones(key):
    network, branch = PUBLISHED[key]
    model = make(*key)
    assert {name: tuple(t.shape) for name, t in model.published_state_dict().items()} == network
    assert {name: tuple(t.shape) for name, t in dualize(model).published_state_dict().items()} == network | branch


# ------------------------------------------------------------------- the same function as torchvision's and timm's


def test_inceptions_original_form_is_torchvisions():
    source = torchvision.models.inception_v3(aux_logits=False, init_weights=False, num_classes=K).eval()
    model = make("inception_v3", "original").eval()
    model.load_published(source.state_dict(), "torchvision")
    images = torch.randn(2, 3, 139, 139)
    with torch.no_grad():
        assert torch.equal(model(images).logits, source(images))


@pytest.mark.parametrize("form, last_layer", [("cam", "fc"), ("original", "fc"), ("cam", "conv")])
def test_resnet_is_torchvisions_with_layer4_on_layer3s_grid(form, last_layer):
    source = torchvision.models.resnet50(num_classes=K).eval()
    tensors = source.state_dict()
    if last_layer == "conv":
        tensors = {n.replace("fc.", "conv."): t[..., None, None] if n == "fc.weight" else t for n, t in tensors.items()}
    model = make("resnet50", form, last_layer=last_layer).eval()
    model.load_published(tensors, "torchvision")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = model(images).logits
        source.layer4[0].conv2.stride = source.layer4[0].downsample[0].stride = 1
        assert torch.allclose(ours, source(images), atol=1e-5)


def test_vggs_original_form_is_torchvisions_without_the_last_pool():
    source = torchvision.models.vgg16(num_classes=K).eval()
    model = make("vgg16", "original").eval()
    model.load_published(source.state_dict(), "torchvision")
    images = torch.randn(1, 3, 64, 64)
    source.features[30] = nn.Identity()
    with torch.no_grad():
        assert torch.equal(model(images).logits, source(images))


@pytest.mark.parametrize("side", [224, 96])
def test_vit_is_timms(side):
    source = timm.create_model("deit_tiny_patch16_224", num_classes=K, dynamic_img_size=True).eval()
    nn.init.normal_(source.head.weight)
    model = make("vit").eval()
    tensors = {n if n.startswith("head.") else f"features.{n}": t for n, t in source.state_dict().items()}
    model.load_published(tensors, "timm")
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(model(images).logits, source(images))


# ------------------------------------------------------------------- maps


@pytest.mark.parametrize(
    "key, sides",
    [
        (("vgg16", "cam", False), (14, 14)),
        (("vgg16", "cam", True), (28, 28)),
        (("vgg16", "original", False), (14,)),
        (("resnet50", "cam", False), (14, 14)),
        (("resnet50", "cam", True), (28, 28)),
        (("inception_v3", "cam", False), (14, 14)),
        (("inception_v3", "cam", True), (28, 28)),
        (("inception_v3", "original", True), (5, 5)),
        (("vit", "cam", False), (14, 14)),
    ],
    ids=str,
)
def test_map_sizes_at_224(key, sides):
    methods = ["gradcam", "cam"][: len(sides)]
    with CamExtractor(make(*key), methods) as extract:
        maps = extract(torch.randn(1, 3, 224, 224))
    assert [tuple(maps[method].shape) for method in methods] == [(1, side, side) for side in sides]
    assert all(maps[method].std() > 0 for method in methods)


@pytest.mark.parametrize(
    "key",
    [("vgg16",), ("vgg16", "cam", False, "conv"), ("resnet50",), ("inception_v3",), ("inception_v3", "original")],
    ids=str,
)
def test_cam_is_the_linear_head_taken_apart(key):
    """The mean of the CAM plus the bias is the logit: head, target layer and pooling fit each other."""
    model = make(*key).eval()
    for linear in linear_layers(model.softmax_head):
        nn.init.normal_(linear.bias)
    images, classes = torch.randn(2, 3, 96, 96), torch.tensor([3, 5])
    with CamExtractor(model, ["cam"]) as extract:
        maps = extract(images, classes)["cam"]
        logits = extract.output.logits
    expected = logits.gather(1, classes[:, None])[:, 0] - model.softmax_head.bias[classes]
    assert torch.allclose(maps.mean(dim=(1, 2)), expected, rtol=1e-4, atol=1e-4)


def test_cam_of_vit_weights_the_normalised_patch_tokens():
    model = dualize(make("vit")).eval()
    images = torch.randn(1, 3, 96, 64)
    with CamExtractor(model, ["cam", "gradcam"], heads=["softmax"]) as extract:
        maps = extract(images, torch.tensor([2]))
    with torch.no_grad():
        tokens = model.network.features.forward_features(images)[0, 1:]
    expected = (tokens @ model.softmax_head.weight[2]).view(6, 4)
    assert torch.allclose(maps[Variant("cam", "softmax")][0], expected, atol=1e-5)
    assert maps[Variant("gradcam", "softmax")].shape == (1, 6, 4)


def test_gradcam_of_vit_is_pytorch_grad_cams():
    gradcam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from pytorch_grad_cam.utils.reshape_transforms import vit_reshape_transform

    model = make("vit").eval().double()
    images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with CamExtractor(model, ["gradcam"]) as extract:
        ours = extract(images, torch.tensor([1, 4]))["gradcam"].relu()
    ours = nn.functional.interpolate(ours[:, None], (224, 224), mode="bilinear", align_corners=False)[:, 0]
    ours = (ours - ours.amin((1, 2), keepdim=True)) / (
        ours.amax((1, 2), keepdim=True) - ours.amin((1, 2), keepdim=True)
    )
    with gradcam.GradCAM(model.network, [model.target_layer], vit_reshape_transform) as reference:
        theirs = reference(images, [ClassifierOutputTarget(1), ClassifierOutputTarget(4)])
    assert torch.allclose(ours, torch.from_numpy(theirs).double(), atol=1e-4)  # it resizes in float32


# ------------------------------------------------------------------- learning rates of the references

FAST = {  # what learns lr_classifier_ratio times as fast, of all that a dual network has
    ("vgg16", "cam"): lambda n: not n.startswith("features."),
    ("vgg16", "original"): lambda n: not n.startswith("features."),
    ("inception_v3", "cam"): lambda n: n.startswith(("SPG_A3_1b.", "SPG_A3_2b.", "SPG_A4.", "SPG_A4_2.")),
    ("inception_v3", "original"): lambda n: n.startswith(("fc.", "fc2.")),
    ("resnet50", "cam"): lambda n: n.startswith(("layer4.", "fc.")),
    ("vit", "cam"): lambda n: (
        n in ("features.cls_token", "features.pos_embed", "head.weight", "head.bias", "head2.weight", "head2.bias")
    ),
    ("efficientnet_lite0", "cam"): lambda n: n.startswith(("classifier.", "classifier_2.")),
}


@pytest.mark.parametrize("key", FAST, ids="-".join)
def test_learning_rate_ratios_of_the_references(key):
    model = dualize(make(*key)).set_trainable(UNFREEZE["all"])
    names = model.published_parameters()
    groups = make_optimizer(model, lr=0.1, classifier_ratio=10, momentum=0.9, weight_decay=0).param_groups
    fast = {id(p) for group in groups if group["lr"] == 1.0 for p in group["params"]}
    assert {n for n, p in names.items() if id(p) in fast} == {n for n in names if FAST[key](n)}
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_fc2_of_resnet_alone_learns_at_the_plain_rate():
    dual = dualize(make("resnet50"))
    (group,) = make_optimizer(dual, lr=0.1, classifier_ratio=10, momentum=0.9, weight_decay=0).param_groups
    assert group["lr"] == 0.1 and len(group["params"]) == 2


# ------------------------------------------------------------------- checkpoints of elsewhere


@pytest.mark.parametrize("name", ["fc2", "conv2", "head2", "classifier_2", "SPG_A4_2"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_branch_loads_under_any_published_name(name, prefix):
    source, target = dualize(make("resnet50")), dualize(make("resnet50"))
    nn.init.normal_(source.sigmoid_head.weight)
    tensors = {prefix + n.replace("fc2.", f"{name}."): t for n, t in source.published_state_dict().items()}
    target.load_published(tensors, "theirs")
    assert torch.equal(target.sigmoid_head.weight, source.sigmoid_head.weight)


def test_one_by_one_conv_makes_no_sense_everywhere():
    for key in (("vgg16", "original"), ("inception_v3", "cam"), ("vit", "cam")):
        with pytest.raises(InputError, match="--last_layer conv: .*leave it out"):
            make(*key, last_layer="conv")
    with pytest.raises(InputError, match="--large_feature_map: vit has .*--crop_size 448"):
        make("vit", large=True)
    with pytest.raises(InputError, match="--crop_size 100: .* does not take such images"):
        make("vit").check_image_size(100)


def test_ours_go_back_to_theirs_by_name(tmp_path, capsys):
    source = dualize(make("vgg16"))
    checkpoint.save(
        tmp_path / "ours.pth",
        {
            "architecture": "vgg16",
            "epoch": 3,
            "optimizer": None,
            "stage": "b2",
            "class_names": ["a"],
            "state_dict": source.published_state_dict(),
        },
    )
    export_checkpoint.main(["--module", str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth")])
    content = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert set(content) == {"architecture", "epoch", "state_dict", "optimizer"} and content["epoch"] == 3
    network, branch = PUBLISHED["vgg16", "cam", False, "fc"]
    assert {n: tuple(t.shape) for n, t in content["state_dict"].items()} == {
        f"module.{n}": shape for n, shape in (network | branch).items()
    }
    export_checkpoint.main([str(tmp_path / "theirs.pth"), str(tmp_path / "plain.pth")])
    assert set(torch.load(tmp_path / "plain.pth", weights_only=True)["state_dict"]) == set(network | branch)
    with pytest.raises(InputError, match="exists"):
        export_checkpoint.main([str(tmp_path / "ours.pth"), str(tmp_path / "plain.pth")])
    with pytest.raises(InputError, match="does not exist"):
        export_checkpoint.main([str(tmp_path / "nowhere.pth"), str(tmp_path / "new.pth")])


# ------------------------------------------------------------------- ImageNet weights


def torchvision_file(folder, name: str):
    """A stand-in for the published file: a seeded network's tensors under the file's published name."""
    torch.manual_seed(3)
    arguments = {"init_weights": False} if name == "inception_v3" else {}
    network = torchvision.models.get_model(name, **arguments)
    file = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(network.state_dict(), folder / file)
    return network.state_dict(), file


@pytest.mark.parametrize(
    "name, form, head_is_new",
    [("resnet50", "cam", False), ("inception_v3", "cam", True), ("inception_v3", "original", False)],
)
def test_torchvision_weights_from_a_file_or_folder(tmp_path, name, form, head_is_new):
    theirs, file = torchvision_file(tmp_path, name)
    for place in (tmp_path, tmp_path / file):
        model = make(name, form, pretrained=True, pretrained_path=str(place), classes=None)
        ours = model.network.state_dict()
        for n, tensor in ours.items():
            if n.startswith("SPG_"):
                continue
            assert torch.equal(tensor, theirs[n]), n
        assert model.head_is_new == head_is_new
    assert make(name, form, pretrained=True, pretrained_path=str(tmp_path)).head_is_new  # of 7 classes
    if name == "resnet50":
        conv = make(name, last_layer="conv", pretrained=True, classes=None, pretrained_path=str(tmp_path))
        assert torch.equal(conv.softmax_head.weight.flatten(1), theirs["fc.weight"])


@pytest.mark.parametrize("name", ["resnet50", "resnet18"])  # torchvision's weights, timm's
@pytest.mark.parametrize("key, prefix", [("model", "module."), ("state_dict", "model."), (None, "_orig_mod.")])
def test_pretrained_path_takes_files_of_other_projects(tmp_path, name, key, prefix):
    source = torchvision.models.get_model(name) if name == "resnet50" else timm.create_model(name)
    tensors = {prefix + n: t for n, t in source.state_dict().items()}
    torch.save(tensors if key is None else {key: tensors}, tmp_path / "theirs.pt")
    save_file(tensors, tmp_path / "theirs.safetensors")
    for file in ("theirs.pt", "theirs.safetensors"):
        model = make(name, pretrained=True, pretrained_path=str(tmp_path / file), classes=None)
        assert torch.equal(model.softmax_head.weight, source.fc.weight)
        assert not model.head_is_new


def test_vgg_weights_reach_both_forms_and_both_grids(tmp_path):
    theirs, file = torchvision_file(tmp_path, "vgg16")
    (tmp_path / file).rename(tmp_path / "vgg16.pth")  # what wsolevaluation calls it
    convs = [t for n, t in theirs.items() if n.startswith("features.") and n.endswith("weight")]
    for form, large in (("cam", False), ("cam", True), ("original", False)):
        model = make("vgg16", form, large, pretrained=True, pretrained_path=str(tmp_path), classes=None)
        ours = [layer.weight for layer in model.network.features if isinstance(layer, nn.Conv2d)]
        assert all(torch.equal(a, b) for a, b in zip(ours, convs, strict=True))
        assert model.head_is_new == (form == "cam")
    assert torch.equal(model.softmax_head[6].weight, theirs["classifier.6.weight"])


def test_timm_weights_from_a_file(tmp_path):
    source = timm.create_model("deit_tiny_patch16_224")
    nn.init.normal_(source.head.weight)
    name = timm.get_pretrained_cfg("deit_tiny_patch16_224").url.rpartition("/")[2]
    for save, file in (
        (lambda path: torch.save({"model": source.state_dict()}, path), name),
        (lambda path: save_file(source.state_dict(), path), "model.safetensors"),
    ):
        folder = tmp_path / file.rpartition(".")[2]
        folder.mkdir()
        save(folder / file)
        model = make("vit", pretrained=True, pretrained_path=str(folder), classes=None)
        assert torch.equal(model.softmax_head.weight, source.head.weight) and not model.head_is_new
        assert torch.equal(model.network.features.pos_embed, source.pos_embed)


def test_weights_that_do_not_fit_are_named(tmp_path, capsys):
    _, file = torchvision_file(tmp_path, "resnet18")
    with pytest.raises(InputError, match="weights do not fit resnet50: layer1.*check --pretrained_path"):
        make("resnet50", pretrained=True, pretrained_path=str(tmp_path / file))
    with pytest.raises(InputError, match="does not fit deit_tiny"):
        make("vit", pretrained=True, pretrained_path=str(tmp_path / file))
    with pytest.raises(InputError, match=r"has none of resnet50-\w{8}\.pth, resnet50\.pth; download https://"):
        make("resnet50", pretrained=True, pretrained_path=str(tmp_path))
    with pytest.raises(InputError, match="no such file or folder"):
        make("vit", pretrained=True, pretrained_path="/nowhere")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    for name in ("vgg16", "vit"):
        for file in ("text.pth", "evil.pth"):
            with pytest.raises(InputError, match=f"{file} is not a checkpoint"):
                make(name, pretrained=True, pretrained_path=str(tmp_path / file))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, file",
    [("vgg16", "vgg16-397923af.pth"), ("vit", "timm/deit_tiny_patch16_224"), ("resnet18", "timm/resnet18")],
)
def test_without_network_and_file_one_line_says_what_to_download(tmp_path, monkeypatch, name, file):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def refuse(request, timeout):
        asked.append((request.full_url, timeout))
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(
        InputError,
        match=rf"cannot be downloaded \(network is unreachable\); download https://\S*{file}\S* "
        "elsewhere and give --pretrained_path FILE_OR_FOLDER",
    ) as caught:
        make(name, pretrained=True)
    assert "\n" not in str(caught.value) and len(asked) == 1 and asked[0][1] <= 10
    assert not list(tmp_path.iterdir())
