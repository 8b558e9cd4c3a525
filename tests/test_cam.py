"""CAM methods against numbers worked out by hand and against grad-cam; hooks, modes and rows."""

import cv2
import numpy as np
import pytest
import torch
import torchvision
from conftest import METHODS, TinyNet
from torch import nn

from wsol import CamExtractor, dualize
from wsol.cam import CAM_METHODS, Option, Variant, cam_options, register, to_scoremaps, variants
from wsol.cam.forward_pass import ForwardPass, HeadView
from wsol.classifier import Classifier, Output
from wsol.errors import InputError
from wsol.layout import Layout

# Runs the network again, by its definition: scorecam for each channel, fullgrad through the trunk, ablationcam once,
# smoothgradcam++ for images with noise.
RUNS_AGAIN = ("scorecam", "ablationcam", "fullgrad", "smoothgradcam++")
HEADS = ["softmax", "softmax_clamped", "sigmoid", "sigmoid_clamped"]


def trained_dual(num_classes: int = 5) -> Classifier:
    """A dual network whose two heads differ."""
    dual = dualize(TinyNet(num_classes), target_layer="features.6").double()
    nn.init.normal_(dual.sigmoid_head.weight)
    return dual.eval()


# ------------------------------------------------------------------- formulas, by hand


class Squares(nn.Module):
    """score = sum_ij A_1^2 + 2 sum_ij A_2: gradients 2 A_1 and 2, written down below."""

    def __init__(self):
        super().__init__()
        self.target = nn.Identity()
        self.fc = nn.Linear(2, 1, bias=False)
        nn.init.constant_(self.fc.weight, 1.0)

    def forward(self, images):
        a = self.target(images[:, :2])
        return self.fc(torch.stack([a[:, 0].square().sum(dim=(1, 2)), 2 * a[:, 1].sum(dim=(1, 2))], dim=1))


ACTIVATIONS = torch.tensor([[[1.0, -2.0], [3.0, 0.0]], [[1.0, 1.0], [0.0, 2.0]]])
G1 = 2 * ACTIVATIONS[0]  # [[2, -4], [6, 0]]
BY_HAND = {
    # mean gradients: (2 - 4 + 6 + 0) / 4 = 1 and 2
    "gradcam": 1 * ACTIVATIONS[0] + 2 * ACTIVATIONS[1],
    # sum g A / sum A: (2 + 8 + 18 + 0) / 2 = 14 and 8 / 4 = 2
    "xgradcam": 14 * ACTIVATIONS[0] + 2 * ACTIVATIONS[1],
    # relu(g) A: only the positive gradients 2 and 6 of the first channel
    "layercam": torch.tensor([[2.0, 0.0], [18.0, 0.0]]) + 2 * ACTIVATIONS[1],
    # alpha = g^2 / (2 g^2 + sum A g^3): channel 1, sum A = 2: g = 2: 4/(8+16) = 1/6; g = 6: 36/(72+432) = 1/14;
    # weight 2/6 + 6/14 = 16/21. Channel 2, sum A = 4, g = 2 everywhere: 4/(8+32) = 0.1, weight 4 * 0.1 * 2 = 0.8
    "gradcam++": 16 / 21 * ACTIVATIONS[0] + 0.8 * ACTIVATIONS[1],
    # g A, negatives cut (both factors change sign together in channel 1), or not
    "hirescam": G1 * ACTIVATIONS[0] + 2 * ACTIVATIONS[1],
    "gradcamelementwise": G1 * ACTIVATIONS[0] + 2 * ACTIVATIONS[1],
    # H A = 2 A in channel 1: mean(2 A - A) = 2 / 4; channel 2 is linear
    "shapleycam": 0.5 * ACTIVATIONS[0] + 2 * ACTIVATIONS[1],
    # s = 1 + 4 + 9 + 2 * 4 = 22; without channel 1: 8, without channel 2: 14
    "ablationcam": 14 / 22 * ACTIVATIONS[0] + 8 / 22 * ACTIVATIONS[1],
    # nothing to compare with: one class
    "finercam": 1 * ACTIVATIONS[0] + 2 * ACTIVATIONS[1],
}


@pytest.mark.parametrize("method", BY_HAND)
def test_formula_by_hand(method):
    model = Squares().double()
    images = torch.cat([ACTIVATIONS, torch.zeros(1, 2, 2)])[None].double()
    with CamExtractor(model, [method], target_layer=model.target) as extract:
        found = extract(images, torch.tensor([0]))[method]
    assert torch.allclose(found[0], BY_HAND[method].double(), atol=1e-5)


def test_cam_is_the_head_weights_over_the_activations():
    dual = trained_dual()
    images = torch.randn(3, 3, 48, 40).double()
    labels = torch.tensor([4, 0, 2])
    with torch.no_grad():
        activations = dual.network.features(images)
    with CamExtractor(dual, ["cam"], heads=HEADS) as extract:
        maps = extract(images, labels)
    for head, module in dual.heads().items():
        for b, k in enumerate(labels):
            weights = module.weight[k].detach()
            plain = sum(weights[c] * activations[b, c] for c in range(16))
            clamped = sum(max(weights[c], 0) * activations[b, c] for c in range(16))
            assert torch.allclose(maps[Variant.of("cam", head)][b], plain)
            assert torch.allclose(maps[Variant.of("cam", f"{head}_clamped")][b], clamped)


def test_gradcam_is_cam_over_the_number_of_pixels_behind_global_average_pooling():
    dual = trained_dual()
    images = torch.randn(2, 3, 48, 40).double()
    with CamExtractor(dual, ["cam", "gradcam"], heads=HEADS) as extract:
        maps = extract(images, torch.tensor([1, 3]))
    for head in ("softmax", "sigmoid"):
        for variant in (head, f"{head}_clamped"):
            cam = maps[Variant.of("cam", variant)]
            assert torch.allclose(cam / cam[0].numel(), maps[Variant.of("gradcam", variant)])


# ------------------------------------------------------------------- the extractor


def test_one_forward_pass_serves_all_rows():
    dual = trained_dual()
    passes = []
    once = [method for method in METHODS if method not in RUNS_AGAIN]
    with CamExtractor(dual, once, heads=HEADS) as extract:
        extract(torch.randn(2, 3, 48, 48).double())  # finds the stages that refinecam reads
        dual.network.features[0].register_forward_hook(lambda *_: passes.append(1))
        extract(torch.randn(2, 3, 48, 48).double())
    assert len(passes) == 1 and len(once) >= 12


@pytest.mark.parametrize(
    "method, passes_expected",
    [
        ("scorecam", 1 + 1 + 4),  # the image, nothing, 2 x 16 masks by 8
        ("ablationcam", 1 + 1),  # the image, and once more to note what precedes the layer
        ("fullgrad", 1 + 1),
    ],
)
def test_both_heads_share_the_passes_of_a_method(method, passes_expected):
    dual = trained_dual()
    nn.init.constant_(dual.network.features[5].bias, 3.0)  # no unit is dead
    passes = []

    class Counting(nn.Conv2d):
        def forward(self, images):
            passes.append(1)
            return super().forward(images)

    dual.network.features[0] = Counting(3, 8, 5, stride=4, padding=2).double()
    with CamExtractor(dual, [method], heads=HEADS, perturb_batch=8) as extract:
        extract(torch.randn(2, 3, 48, 48).double())
    assert len(passes) == passes_expected


def test_trunk_is_not_recorded_and_no_parameter_gets_a_gradient():
    model = TinyNet(5)
    seen = []
    model.features[3].register_forward_hook(lambda _m, _i, output: seen.append(output.requires_grad))
    with CamExtractor(model, ["gradcam"], target_layer=model.features[6]) as extract:
        extract(torch.randn(2, 3, 48, 48))
    assert seen == [False]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_hooks_and_modes_come_back_even_after_an_exception():
    model = TinyNet(5).train()
    model.features[3].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError):
        with CamExtractor(model, ["gradcam"], target_layer=model.features[6]) as extract:
            assert not any(m.training for m in model.modules())
            extract(torch.randn(2, 4, 48, 48))  # four channels
    assert [m.training for m in model.modules()] == modes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert torch.is_grad_enabled()


def test_works_under_no_grad_and_predicts_where_no_class_is_given():
    dual = trained_dual()
    images = torch.randn(4, 3, 48, 48).double()
    with torch.no_grad(), CamExtractor(dual, ["layercam"], heads=["sigmoid"]) as extract:
        quiet = extract(images)
        assert not torch.is_grad_enabled()
        predicted = extract.output.logits.argmax(dim=1)
    with CamExtractor(dual, ["layercam"], heads=["sigmoid"]) as extract:
        told = extract(images, predicted)
    row = Variant("layercam", "sigmoid")
    assert torch.equal(quiet[row], told[row]) and not quiet[row].requires_grad
    assert torch.equal(extract.output.logits, dual(images).logits)


def test_errors():
    model = TinyNet(5)
    images = torch.randn(2, 3, 48, 48)
    with pytest.raises(InputError, match="perturb_batch must be at least 1"):
        CamExtractor(model, ["scorecam"], perturb_batch=0)
    with pytest.raises(InputError, match="unknown CAM method 'gradcan'; did you mean 'gradcam'"):
        CamExtractor(model, ["gradcan"], target_layer=model.features[6])
    with pytest.raises(InputError, match="no sigmoid head"):
        CamExtractor(model, ["gradcam"], target_layer=model.features[6], heads=["sigmoid"])
    with CamExtractor(model, ["gradcam"], target_layer=model.features[6]) as extract:
        with pytest.raises(InputError, match="0..4"):
            extract(images, torch.tensor([0, 5]))
        with pytest.raises(InputError, match="2 class ids|2 images need"):
            extract(images, torch.tensor([0]))
    with pytest.raises(RuntimeError, match="with block"):
        extract(images)
    with pytest.raises(InputError, match=r"Conv2d given as target layer is not a module of this TinyNet.*features\.0"):
        CamExtractor(model, ["gradcam"], target_layer=nn.Conv2d(3, 3, 1))
    model.unused = nn.Conv2d(3, 3, 1)
    with CamExtractor(model, ["gradcam"], target_layer=model.unused) as extract:
        with pytest.raises(InputError, match="never reached"):
            extract(images)
    with CamExtractor(model, ["gradcam"], target_layer=model.fc) as extract:
        with pytest.raises(InputError, match=r"\(B, C, h, w\)"):
            extract(images)
    vgg = torchvision.models.vgg11(num_classes=3)
    with CamExtractor(vgg, ["cam"], target_layer=vgg.features[-1]) as extract:
        with pytest.raises(InputError, match="one linear layer"):
            extract(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    "wrap", [lambda model: model, lambda model: Classifier(model, "fc", target_layer="features.3")]
)
def test_the_target_layer_is_given_as_a_module_or_by_its_name(wrap):
    model = wrap(TinyNet(5))
    layer = (model.network if isinstance(model, Classifier) else model).features[6]
    images = torch.randn(2, 3, 48, 48)
    with CamExtractor(model, ["cam", "layercam"], target_layer=layer) as extract:
        by_module = extract(images)
    with CamExtractor(model, ["cam", "layercam"], target_layer="features.6") as extract:
        by_name = extract(images)
    assert all(torch.equal(by_module[method], by_name[method]) for method in by_module)
    with pytest.raises(InputError, match=r"TinyNet has no module 'features\.66' to be its target layer; did you mean"):
        CamExtractor(model, ["cam"], target_layer="features.66")
    with pytest.raises(InputError, match="must be a module of TinyNet or its dotted name, not int"):
        CamExtractor(model, ["cam"], target_layer=6)


def test_a_method_with_a_hyperparameter_is_one_entry_and_its_formula():
    """No other file knows the option: the extractor takes it as a keyword and the formula reads it."""

    @register("powercam", weights=True, options=(Option("power", 1.0, "powercam: exponent of the gradients"),))
    def powercam(view: HeadView) -> torch.Tensor:
        return view.gradients.mean(dim=(2, 3)) * view.options["power"]

    try:
        dual, images = trained_dual(), torch.randn(2, 3, 48, 48).double()
        with CamExtractor(dual, ["gradcam", "powercam"]) as extract:
            plain = extract(images)
        with CamExtractor(dual, ["gradcam", "powercam"], power=3.0) as extract:
            scaled = extract(images)
        assert cam_options()["power"].default == 1.0
    finally:
        del CAM_METHODS["powercam"]
    assert torch.equal(plain["powercam"], plain["gradcam"])
    assert torch.allclose(scaled["powercam"], 3 * plain["gradcam"])
    with pytest.raises(InputError, match="no CAM method has an option 'power'"):
        CamExtractor(dual, ["gradcam"], power=3.0)


def test_variants_that_exist():
    assert variants(["cam", "layercam"], ["softmax", "softmax_clamped", "sigmoid_clamped"]) == [
        ("cam", "softmax", False, "none"),
        ("cam", "softmax", True, "none"),
        ("cam", "sigmoid", True, "none"),
        ("layercam", "softmax", False, "none"),
        ("layercam", "sigmoid", False, "none"),
    ]
    with pytest.raises(InputError, match="unknown head 'sigmod'; did you mean 'sigmoid'"):
        variants(["cam"], ["sigmod"])


@pytest.mark.parametrize("head", HEADS)
def test_a_variant_has_one_name_wherever_it_is_written(head):
    variant = Variant.of("gradcam++", head)
    assert Variant.parse(str(variant)) == variant and str(variant) == f"gradcam++_{head}"
    record = {"method": "gradcam++", "head": head[:7], "clamped": head.endswith("clamped"), "refine": "none"}
    assert variant.record == record and Variant.from_record(record | {"pxap": 1.0}) == variant
    assert variant.label == f"gradcam++ {head}".replace("_", ", ")


def test_a_method_that_sees_no_head_has_one_variant():
    assert variants(["eigencam", "cam"], ["softmax", "sigmoid_clamped"]) == [
        ("eigencam", "none", False, "none"),
        ("cam", "softmax", False, "none"),
        ("cam", "sigmoid", True, "none"),
    ]
    fem = Variant("fem")
    assert (str(fem), fem.label, fem.head_label, Variant.parse("fem_none")) == ("fem_none", "fem", "no head", fem)
    assert Variant.parse("other_maps") == Variant("other_maps", "none", clamped=False)
    with CamExtractor(trained_dual(), ["fem"], heads=["sigmoid"]) as extract:
        assert list(extract(torch.randn(1, 3, 48, 48).double())) == [fem]


def test_a_formula_takes_gradients_only_when_it_asks_for_them():
    leaf = torch.randn(1, 4, 3, 3, requires_grad=True)
    shared = ForwardPass(
        None, None, None, leaf, Layout("BCHW", (3, 3)), Output(leaf.mean(dim=(2, 3)), None), torch.tensor([1])
    )
    view = HeadView(shared, "softmax", nn.Linear(4, 4))
    assert "gradients" not in vars(view)
    expected = torch.zeros(1, 4, 3, 3)
    expected[0, 1] = 1 / 9
    assert torch.allclose(view.gradients, expected)


# ------------------------------------------------------------------- score maps


@pytest.mark.parametrize("method, flag", [("cam", cv2.INTER_CUBIC), ("gradcam", cv2.INTER_LINEAR)])
@pytest.mark.parametrize("side", [7, 14, 28])
def test_score_maps_are_those_of_opencv(method, flag, side):
    raw = torch.randn(2, side, side)
    found, degenerate = to_scoremaps(raw, method, (224, 224))
    for ours, signed in zip(found.numpy(), raw.numpy(), strict=True):
        signed = signed if method == "cam" else np.maximum(signed, 0)
        large = cv2.resize(signed, (224, 224), interpolation=flag)
        expected = (large - large.min()) / (large.max() - large.min())
        assert np.abs(ours - expected).max() < 1e-5
        assert ours.min() == 0 and ours.max() == 1
    assert found.dtype == torch.float32 and not degenerate.any()


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_constant_negative_and_nan_maps_are_zeros_and_counted(method):
    raw = torch.randn(5, 7, 7)
    raw[0] = 0.1  # constant
    raw[1] = -raw[1].abs() - 0.1  # nothing positive: no map for methods that cut negatives
    raw[2, 3, 3] = float("nan")
    raw[3, 0, 0] = float("inf")
    maps, degenerate = to_scoremaps(raw, method, (224, 224))
    assert degenerate.tolist() == [True, method == "gradcam", True, True, False]
    assert torch.isfinite(maps).all() and (maps[degenerate] == 0).all()


def test_the_leading_eigenvector_is_that_of_a_full_decomposition():
    """Of matrices with a large gap, with none at all (where iteration gives up), of zeros, and of one with NaN."""
    from wsol.cam.activation import _leading_eigenvector

    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60, generator=random, dtype=torch.float64)).Q
    close = torch.linspace(1, 1 + 1e-4, 60, dtype=torch.float64)
    spectra = [torch.logspace(0, -8, 60, dtype=torch.float64).flip(0), close, torch.zeros(60, dtype=torch.float64)]
    matrices = torch.stack([basis * spectrum @ basis.mT for spectrum in spectra])
    found = _leading_eigenvector(torch.cat([matrices, torch.full_like(matrices[:1], torch.nan)]))
    for vector, spectrum in zip(found, spectra, strict=False):
        expected = basis[:, -1] * spectrum[-1].sqrt()
        assert min((vector - expected).abs().max(), (vector + expected).abs().max()) < 1e-8
    assert found[3].isnan().all()
