"""SS-CAM, IS-CAM, Smooth Grad-CAM++ and fused LayerCAM against torch-cam (PyPI), with the same noise."""

import zlib
from types import SimpleNamespace

import pytest
import torch
import torchvision
from conftest import TinyNet
from torch import nn

from config import parse_args, parse_picture_args
from wsol import CamExtractor, dualize
from wsol.cam import all_methods
from wsol.cam.perturbation import mask_noise
from wsol.errors import InputError

peers = pytest.importorskip("torchcam.methods")

LABELS = [5, 0]


@pytest.fixture
def setting():
    torch.manual_seed(1)
    model = torchvision.models.resnet18(num_classes=7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.2 / module.in_features**0.5)
    return model.double().eval(), torch.randn(2, 3, 32, 48, dtype=torch.float64)


@pytest.fixture
def small():
    torch.manual_seed(1)
    return TinyNet(7).double().eval(), torch.randn(2, 3, 32, 48, dtype=torch.float64)


def crc(image):
    return zlib.crc32(image.float().contiguous().numpy().tobytes())


def ours(setting, method, labels=LABELS, layer="layer2.1", **more):
    model, images = setting
    with CamExtractor(model, [method], target_layer=layer, **more) as extract:
        extract(images, labels)
        return extract.weights[method]


def theirs(peer, model, images, draw=None):
    if draw is not None:
        samples = iter(range(99))
        peer._distrib = SimpleNamespace(sample=lambda size: draw(next(samples), size))
    scores = model(images)
    weights = peer._get_weights(LABELS, scores)[0]
    peer.remove_hooks()
    return weights


def test_sscam(small):
    model, images = small
    seeds = [crc(image) for image in images]

    def draw(sample, size):
        noise = [[mask_noise(seed, sample, channel, tuple(size[2:])) for channel in range(size[1])] for seed in seeds]
        return 0.5 * torch.stack([torch.stack(of_image) for of_image in noise])

    flags = {"layer": "features.6", "sscam_samples": 3, "sscam_std": 0.5}
    found = ours(small, "sscam", perturb_batch=50, **flags)
    expected = theirs(peers.SSCAM(model, "features.6", num_samples=3, std=0.5), model, images, draw)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert float((found - found.mean()).abs().max()) > 1e-5
    # nothing depends on how the masks, or the images, are batched
    torch.testing.assert_close(ours(small, "sscam", perturb_batch=7, **flags), found, rtol=1e-9, atol=0)
    alone = ours((model, images[1:]), "sscam", LABELS[1:], **flags)
    torch.testing.assert_close(alone, found[1:], rtol=1e-9, atol=0)


def test_iscam(small):
    model, images = small
    expected = theirs(peers.ISCAM(model, "features.6", num_samples=4), model, images)
    found = ours(small, "iscam", layer="features.6", iscam_samples=4)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_smoothgradcam(setting):
    """torch-cam multiplies alpha by the last sample's gradient, which is the mean with one sample, or without noise."""
    model, images = setting
    seeds = [crc(image) for image in images]

    def draw(sample, size):
        noise = [[mask_noise(seed, sample, colour, tuple(size[2:])) for colour in range(3)] for seed in seeds]
        return 0.3 * torch.stack([torch.stack(of_image) for of_image in noise])

    for samples, std in ((1, 0.3), (4, 0.0)):
        peer = peers.SmoothGradCAMpp(model, "layer2.1", num_samples=samples)
        expected = theirs(peer, model, images, draw if std else lambda *_: 0.0 * images)
        found = ours(setting, "smoothgradcam++", smooth_samples=samples, smooth_std=std)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)
    assert not torch.allclose(ours(setting, "smoothgradcam++"), found)


def test_smoothgradcam_takes_means(setting):
    """Gradients of each noisy image by themselves, in a plain loop."""
    model, images = setting
    seen = []
    hook = model.layer2[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(images)
    first = second = third = 0
    for sample in range(3):
        noise = torch.stack([torch.stack([mask_noise(crc(i), sample, c, (32, 48)) for c in range(3)]) for i in images])
        logits = model(images + 0.3 * noise)
        (g,) = torch.autograd.grad(logits[range(2), LABELS].sum(), seen[-1])
        first, second, third = first + g / 3, second + g**2 / 3, third + g**3 / 3
    hook.remove()
    alpha = second / (2 * second + (third * seen[0]).sum((2, 3), keepdim=True) + 1e-8)
    found = ours(setting, "smoothgradcam++", smooth_samples=3)
    torch.testing.assert_close(found, (alpha * first.clamp(min=0)).sum((2, 3)), rtol=1e-6, atol=1e-12)


def test_layercam_of_several_stages(setting):
    model, images = setting
    layers = ["layer4", "layer3", "layer2"]
    peer = peers.LayerCAM(model, layers)
    cams = peer(class_idx=LABELS, scores=model(images), normalized=False)
    peer.remove_hooks()
    scaled = [torch.tanh(2 * cam.relu() / cam.relu().amax((1, 2), keepdim=True)) for cam in cams]
    expected = peers.LayerCAM._fuse_cams(scaled, (4, 6))
    with CamExtractor(model, ["layercamfused", "layercam"], target_layer="layer4", levels=[0, 1, 2]) as extract:
        maps = extract(images, LABELS)
        assert extract.level_layers == layers
    torch.testing.assert_close(maps["layercamfused"], expected, rtol=1e-6, atol=1e-9)
    with CamExtractor(model, ["layercamfused"], target_layer="layer4", levels=[0]) as extract:
        alone = extract(images, LABELS)["layercamfused"]
    single = maps["layercam"].relu()
    torch.testing.assert_close(alone, torch.tanh(2 * single / single.amax((1, 2), keepdim=True)))


@pytest.mark.parametrize("method", ["sscam", "iscam", "smoothgradcam++", "layercamfused"])
def test_both_heads_rows_and_batches(method):
    torch.manual_seed(0)
    dual = dualize(TinyNet(5), target_layer="features.6")
    nn.init.normal_(dual.sigmoid_head.weight)
    images, few = torch.randn(3, 3, 48, 48), {"sscam_samples": 2, "iscam_samples": 2}
    with CamExtractor(dual, [method], heads=["softmax", "sigmoid_clamped"], perturb_batch=11, **few) as extract:
        maps = extract(images, [0, 4, 2])
        alone = extract(images[1:2], [4])
    assert len(maps) == 2
    for variant, of_all in maps.items():
        torch.testing.assert_close(alone[variant][0], of_all[1], rtol=1e-3, atol=1e-5)
    a, b = maps.values()
    assert not torch.allclose(a, b)


def test_constant_channels_and_flags():
    model = TinyNet(5)
    with torch.no_grad():
        model.features[5].weight.zero_()  # every channel is constant
    with CamExtractor(
        model.eval(), ["sscam", "iscam", "smoothgradcam++"], target_layer="features.6", sscam_samples=1
    ) as e:
        assert all(of_method.isfinite().all() for of_method in e(torch.randn(1, 3, 48, 48), [2]).values())
    with pytest.raises(InputError, match="sscam_samples must be a whole number, at least 1, got 0"):
        CamExtractor(model, ["sscam"], sscam_samples=0)
    with pytest.raises(SystemExit):
        parse_args(["--smooth_samples", "0"])
    assert {"sscam", "iscam"}.isdisjoint(all_methods()) and "smoothgradcam++" in parse_args(
        ["--methods", "all"]
    ).methods
    assert parse_picture_args(["x.png", "--out", "y", "--methods", "sscam", "--sscam_samples", "3"]).sscam_samples == 3
