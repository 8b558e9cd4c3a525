"""Every CAM method against code that is not ours: grad-cam (PyPI), or its formula written out as a plain loop."""

from functools import lru_cache

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import METHODS
from torch import nn

from wsol import CamExtractor
from wsol.cam import CAM_METHODS
from wsol.errors import InputError

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
    "segeigencam": peers.SegEigenCAM,
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
    methods = [method for method in METHODS if method not in ("cam", "ablationcam")]  # see test_cam, and below
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


# ------------------------------------------------------------------- several stages, smoothing, baselines, targets


def on_a_picture(seed: int = 0):
    """A ResNet-18 whose weights are of some size, images, and its two last stages."""
    torch.manual_seed(seed)
    model, _, _, images, _ = setting("resnet", torch.float32)
    return model, torch.randn_like(images), [model.layer4, model.layer3]


def finished(maps: torch.Tensor, size) -> np.ndarray:
    """grad-cam's last step: rectified, resized to the image, stretched to [0, 1]."""
    maps = F.interpolate(maps.relu()[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / (high - low)).numpy()


@pytest.mark.parametrize("levels", [(0, 1), (0,), (0, 1, 2)])
def test_refinecam_agrees_with_grad_cam(levels):
    """Theirs resizes with OpenCV, in float32."""
    model, images, stages = on_a_picture()
    targets = [ClassifierOutputTarget(k) for k in LABELS]
    stages = [*stages, model.layer2]
    expected = peers.RefineCAM(model, [stages[level] for level in levels])(images, targets)
    with CamExtractor(model, ["refinecam"], target_layer="layer4", levels=levels) as extract:
        maps = extract(images, torch.tensor(LABELS))["refinecam"]
    assert extract.level_layers == [f"layer{4 - level}" for level in levels]
    assert maps.shape == (2, *images.shape[2:]) and np.abs(finished(maps, images.shape[2:]) - expected).max() < 2e-3


def test_refinecam_is_the_product_of_the_stages():
    model, images, stages = on_a_picture()
    product = np.ones((2, *images.shape[2:]))
    for stage in stages:
        with CamExtractor(model, ["gradcam++"], target_layer=stage) as extract:
            product = product * finished(extract(images, torch.tensor(LABELS))["gradcam++"], images.shape[2:])
    with CamExtractor(model, ["refinecam"], target_layer="layer4") as extract:
        found = extract(images, torch.tensor(LABELS))["refinecam"]
    assert np.abs(found.numpy() - product).max() < 1e-5


EIGEN_SMOOTHED = ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "gradcamelementwise"]


@pytest.mark.parametrize("method", EIGEN_SMOOTHED)
def test_eigen_smoothing_agrees_with_grad_cam(method):
    """Up to the sign, which theirs leaves to chance; ours goes with the sum that it replaces."""
    model, layer, _, images, plain = setting("resnet", torch.float64)
    peer = PEERS[method](model, [layer])
    logits = peer.activations_and_grads(images)
    sum(row[k] for row, k in zip(logits, LABELS, strict=True)).backward()
    recorded = peer.activations_and_grads
    activations, gradients = recorded.activations[0].numpy(), recorded.gradients[0].numpy()
    targets = [ClassifierOutputTarget(k) for k in LABELS]
    if method == "gradcamelementwise":  # theirs projects before it rectifies
        expected = None
    else:
        expected = peer.get_cam_image(images, layer, targets, activations, gradients, eigen_smooth=True)
    recorded.activations, recorded.gradients = [], []
    recorded.release()
    with CamExtractor(model, [method], target_layer=layer, eigen_smooth=True) as extract:
        found = extract(images, torch.tensor(LABELS))[method]
    if expected is not None:
        assert_close(found, expected, 1e-6, up_to_sign=True)
    centred = plain[method] - plain[method].mean(dim=(1, 2), keepdim=True)
    assert ((found * centred).sum(dim=(1, 2)) > 0).all()


def test_augmentation_smoothing_agrees_with_grad_cam():
    """Six views; theirs resizes with OpenCV, in float32."""
    model, images, _ = on_a_picture()
    targets = [ClassifierOutputTarget(k) for k in LABELS]
    with peers.GradCAM(model, [model.layer2[1]]) as peer:
        expected = peer(images, targets, aug_smooth=True)
    with CamExtractor(model, ["gradcam"], target_layer="layer2.1", aug_smooth=True) as extract:
        found = extract(images, torch.tensor(LABELS))["gradcam"]
    assert found.shape == (2, *images.shape[2:]) and np.abs(found.numpy() - expected).max() < 2e-3


def test_sobelcam_agrees_with_grad_cam():
    """On a smooth picture, where nothing is cut at 255; theirs rounds to whole grey values four times."""
    from pytorch_grad_cam.sobel_cam import sobel_cam

    y, x = np.mgrid[:60, :80]
    picture = np.stack([2 * x, 60 + y, 100 + 40 * np.sin(x / 9)], axis=2).round().astype(np.uint8)
    with CamExtractor(torchvision.models.resnet18(), ["sobelcam"], target_layer="layer4") as extract:
        found = extract(torch.from_numpy(picture).permute(2, 0, 1)[None].float())["sobelcam"][0]
    assert np.abs(found.numpy() - sobel_cam(picture)).max() <= 2
    assert found.shape == (60, 80)


def test_randomcam_draws_for_each_image_and_again_the_same():
    model, images, _ = on_a_picture()
    with CamExtractor(model, ["randomcam", "eigencam"], target_layer="layer4", heads=["softmax"]) as extract:
        first = extract(images, torch.tensor(LABELS))
        (weights,) = extract.weights.values()
        again = extract(images.flip(0), torch.tensor(LABELS))
    key = next(key for key in first if key.method == "randomcam")
    assert torch.equal(first[key], again[key].flip(0))
    assert weights.shape == (2, 512) and not torch.equal(weights[0], weights[1])
    assert -1 <= weights.min() < -0.98 and 0.98 < weights.max() <= 1 and abs(weights.mean()) < 0.06
    activations = extract.activations["randomcam"].flip(0)
    assert torch.allclose(first[key], torch.einsum("bc,bchw->bhw", weights, activations))


def test_other_targets_than_a_logit():
    """The gradient of each score, by grad-cam where it has the target, else by the score written out."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputSoftmaxTarget

    from wsol.cam.targets import difference, probability, rest

    model, layer, _, images, _ = setting("resnet", torch.float64)
    theirs = {
        probability: [ClassifierOutputSoftmaxTarget(k) for k in LABELS],
        rest: [ClassifierOutputReST(k) for k in LABELS],
        difference(3, 0.5): [lambda row, k=k: row[k] - 0.5 * row[3] for k in LABELS],
    }
    for target, targets in theirs.items():
        peer = peers.GradCAM(model, [layer])
        logits = peer.activations_and_grads(images)
        sum(score(row) for score, row in zip(targets, logits, strict=True)).backward()
        recorded = peer.activations_and_grads
        activations, gradients = recorded.activations[0].numpy(), recorded.gradients[0].numpy()
        expected = peer.get_cam_image(images, layer, targets, activations, gradients)
        recorded.activations, recorded.gradients = [], []
        recorded.release()
        with CamExtractor(model, ["gradcam"], target_layer=layer, target=target) as extract:
            assert_close(extract(images, torch.tensor(LABELS))["gradcam"], expected, 1e-6)


def test_a_region_of_a_segmentation():
    """torchvision's FCN: its output is a dict, its logits have places."""
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    from wsol.cam.targets import region_mean

    torch.manual_seed(0)
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=5).eval()
    images = torch.randn(2, 3, 64, 96)
    mask = np.zeros((64, 96), np.float32)
    mask[10:40, 20:50] = 1

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(images)["out"]

    with peers.GradCAM(Plain(), [model.backbone.layer4]) as peer:
        expected = peer(images, [SemanticSegmentationTarget(k, mask) for k in (4, 0)])
    target = region_mean(torch.from_numpy(mask))
    with CamExtractor(model, ["gradcam"], target_layer="backbone.layer4", target=target) as extract:
        found = extract(images, [4, 0])["gradcam"]
        with pytest.raises(InputError, match=r"logits \(2, 5, 64, 96\), so name the class"):
            extract(images)
    assert np.abs(finished(found, images.shape[2:]) - expected).max() < 2e-3


def test_targets_that_do_not_fit():
    from wsol.cam.targets import difference, probability, region_mean

    model, images, _ = on_a_picture()
    with pytest.raises(InputError, match="cam explains a class's logit, not another target; those that can: gradcam"):
        CamExtractor(model, ["gradcam", "cam"], target=probability)
    for target, message in (
        (difference(7), r"difference\(7\): the network has 7 classes"),
        (region_mean(torch.ones(4, 4)), "for logits"),
    ):
        with CamExtractor(model, ["gradcam"], target_layer="layer4", target=target) as extract:
            with pytest.raises(InputError, match=message):
                extract(images)
    logits = torch.zeros(2, 3, 4, 4)
    for mask, message in ((torch.zeros(4, 4), "empty"), (torch.ones(3, 4, 4), "one for each of 2 images, not 3")):
        with pytest.raises(InputError, match=message):
            region_mean(mask)(logits, torch.tensor([0, 1]))


def test_levels_that_do_not_exist():
    model, images, _ = on_a_picture()
    with CamExtractor(model, ["refinecam"], target_layer="layer4", levels=[0, 9]) as extract:
        with pytest.raises(InputError, match="ResNet has no level 9; its levels are 0: layer4, 1: layer3, 2: layer2"):
            extract(images)
    for levels in ([], [-1]):
        with pytest.raises(InputError, match="levels must be numbers of stages from 0 on"):
            CamExtractor(model, ["refinecam"], levels=levels)
    with pytest.raises(InputError, match="aug_smooth has views of its own"):
        CamExtractor(model, ["gradcam"], aug_smooth=True, flip=True)
