"""CAM methods on what real life brings: odd activations, batches, sizes, types, networks; and what is left behind."""

import pytest
import timm
import torch
import torchvision
from conftest import METHODS, TinyNet
from torch import nn

from wsol import CamExtractor, dualize
from wsol.cam import HEADS, to_scoremaps
from wsol.cam.forward_pass import ForwardPass
from wsol.cam.replay import Replay
from wsol.classifier import Classifier, find_head
from wsol.errors import InputError
from wsol.layout import Layout


class Given(nn.Module):
    """A network whose target layer sees every eighth pixel of the images."""

    def __init__(self):
        super().__init__()
        self.target, self.fc = nn.Identity(), nn.Linear(3, 3)

    def forward(self, images):
        return self.fc(self.target(images[:, :, ::8, ::8]).mean(dim=(2, 3)))


def maps_of(activations, methods=METHODS, classes=(0, 2)):
    """Raw maps of a network with these activations (2, 3, h, w)."""
    torch.manual_seed(1)
    model = Given()
    with CamExtractor(model, methods, target_layer=model.target) as extract:
        return extract(activations.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3), torch.tensor(classes))


NOT_OF_THE_TARGET = ("fullgrad", "sobelcam")  # they read every layer, and none
AS_LARGE_AS_THE_IMAGE = ("fullgrad", "sobelcam", "refinecam")


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_constant_activations_give_constant_maps_and_they_are_counted(value):
    for method, maps in maps_of(torch.full((2, 3, 4, 4), value)).items():
        if method in NOT_OF_THE_TARGET:
            continue
        assert not torch.isfinite(maps).all() or (maps.amax(dim=(1, 2)) - maps.amin(dim=(1, 2)) < 1e-4).all(), method
        scoremaps, degenerate = to_scoremaps(maps, method, (224, 224))
        assert degenerate.all() and (scoremaps == 0).all(), method


def test_negative_activations_are_explained_like_others():
    """The score is linear in A, so the maps of these methods change their sign; fem's weights are never negative."""
    torch.manual_seed(0)
    activations = torch.randn(2, 3, 4, 4).abs() + 0.1
    plain, negative = maps_of(activations), maps_of(-activations)
    for method in METHODS:
        assert torch.isfinite(negative[method]).all(), method
    for method in ("cam", "gradcam", "layercam", "hirescam", "shapleycam"):
        assert torch.allclose(negative[method], -plain[method], atol=1e-6), method
    assert (negative["fem"] <= 0).all()


def test_nan_in_one_image_leaves_the_other_alone():
    torch.manual_seed(0)
    activations = torch.randn(2, 3, 4, 4)
    broken = activations.clone()
    broken[0, 1, 2, 3] = torch.nan
    healthy = maps_of(activations)
    for method, maps in maps_of(broken).items():
        if method in NOT_OF_THE_TARGET:
            continue
        assert torch.allclose(maps[1], healthy[method][1], atol=1e-6), method
        scoremaps, degenerate = to_scoremaps(maps, method, (224, 224))
        assert degenerate.tolist() == [True, False], method
        assert torch.isfinite(scoremaps).all()


@pytest.mark.parametrize("batch, size", [(1, (48, 48)), (3, (48, 80)), (2, (33, 47))])
def test_any_batch_and_any_proportions(batch, size):
    dual = dualize(TinyNet(5))
    with CamExtractor(dual, METHODS, heads=HEADS, perturb_batch=7) as extract:
        maps = extract(torch.randn(batch, 3, *size), torch.arange(batch))
    grid = (-(-size[0] // 8), -(-size[1] // 8))
    finer = (-(-size[0] // 4), -(-size[1] // 4))  # that of the stage before
    for (method, head, _clamped, _refine), values in maps.items():
        expected = size if method in AS_LARGE_AS_THE_IMAGE else finer if method == "layercamfused" else grid
        assert values.shape == (batch, *expected), (method, head)
        assert values.dtype == torch.float32 and torch.isfinite(values).all() and not values.requires_grad
    assert {variant.method for variant in maps} == set(METHODS)


def test_a_batch_gives_what_its_images_give_alone():
    model = TinyNet(5).double()
    images, classes = torch.randn(3, 3, 48, 48).double(), torch.tensor([4, 1, 1])
    with CamExtractor(model, METHODS, target_layer=model.features[6]) as extract:
        together = extract(images, classes)
        for b in range(3):
            for method, alone in extract(images[b : b + 1], classes[b : b + 1]).items():
                assert torch.allclose(together[method][b], alone[0], atol=1e-12), method


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_maps_like_those_of_float32(dtype):
    torch.manual_seed(0)
    model = TinyNet(5)
    images, classes = torch.randn(2, 3, 48, 48), torch.tensor([1, 3])
    with CamExtractor(model, METHODS, target_layer=model.features[6]) as extract:
        exact = extract(images, classes)
    model = model.to(dtype)
    with CamExtractor(model, METHODS, target_layer=model.features[6]) as extract:
        rough = extract(images.to(dtype), classes)
    for method in METHODS:
        assert rough[method].dtype == torch.float32
        # Differences of rounded scores; a threshold; a small sum; the rounded image's own draw.
        if method in ("ablationcam", "fem", "xgradcam", "randomcam"):
            continue
        a, b = exact[method].flatten(1), rough[method].flatten(1)
        assert (torch.nn.functional.cosine_similarity(a, b) > 0.95).all(), method


def test_inside_autocast_and_inference_mode_the_maps_are_the_same():
    model = TinyNet(5)
    images, classes = torch.randn(2, 3, 48, 48), torch.tensor([1, 3])
    with CamExtractor(model, METHODS, target_layer=model.features[6]) as extract:
        expected = extract(images, classes)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = extract(images, classes)
        with torch.inference_mode():
            quiet = extract(images.clone(), classes)
    for method in METHODS:
        assert torch.equal(inside[method], expected[method]) and torch.equal(quiet[method], expected[method]), method


def state_of(model: nn.Module) -> list:
    return [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        for module in model.modules()
    ] + [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind_even_by_an_exception(method):
    dual = dualize(TinyNet(5)).train()
    dual.network.features[0].weight.requires_grad_()
    before = state_of(dual)
    weights = {name: tensor.clone() for name, tensor in dual.state_dict().items()}
    with CamExtractor(dual, [method], heads=HEADS) as extract:
        extract(torch.randn(2, 3, 48, 48))
    assert state_of(dual) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in dual.state_dict().items())
    assert all(p.grad is None for p in dual.parameters())

    calls = []

    def fail_later(*_):
        calls.append(1)
        if len(calls) > 1 or method not in ("scorecam", "ablationcam", "fullgrad"):
            raise ZeroDivisionError

    handle = dual.sigmoid_head.register_forward_hook(fail_later)
    with pytest.raises(ZeroDivisionError), CamExtractor(dual, [method], heads=HEADS) as extract:
        extract(torch.randn(2, 3, 48, 48))
    handle.remove()
    assert state_of(dual) == before and torch.is_grad_enabled()


# ------------------------------------------------------------------- target layers that are found; transformers


@pytest.mark.parametrize(
    "build, layer",
    [
        (lambda: torchvision.models.resnet18(num_classes=4), "layer4.1"),
        (lambda: timm.create_model("resnet18", num_classes=4), "layer4.1"),
        (
            lambda: torchvision.models.VisionTransformer(48, 16, 2, 2, 24, 48, num_classes=4),
            "encoder.layers.encoder_layer_1.ln_1",
        ),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=48, depth=2, num_classes=4), "blocks.1.norm1"),
        (
            lambda: torchvision.models.swin_transformer.SwinTransformer(
                [4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=4
            ),
            "permute",
        ),
        (
            lambda: timm.create_model(
                "swin_tiny_patch4_window7_224",
                img_size=48,
                window_size=3,
                embed_dim=16,
                depths=(2, 2),
                num_heads=(2, 2),
                num_classes=4,
            ),
            "norm",
        ),
    ],
)
def test_the_target_layer_is_found(build, layer):
    model = build()
    nn.init.normal_(model.get_submodule(find_head(model)).weight)  # some start as zeros
    images = torch.randn(2, 3, 48, 48)
    methods = [
        method for method in METHODS if method not in ("cam", "scorecam", "fem")
    ]  # fem: no outliers among 4 places
    with CamExtractor(model, methods) as extract:
        found = extract(images, [0, 3])
    with CamExtractor(model, methods, target_layer=model.get_submodule(layer)) as extract:
        told = extract(images, [0, 3])
    for method in methods:
        assert found[method].abs().max() > 0 and torch.equal(found[method], told[method]), method


def test_no_places_no_target():
    with pytest.raises(InputError, match="no layer with places before its head"):
        with CamExtractor(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 3)), ["gradcam"]) as extract:
            extract(torch.randn(1, 3, 2, 2))


# ------------------------------------------------------------------- replaying what follows a layer


def pass_of(model, layer, images, layout):
    held = []
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: held.append(output.clone()))
    classifier = Classifier(model.eval(), find_head(model))
    with torch.no_grad():
        output = classifier(images)
    handle.remove()
    return ForwardPass(classifier, images, layer, held[0], layout, output, torch.zeros(len(images), dtype=torch.long))


class InPlace(nn.Module):
    """Something between its modules works in place on what an earlier module gave: leaving that module out is wrong."""

    def __init__(self):
        super().__init__()
        self.stem, self.target, self.fc = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, images):
        x = self.stem(images)
        x *= 2
        return self.fc((self.target(x) + x).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "model, layer, skips",
    [
        (torchvision.models.resnet18(num_classes=4), "layer3.0.bn2", True),  # in the middle of a residual block
        (torchvision.models.DenseNet(4, (2, 2), 8, num_classes=4), "features.denseblock2.denselayer1", True),
        (InPlace(), "target", False),
    ],
)
def test_replay_gives_the_logits_of_the_pass_and_skips_what_it_may(model, layer, skips):
    shared = pass_of(model, model.get_submodule(layer), torch.randn(2, 3, 64, 64), Layout("BCHW", (4, 4)))
    with Replay(shared) as replay:
        assert replay.skips_earlier_modules is skips
        for b in range(2):
            leaf = shared.leaf[b : b + 1]
            same = replay(leaf.expand(3, *leaf.shape[1:]).clone(), b).logits
            assert torch.allclose(same, shared.logits["softmax"][b].expand(3, -1), atol=1e-4)
            other = replay(torch.cat([leaf, 2 * leaf]), b).logits
            assert not torch.allclose(other[0], other[1], atol=1e-4)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_layer_whose_replaced_output_changes_nothing_it_should_not():
    """Random numbers in the forward pass: no replay can reproduce the logits, and ablationcam says so."""

    class Noisy(TinyNet):
        def forward(self, images):
            return self.fc(self.features(images).mean(dim=(2, 3)) + torch.randn(16))

    model = Noisy(3)
    with CamExtractor(model, ["ablationcam"], target_layer=model.features[6]) as extract:
        with pytest.raises(InputError, match="does not reproduce the logits of Noisy"):
            extract(torch.randn(1, 3, 48, 48))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpu_s_maps():
    """All methods, both heads, smoothed and refined or not, in float64; randomcam's seed is the image's checksum."""
    torch.manual_seed(0)
    dual = dualize(torchvision.models.resnet18(num_classes=7)).double()
    nn.init.normal_(dual.sigmoid_head.weight, std=0.1)
    images, classes = torch.randn(2, 3, 64, 64).double(), torch.tensor([5, 0])
    for settings in ({}, {"eigen_smooth": True}, {"aug_smooth": True}, {"flip": True, "scales": [1, 1.5]}):
        found = {}
        for device in ("cpu", "cuda"):
            model = dual.to(device)
            with CamExtractor(model, METHODS, heads=HEADS, refine=["none", "affinity"], **settings) as extract:
                found[device] = extract(images.to(device), classes.to(device))
        for variant, maps in found["cpu"].items():
            scale = maps.abs().max()
            tolerance = 1e-5 if settings.get("aug_smooth") else 1e-6  # stretched maps are float32
            assert (found["cuda"][variant].cpu() - maps).abs().max() <= tolerance * scale, (settings, variant)
