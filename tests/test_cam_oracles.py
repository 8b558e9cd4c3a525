"""Every CAM method against code that is not ours: grad-cam (PyPI), or its formula written out as a plain loop."""

from functools import lru_cache

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from wsol import CamExtractor
from wsol.cam import CAM_METHODS

peers = pytest.importorskip("pytorch_grad_cam")

from pytorch_grad_cam.kpca_cam import KPCA_CAM
from pytorch_grad_cam.shapley_cam import ShapleyCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget

PEERS = {
    "gradcam": peers.GradCAM,
    "gradcam++": peers.GradCAMPlusPlus,
    "xgradcam": peers.XGradCAM,
    "layercam": peers.LayerCAM,
    "hirescam": peers.HiResCAM,
    "gradcamelementwise": peers.GradCAMElementWise,
    "eigencam": peers.EigenCAM,
    "eigengradcam": peers.EigenGradCAM,
    "kpcacam": KPCA_CAM,
    "scorecam": peers.ScoreCAM,
    "fem": peers.FEM,
    "shapleycam": ShapleyCAM,
    "finercam": peers.GradCAM,
}
UP_TO_SIGN = ("eigencam", "eigengradcam", "kpcacam")
LABELS = [5, 0]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def resnet():
    model = torchvision.models.resnet18(num_classes=7)
    return model, "layer2.1", None, (32, 48)  # not the last layer: 128 channels, and much that follows


def vgg():
    """The features and the form of the head are torchvision's; the head's 4096 units are 48, to save time."""
    model = torchvision.models.vgg11_bn(num_classes=7)
    model.classifier = nn.Sequential(
        nn.Linear(25088, 48),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(48, 48),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(48, 7),
    )
    return model, "features.6", None, (32, 32)  # more places than channels


def vit():
    model = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), num_classes=7, depth=3)
    return model, "blocks.2.norm1", lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (4, 6)), (64, 96)


def swin():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=(64, 96),
        num_classes=7,
        window_size=4,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
    )
    return model, "layers.1.blocks.1.norm1", lambda x: x.permute(0, 3, 1, 2), (64, 96)


MODELS = {build.__name__: build for build in (resnet, vgg, vit, swin)}


@lru_cache
def setting(name: str, dtype: torch.dtype):
    """(model, layer, reshape, images, our raw maps of every method)."""
    torch.manual_seed(1)
    model, layer, reshape, size = MODELS[name]()
    for module in model.modules():  # random statistics and a head of some size: nothing cancels by chance
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.1)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.2 / module.in_features**0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    model = model.to(dtype).eval()
    images = torch.randn(2, 3, *size, dtype=dtype)
    methods = [method for method in CAM_METHODS if method not in ("cam", "ablationcam")]  # see test_cam, and below
    with CamExtractor(model, methods, target_layer=model.get_submodule(layer)) as extract:
        return model, model.get_submodule(layer), reshape, images, extract(images, torch.tensor(LABELS))


def of_grad_cam(method: str, model, layer, reshape, images) -> np.ndarray:
    """grad-cam's map before its ReLU and scaling, at the layer's resolution."""
    peer = PEERS[method](model, [layer], reshape_transform=reshape)
    try:
        images = images.clone().requires_grad_(method == "shapleycam")
        logits = peer.activations_and_grads(images)
        targets = [ClassifierOutputTarget(k) for k in LABELS]
        if method == "finercam":
            nearest = (logits - logits[range(2), LABELS][:, None]).abs().argsort(dim=1)[:, 1:4].tolist()
            targets = [FinerWeightedTarget(k, near, 0.6) for k, near in zip(LABELS, nearest, strict=True)]
        score = sum(target(row) for target, row in zip(targets, logits, strict=True))
        recorded = peer.activations_and_grads
        if method == "shapleycam":
            torch.autograd.grad(score, images, retain_graph=True, create_graph=True)
            activations, gradients = recorded.activations[0], recorded.gradients[0]
            weights = peer.get_cam_weights(images, layer, targets, activations, gradients)
            activations = (activations if reshape is None else reshape(activations)).detach().numpy()
            return np.einsum("bc,bchw->bhw", weights, activations)
        score.backward()
        activations, gradients = recorded.activations[0].numpy(), recorded.gradients[0].numpy()
        return peer.get_cam_image(images, layer, targets, activations, gradients, eigen_smooth=False)
    finally:
        peer.activations_and_grads.activations, peer.activations_and_grads.gradients = (
            [],
            [],
        )  # views: it cannot detach them
        peer.activations_and_grads.release()


def assert_close(found: torch.Tensor, expected: np.ndarray, tolerance: float, up_to_sign: bool = False) -> None:
    for ours, theirs in zip(found.double().numpy(), np.float64(expected), strict=True):
        scale = np.abs(theirs).max()
        assert scale > 0 and np.isfinite(theirs).all()
        differences = [np.abs(ours - sign * theirs).max() / scale for sign in ((1, -1) if up_to_sign else (1,))]
        assert min(differences) <= tolerance, differences


# A place at the very threshold may fall on either side of it in float32, a step of 1 / (h w) in a channel's weight.
STEPS = {("fem", "vit"): 4e-2, ("fem", "swin"): 4e-2}


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_grad_cam(name, dtype, method):
    model, layer, reshape, images, maps = setting(name, dtype)
    assert maps[method].dtype == dtype
    tolerance = TOLERANCE[dtype]
    if dtype == torch.float32:
        tolerance = STEPS.get((method, name), tolerance)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = of_grad_cam(method, model, layer, reshape, images)
    assert_close(maps[method], expected, tolerance, method in UP_TO_SIGN)


# ------------------------------------------------------------------- ablationcam and fullgrad: the formula, as a loop


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_ablationcam_is_its_formula(name, dtype):
    model, layer, _, images, _ = setting(name, dtype)
    held = []
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: held.append(output.clone()))
    logits = model(images)
    handle.remove()
    activations = held[0]
    dim = {"resnet": 1, "vgg": 1, "vit": 2, "swin": 3}[name]
    channels = list(range(0, activations.shape[dim], 1 if name in ("vit", "swin") else 7))
    weights = torch.zeros(2, activations.shape[dim], dtype=dtype)
    for c in channels:

        def without(_layer, _inputs, output, c=c):
            output.select(dim, c).zero_()
            return output

        handle = layer.register_forward_hook(without)
        changed = model(images)
        handle.remove()
        for b, k in enumerate(LABELS):
            weights[b, c] = (logits[b, k] - changed[b, k]) / logits[b, k]
    with CamExtractor(model, ["ablationcam"], target_layer=layer, perturb_batch=50) as extract:
        found = weights_of(extract, images, "ablationcam")[:, channels]
    assert (found - weights[:, channels]).abs().max() <= TOLERANCE[dtype] * weights.abs().max()


def weights_of(extract: CamExtractor, images, method: str) -> torch.Tensor:
    """The channel weights behind a map: what the formula returns."""
    caught = []
    entry = CAM_METHODS[method]

    def formula(view):
        caught.append(entry(view))
        return caught[0]

    CAM_METHODS[method] = type(entry)(**{**vars(entry), "formula": formula})
    try:
        extract(images, torch.tensor(LABELS))
    finally:
        CAM_METHODS[method] = entry
    return caught[0]


def full_gradient(model, images, labels) -> torch.Tensor:
    """FullGrad by its formula: channel by channel, each resized by itself."""
    outputs, handles = [], []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm, nn.Linear)) and module.bias is not None:

            def note(module, _inputs, output):
                outputs.append((module, output))
                return output.clone()

            handles.append(module.register_forward_hook(note))
    images = images.clone().requires_grad_()
    score = model(images)[range(len(labels)), labels].sum()
    for handle in handles:
        handle.remove()

    def psi(x):  # (h, w)
        x = x.abs()
        x = (x - x.min()) / (x.max() - x.min() + 1e-7)
        return F.interpolate(x[None, None], images.shape[-2:], mode="bilinear", align_corners=False)[0, 0]

    gradients = torch.autograd.grad(score, [images] + [output for _, output in outputs], allow_unused=True)
    total = torch.stack([sum(psi(images[b, c] * gradients[0][b, c]) for c in range(3)) for b in range(len(images))])
    for (module, output), gradient in zip(outputs, gradients[1:], strict=True):
        if isinstance(module, nn.BatchNorm2d):
            bias = module.bias - module.running_mean * module.weight / (module.running_var + module.eps).sqrt()
        else:
            bias = module.bias
        if gradient is None or output.ndim == 2 or len(output) != len(images):  # a pooled layer; the Swin's windows
            continue
        if output.ndim == 3:  # tokens: the ViT's behind its class token, the Swin's of either stage
            grid = {25: (4, 6), 16 * 24: (16, 24), 8 * 12: (8, 12)}[output.shape[1]]
            gradient = gradient[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        elif not isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):  # the Swin's channels are last
            gradient = gradient.permute(0, 3, 1, 2)
        for b in range(len(images)):
            for c in range(len(bias)):
                total[b] += psi(bias[c] * gradient[b, c])
    return total.detach()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_fullgrad_is_its_formula(name, dtype):
    model, _, _, images, maps = setting(name, dtype)
    assert maps["fullgrad"].shape == (2, *images.shape[2:])
    assert_close(maps["fullgrad"], full_gradient(model, images, LABELS).numpy(), TOLERANCE[dtype])


def test_fullgrad_agrees_with_grad_cam():
    """Theirs is scaled to [0, 1] at the end and resized by OpenCV in float32."""
    model, _, _, images, maps = setting("resnet", torch.float32)
    with peers.FullGrad(model, []) as peer:
        expected = peer(images.clone(), [ClassifierOutputTarget(k) for k in LABELS])
    low, high = maps["fullgrad"].amin(dim=(1, 2), keepdim=True), maps["fullgrad"].amax(dim=(1, 2), keepdim=True)
    assert_close((maps["fullgrad"] - low) / (high - low), expected, 1e-3)
