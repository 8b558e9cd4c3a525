"""Refinement by affinity: the formula against a loop, the guiding layer of many networks, and both commands."""

import functools
import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import METHODS, TinyNet, arguments, write_dataset
from PIL import Image
from torch import nn

import inference
import main
from wsol import CamExtractor, build, dualize
from wsol.cam import Meter, Variant, to_scoremaps, variants
from wsol.cam.affinity import AFFINITY_CANDIDATES, Affinity
from wsol.cam.refinement import refine_by_affinity, resize_maps
from wsol.classifier import Classifier, find_head
from wsol.errors import InputError
from wsol.evaluation import comparison
from wsol.evaluation.comparison import Group, Measured
from wsol.layout import find_guiding_layer, find_layers, find_layout
from wsol.run import contact_sheet, tables

HEADS = ["softmax", "softmax_clamped", "sigmoid", "sigmoid_clamped"]
BOTH = ["none", "affinity"]


# ------------------------------------------------------------------- the formula


def by_loop(values, features, power, steps, centred):
    """The formula for one map (P,) and one image's activations (C, P), word for word in float64."""
    places = [features[:, i] - (features.mean(axis=1) if centred else 0) for i in range(features.shape[1])]
    places = [f / np.linalg.norm(f) if np.linalg.norm(f) > 0 else f * 0 for f in places]
    for _ in range(steps):
        spread = []
        for i, f in enumerate(places):
            weights = [max(f @ other, 0) ** power for other in places]
            total = sum(weights)
            spread.append(sum(w * v for w, v in zip(weights, values, strict=True)) / total if total else values[i])
        values = spread
    return np.array(values)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("power", [1, 2, 6])
def test_the_formula_is_that_of_a_loop(power, steps, centred):
    features, maps = torch.randn(2, 5, 3, 4).double(), torch.randn(2, 3, 3, 4).double()
    if not centred:
        features[:, :, 1, 2] = 0  # a place without any activation
    refined = refine_by_affinity(maps, features, power=power, steps=steps, centred=centred)
    for b in range(2):
        for v in range(3):
            expected = by_loop(
                maps[b, v].flatten().numpy(), features[b].flatten(1).numpy(), power, steps, centred
            ).reshape(3, 4)
            np.testing.assert_allclose(refined[b, v].numpy(), expected, rtol=1e-12, atol=1e-14)
    if not centred:
        assert torch.equal(refined[:, :, 1, 2], maps[:, :, 1, 2])


def test_two_places_by_hand():
    """Directions (1, 0) and (3, 4) / 5: similarity 0.6, squared 0.36; rows divided by 1.36."""
    features = torch.tensor([[2.0, 3.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    refined = refine_by_affinity(torch.tensor([1.0, -1.0]).view(1, 1, 1, 2), features, power=2, centred=False)
    assert torch.allclose(refined.flatten(), torch.tensor([0.64, -0.64]) / 1.36)
    # Centred, the two are opposite: each is similar to itself alone.
    refined = refine_by_affinity(torch.tensor([1.0, -1.0]).view(1, 1, 1, 2), features)
    assert torch.equal(refined.flatten(), torch.tensor([1.0, -1.0]))


def test_a_batch_is_its_images_one_by_one_and_rows_may_come_in_parts():
    features, maps = torch.randn(3, 6, 5, 4), torch.randn(3, 2, 5, 4)
    whole = refine_by_affinity(maps, features, steps=2)
    alone = torch.cat([refine_by_affinity(maps[b : b + 1], features[b : b + 1], steps=2) for b in range(3)])
    assert torch.equal(whole, alone)
    for most_bytes in (1, 3 * 20 * 4, 20 * 20 * 4):  # one row at a time, three (20 is no multiple of it), all
        parts = refine_by_affinity(maps, features, steps=2, most_bytes=most_bytes)
        assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_affinities_stay_within_their_bound(monkeypatch):
    sizes = []
    power_in_place = torch.Tensor.pow_

    def recording(affinity, exponent):
        sizes.append(affinity.numel() * affinity.element_size())
        return power_in_place(affinity, exponent)

    monkeypatch.setattr(torch.Tensor, "pow_", recording)
    refine_by_affinity(torch.randn(4, 2, 12, 12), torch.randn(4, 3, 12, 12), most_bytes=10_000)
    assert max(sizes) <= 10_000 and len(sizes) == 4 * 9  # 17 rows of 144 places at a time


@pytest.mark.parametrize("centred", [True, False])
def test_nothing_to_compare_leaves_the_map_as_it_is(centred):
    """No activation at all, and activations that all places share: centred, nothing but rounding remains of them."""
    maps = torch.randn(1, 1, 3, 3)
    assert torch.equal(refine_by_affinity(maps, torch.zeros(1, 4, 3, 3), centred=centred), maps)
    same = torch.randn(1, 4, 1, 1).expand(1, 4, 3, 3) * 1e3
    expected = maps if centred else maps.mean().expand_as(maps)
    assert torch.allclose(refine_by_affinity(maps, same, centred=centred), expected, atol=1e-6)


def test_what_is_not_finite_stays_visible():
    maps, features = torch.randn(2, 2, 3, 3), torch.randn(2, 4, 3, 3)
    maps[0, 0, 1, 1] = float("nan")
    features[1, 2, 0, 0] = float("inf")
    refined = refine_by_affinity(maps, features)
    assert refined[0, 0].isnan().any() and refined[0, 1].isfinite().all()
    assert to_scoremaps(refined[1], "cam", (8, 8))[1].all()


def test_precision_and_size():
    features = torch.rand(1, 4, 6, 6)
    assert refine_by_affinity(torch.randn(1, 1, 6, 6).half(), features.half()).dtype == torch.float32
    assert refine_by_affinity(torch.randn(1, 1, 6, 6).double(), features).dtype == torch.float64
    small, large = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 24, 24)
    up = torch.nn.functional.interpolate(small, (6, 6), mode="bilinear", align_corners=False)
    assert torch.equal(refine_by_affinity(small, features), refine_by_affinity(up, features))
    down = large.unflatten(2, (6, 4)).unflatten(4, (6, 4)).mean(dim=(3, 5))
    assert torch.allclose(resize_maps(large, (6, 6)), down, atol=1e-6)
    assert refine_by_affinity(large, features).shape == (1, 2, 6, 6)


# ------------------------------------------------------------------- the guiding layer


def guiding_layer(model, size=224):
    classifier = model if isinstance(model, Classifier) else Classifier(model, find_head(model))
    network, images = classifier.network, torch.randn(1, 3, size, size)
    target = classifier.target_layer_name or find_layers(network, classifier.head_name, images)[0]
    return find_guiding_layer(network, classifier.head_name, target, images)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("size", [224, 448])
def test_the_guiding_layer_of_efficientnet_lite0_is_its_80_channel_block(large, size):
    model = build("efficientnet_lite0", 5, pretrained=False, large_feature_map=large)
    layer = guiding_layer(model, size)
    assert layer == "blocks.3"
    with torch.no_grad():
        outputs = []
        model.eval().network.get_submodule(layer).register_forward_hook(lambda _m, _i, out: outputs.append(out))
        model(torch.randn(1, 3, size, size))
    assert outputs[0].shape == (1, 80, size // 16, size // 16)


@pytest.mark.parametrize(
    "make, layer",
    [
        (lambda: build("resnet50", 5, pretrained=False), "layer3"),  # layer4 has stride 16, too
        (lambda: torchvision.models.resnet50(num_classes=5), "layer3"),
        # conv5_3 of the cam form, whose target layer comes after it; in the middle of conv5 in the original form.
        (lambda: build("vgg16", 5, pretrained=False, classifier_form="cam"), "features"),
        (lambda: build("vgg16", 5, pretrained=False, classifier_form="original"), "features.26"),
        (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), "blocks.3"),
        (lambda: timm.create_model("deit_tiny_patch16_224", num_classes=5), "blocks.5"),
        (lambda: torchvision.models.vit_b_32(num_classes=5), "encoder.layers.encoder_layer_5"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=5), "layers.2"),
        (lambda: torchvision.models.swin_t(num_classes=5), "features.5"),
        (lambda: timm.create_model("convnext_atto", num_classes=5), "stages.2"),
        # No layer of stride 16: the target layer.
        (lambda: build("resnet50", 5, pretrained=False, large_feature_map=True), "layer4.2"),
        (lambda: Classifier(TinyNet(5), "fc", target_layer="features.6"), "features.6"),
    ],
)
def test_the_guiding_layer_is_found(make, layer):
    assert guiding_layer(make()) == layer


def test_a_coarser_stride_takes_the_place_of_stride_16():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 6, 4, stride=4), nn.Conv2d(6, 8, 1), nn.Flatten(), nn.Linear(32, 5)
    )
    assert find_guiding_layer(network, "4", "2", torch.randn(1, 3, 64, 64)) == "1"  # stride 32


def test_finding_it_leaves_the_network_as_it_was():
    model = timm.create_model("resnet18", num_classes=5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_guiding_layer(model, "fc", "layer4", torch.randn(1, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


# ------------------------------------------------------------------- the extractor


def trained_dual():
    """A dual network whose two heads differ."""
    dual = dualize(TinyNet(5), target_layer="features.6").double()
    nn.init.normal_(dual.sigmoid_head.weight)
    return dual.eval()


@pytest.mark.parametrize("layer", ["features.2", "features.6"])
def test_refined_maps_are_the_formula_of_the_raw_ones_for_every_method_and_head(layer):
    dual, images = trained_dual(), torch.randn(2, 3, 48, 40).double()
    methods, settings = METHODS, {"power": 3.0, "steps": 2, "centred": False}
    with CamExtractor(
        dual,
        methods,
        heads=HEADS,
        refine=BOTH,
        affinity=Affinity(layer, **settings),
    ) as extract:
        maps = extract(images, [1, 3])
    with CamExtractor(dual, methods, heads=HEADS) as plain:
        expected = plain(images, [1, 3])
    with torch.no_grad():
        features = dual.network.features[: int(layer[-1]) + 1](images)
    assert list(maps) == variants(methods, HEADS, BOTH) and len(maps) == 2 * len(expected)
    for variant, raw in expected.items():
        assert torch.equal(maps[variant], raw)
        refined = refine_by_affinity(raw[:, None], features, **settings)[:, 0]
        found = maps[variant._replace(refine="affinity")]
        assert found.shape == (2, *features.shape[2:]) and torch.allclose(found, refined, atol=1e-12)
        scoremaps, _ = to_scoremaps(found, variant.method, (64, 64))
        assert scoremaps.shape == (2, 64, 64)


def test_one_forward_pass_serves_refined_rows_too():
    dual, passes = trained_dual(), []
    dual.network.features[0].register_forward_hook(lambda *_: passes.append(1))
    meter = Meter()
    with CamExtractor(
        dual, ["cam", "layercam"], heads=HEADS, refine=BOTH, affinity=Affinity("features.2"), meter=meter
    ) as extract:
        extract(torch.randn(2, 3, 48, 48).double())
    assert len(passes) == 1 and list(meter.costs) == ["forward", "cam", "layercam", "affinity"]
    with CamExtractor(dual, ["cam"], refine="affinity") as extract:  # finding the layer takes another pass, once
        extract(torch.randn(2, 3, 48, 48).double())
        extract(torch.randn(2, 3, 48, 48).double())
    assert len(passes) == 1 + 1 + 2 and extract.guiding_layers == {"affinity": "features.6"}


def test_refined_rows_alone():
    dual, images = trained_dual(), torch.randn(2, 3, 48, 48).double()
    with CamExtractor(dual, ["cam", "fem"], refine=["affinity"]) as extract:
        alone = extract(images)
    assert list(alone) == [Variant("cam", "softmax", refine="affinity"), Variant("fem", refine="affinity")]
    with CamExtractor(dual, ["cam", "fem"], refine=BOTH) as extract:
        both = extract(images)
    assert all(torch.equal(both[variant], maps) for variant, maps in alone.items())


class InPlace(nn.Module):
    """The layer after the guiding one works in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 6, 4, stride=4), nn.ReLU(inplace=True)
        self.last, self.fc = nn.Conv2d(6, 8, 2, stride=2), nn.Linear(8, 5)

    def forward(self, images):
        return self.fc(self.last(self.relu(self.stem(images))).mean(dim=(2, 3)))


def test_the_guiding_activations_are_the_layers_own_output():
    model, images = InPlace().eval(), torch.randn(2, 3, 32, 32)
    with CamExtractor(model, ["cam"], "last", refine=BOTH, affinity=Affinity("stem")) as extract:
        maps = extract(images)
    raw = maps[Variant("cam", "softmax")]
    expected = refine_by_affinity(raw[:, None], model.stem(images).detach())[:, 0]
    assert torch.allclose(maps[Variant("cam", "softmax", refine="affinity")], expected, atol=1e-6)


@pytest.mark.parametrize(
    "name, layer, methods",
    [
        ("vit_tiny_patch16_224", "blocks.3", ["cam", "gradcam", "eigencam"]),
        ("swin_tiny_patch4_window7_224", "layers.0", ["gradcam", "fullgrad"]),
    ],
)
def test_any_layout(name, layer, methods):
    """Tokens without their prefix, and channels last; the maps are those of (B, C, h, w) activations."""
    options = {"img_size": 64, "embed_dim": 24, "num_heads": 2, "depth": 4}
    if "swin" in name:
        options = {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
    model = timm.create_model(name, num_classes=5, **options).eval()
    nn.init.normal_(model.get_submodule(find_head(model)).weight)
    images, outputs = torch.randn(2, 3, 64, 64), []
    with CamExtractor(model, methods, refine=BOTH, affinity=Affinity(layer)) as extract:
        maps = extract(images, [0, 3])
    model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: outputs.append(output.detach()))
    model(images)
    (output,) = outputs
    layout = find_layout(tuple(output.shape), (64, 64))
    assert layout.kind == ("BHWC" if "swin" in name else "BNC") and layout.prefix == (0 if "swin" in name else 1)
    features = layout.to_maps(output)
    assert features.shape[2:] == layout.grid
    for variant in variants(methods, ["softmax"]):
        expected = refine_by_affinity(maps[variant][:, None], features)[:, 0]
        assert torch.allclose(maps[variant._replace(refine="affinity")], expected, atol=1e-5), variant


def test_errors_name_the_setting():
    dual, images = trained_dual(), torch.randn(1, 3, 48, 48).double()
    with pytest.raises(InputError, match="unknown refinement 'affinty'; did you mean 'affinity'"):
        CamExtractor(dual, ["cam"], refine=["affinty"])
    for setting, match in (({"power": 0}, "above 0"), ({"steps": 0}, "at least 1")):
        with pytest.raises(InputError, match=match):
            CamExtractor(dual, ["cam"], refine=BOTH, affinity=Affinity(**setting))
    with pytest.raises(InputError, match=r"TinyNet has no module 'features\.66' to be its affinity layer"):
        CamExtractor(dual, ["cam"], refine=BOTH, affinity=Affinity("features.66"))
    with CamExtractor(dual, ["cam"], refine=BOTH, affinity=Affinity(dual.network.fc)) as extract:
        with pytest.raises(InputError, match="the affinity layer Linear gives no"):
            extract(images)
    dual.network.unused = nn.Conv2d(3, 3, 1)
    with CamExtractor(dual, ["cam"], refine=BOTH, affinity=Affinity("unused")) as extract:
        with pytest.raises(InputError, match="never reached the affinity layer unused"):
            extract(images)
    assert not any(module._forward_hooks for module in dual.modules())


# ------------------------------------------------------------------- names


@pytest.mark.parametrize("head", [*HEADS, "none"])
@pytest.mark.parametrize("refine", BOTH)
def test_a_variant_has_one_name_wherever_it_is_written(head, refine):
    variant = Variant.of("gradcam++", head, refine)
    assert str(variant) == f"gradcam++_{head}" + ("_affinity" if refine == "affinity" else "")
    assert Variant.parse(str(variant)) == variant and variant.record["refine"] == refine
    assert Variant.from_record(variant.record | {"pxap": 1.0}) == variant
    assert variant.baseline == Variant("gradcam++", "none" if head == "none" else "softmax")


def test_labels_and_older_files():
    refined = Variant.parse("cam_sigmoid_clamped_affinity")
    assert refined == Variant("cam", "sigmoid", True, "affinity")
    assert (refined.label, refined.head_label) == ("cam sigmoid, clamped, refined", "sigmoid, clamped, refined")
    assert Variant("fem", refine="affinity").label == "fem, refined"
    assert Variant.from_record({"method": "cam", "head": "softmax", "clamped": False}) == Variant("cam", "softmax")
    assert Variant.parse("their_affinity") == Variant("their_affinity")  # a folder of somebody's own


def test_a_sheet_has_rows_for_each_refinement():
    heads = ["softmax", "softmax_clamped"]
    maps = {row: np.random.rand(7, 7).astype(np.float32) for row in variants(["cam", "layercam"], heads, BOTH)}
    columns = contact_sheet._columns(maps, heads, BOTH)
    assert [str(cell[0]) for cell in columns["cam"]] == [
        "cam_softmax",
        "cam_softmax_clamped",
        "cam_softmax_affinity",
        "cam_softmax_clamped_affinity",
    ]
    assert [cell and str(cell[0]) for cell in columns["layercam"]] == [
        "layercam_softmax",
        None,
        "layercam_softmax_affinity",
        None,
    ]
    image = np.zeros((60, 80, 3), np.uint8)
    draw = functools.partial(contact_sheet.contact_sheet, image, "x", [("a", 1.0)], maps, heads)
    assert draw((), BOTH).shape[0] > draw().shape[0]


def test_refined_rows_are_compared_with_the_unrefined_softmax_row():
    values = {
        "cam_softmax": 70.0,
        "cam_softmax_clamped_affinity": 75.5,
        "fem_none": 40.0,
        "fem_none_affinity": 38.0,
        "layercam_softmax_affinity": 60.0,  # its unrefined row was not requested
    }
    rows = [Variant.parse(name).record | {"maxboxacc_v2": value} for name, value in values.items()]
    lines = tables.results_table({"rows": rows, "center": {"maxboxacc_v2": 50.0}}).splitlines()
    cells = [line.split()[-1] for line in lines[2:] if line.strip()]
    assert cells == ["70.0", "+5.5", "40.0", "-2.0", "60.0", "50.0"]
    group = Group("A", [], {(name, "pxap"): [Measured(value, None)] for name, value in values.items()})
    lines = comparison.table([group]).splitlines()
    cells = [line.split()[-1] for line in lines[2:] if line.strip()]
    assert cells == ["70.0", "+5.5", "40.0", "-2.0", "60.0"]


# ------------------------------------------------------------------- the commands


def test_a_run_with_refined_rows_keeps_the_others_to_the_last_digit(shapes, capsys):
    wanted = ["--methods", "cam,layercam,fem", "--epochs", "1", "--fidelity", "confidence,pointing", "--save_scoremaps"]
    plain = main.main(arguments(shapes, *wanted, name="plain"))
    capsys.readouterr()
    refined = main.main(arguments(shapes, *wanted, "--refine", "none,affinity", name="refined"))
    printed = capsys.readouterr()
    rows = {str(Variant.from_record(row)): row for row in refined["rows"]}
    assert list(rows) == [str(row) for row in variants(["cam", "layercam", "fem"], HEADS[:2] + HEADS[3:], BOTH)]
    assert [row["refine"] for row in plain["rows"]] == ["none"] * len(plain["rows"])
    assert [row for row in refined["rows"] if row["refine"] == "none"] == plain["rows"]
    assert plain["classification"] == refined["classification"] and "affinity_layer" not in plain
    assert refined["affinity_layer"] == "features.6" and "affinity" in refined["cost"]
    assert "affinity" not in plain["cost"]
    table = printed.out + printed.err
    assert "softmax, clamped, refined" in table and "no head, refined" in table
    folder = shapes / "runs" / "refined"
    saved = {path.name for path in (folder / "scoremaps" / "test").iterdir()}
    assert saved == set(rows)
    assert json.loads((folder / "results.json").read_text())["rows"] == json.loads(json.dumps(refined["rows"]))
    with np.load(folder / "per_image.npz") as arrays:
        assert "cam_sigmoid_clamped_affinity/histograms" in arrays.files
    assert "cam_sigmoid_clamped_affinity" in (folder / "per_class.csv").read_text()
    assert rows["cam_softmax_affinity"]["fidelity"]["softmax"]["avg_drop"] >= 0
    lines = {name: (shapes / "runs" / name / "metrics.jsonl").read_text().splitlines() for name in ("plain", "refined")}
    figures = {name: [json.loads(line) for line in lines[name]] for name in lines}
    for name in figures:
        for line in figures[name]:
            line.pop("seconds", None)
    assert figures["plain"] == figures["refined"]  # validation looks at the unrefined map


def test_an_affinity_layer_is_checked_before_training(shapes):
    wanted = ["--refine", "affinity", "--affinity_layer"]
    with pytest.raises(InputError, match=r"no module 'features\.77' to be its affinity layer"):
        main.main(arguments(shapes, *wanted, "features.77"))
    with pytest.raises(InputError, match="the affinity layer Linear gives no"):
        main.main(arguments(shapes, *wanted, "fc"))
    with pytest.raises(InputError, match="--refine: unknown name 'afinity'; did you mean 'affinity'"):
        main.main(arguments(shapes, "--refine", "afinity"))
    assert not (shapes / "runs").exists()


def test_the_command_for_pictures_draws_refined_maps(tmp_path):
    Image.fromarray(np.random.randint(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    settings = "--methods cam,fem --heads softmax,softmax_clamped --refine none,affinity --affinity_layer features.2"
    out = tmp_path / "maps"
    inference.main(
        [
            *(str(tmp_path / "a.png"), "--out", str(out), "--architecture", "tiny", "--crop_size", "48", "--save_npy"),
            *("--workers", "0", "--affinity_power", "3", "--affinity_steps", "2", "--affinity_centred", "FALSE"),
            *settings.split(),
        ]
    )
    rows = ["cam_softmax", "cam_softmax_clamped", "fem_none"]
    assert {path.name for path in out.iterdir()} == {"grid", *rows, *(f"{row}_affinity" for row in rows)}
    assert np.load(out / "cam_softmax" / "a.npy").shape == (6, 6)
    assert np.load(out / "cam_softmax_affinity" / "a.npy").shape == (12, 12)
    with Image.open(out / "fem_none_affinity" / "a.jpg") as overlay:
        assert overlay.size == (90, 60)


# ------------------------------------------------------------------- places, and a setting chosen on val


@pytest.mark.parametrize(
    "make, layers",
    [
        (lambda: build("efficientnet_lite0", 5, pretrained=False), ["blocks.2", "blocks.3", "blocks.4", "bn2"]),
        (lambda: build("resnet50", 5, pretrained=False), ["layer2", "layer3", "layer4.2", "layer4.2"]),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, embed_dim=24, num_heads=2, depth=4),
            ["blocks.1", "blocks.1", "blocks.3.norm1", "blocks.3.norm1"],
        ),
        (lambda: Classifier(TinyNet(5), "fc", target_layer="features.6"), ["features.4"] + ["features.6"] * 3),
    ],
)
def test_places_that_every_network_has(make, layers):
    places = ["stride8", "stride16", "stride16:last", "target"]
    affinity = {place: Affinity(place) for place in places}
    with CamExtractor(make(), ["gradcam"], refine=places, affinity=affinity) as extract:
        maps = extract(torch.randn(1, 3, 224, 224))
    assert [extract.guiding_layers[place] for place in places] == layers
    assert list(maps) == [Variant("gradcam", "softmax", refine=place) for place in places]


def test_several_affinities_in_one_pass_are_those_alone():
    dual, images = trained_dual(), torch.randn(2, 3, 48, 48).double()
    several = {"a": Affinity("features.2", 2.0), "b": Affinity("features.6", 1.0, 3, False)}
    with CamExtractor(dual, ["cam", "fem"], heads=HEADS, refine=["none", *several], affinity=several) as extract:
        together = extract(images, [1, 3])
    for name, affinity in several.items():
        with CamExtractor(dual, ["cam", "fem"], heads=HEADS, refine=["affinity"], affinity=affinity) as extract:
            alone = extract(images, [1, 3])
        assert all(torch.equal(together[variant._replace(refine=name)], maps) for variant, maps in alone.items())
    assert len(together) == 3 * len(alone)


def test_only_some_methods_are_refined(shapes):
    names = [str(row) for row in variants(["cam", "layercam"], ["softmax"], BOTH, refined_methods=["cam"])]
    assert names == ["cam_softmax", "cam_softmax_affinity", "layercam_softmax"]
    flags = ["--methods", "cam,layercam", "--refine", "none,affinity", "--bootstrap", "0", "--epochs", "1"]
    results = main.main(arguments(shapes, *flags, "--refined_methods", "cam"))
    assert {row["method"] for row in results["rows"] if row["refine"] == "affinity"} == {"cam"}
    with pytest.raises(InputError, match="--refined_methods: unknown name 'gradcam'"):
        main.parse_args([*flags, "--refined_methods", "gradcam"])


def val_figures(monkeypatch, by_refinement: dict[str, float]) -> list[tuple]:
    """Let the val split say that each refinement localizes this well; others have 0. Returns the calls."""
    calls = []

    def figures(_config, _data, _model, _device, heads, *, refine=("none",), affinity=None):
        calls.append((heads, tuple(refine)))
        return [by_refinement.get(name, 0.0) for name in refine]

    monkeypatch.setattr(main, "val_figures", figures)
    return calls


CHOICE = ["--refine", "none,affinity", "--affinity_choice", "val", "--methods", "cam", "--bootstrap", "0"]


def test_the_best_refinement_on_val_is_used(shapes, monkeypatch, capsys):
    best = AFFINITY_CANDIDATES[3]
    calls = val_figures(monkeypatch, {"none": 50.0, str(best): 61.25, str(AFFINITY_CANDIDATES[4]): 61.25})
    results = main.main(arguments(shapes, *CHOICE))
    assert calls == [(["sigmoid_clamped"], ("none", *map(str, AFFINITY_CANDIDATES)))]
    affinity = results["affinity"]
    assert affinity["setting"] == best.record == {"layer": "stride8", "power": 1.0, "steps": 1, "centred": True}
    assert Affinity.from_record(json.loads(json.dumps(affinity["setting"]))) == best
    assert [candidate["setting"] for candidate in affinity["candidates"]] == [
        None,
        *(settings.record for settings in AFFINITY_CANDIDATES),
    ]
    assert results["affinity_layer"] == "features.4"
    printed = capsys.readouterr().out
    assert tables.affinity_table(affinity) in printed
    assert ["stride8", "1.0", "1", "True", "61.2", "chosen"] in [line.split() for line in printed.splitlines()]
    monkeypatch.undo()
    given = ["--affinity_choice", "given", "--affinity_layer", "stride8"]
    again = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only"]
    assert main.main([*again, *given])["rows"] == results["rows"]


def test_without_a_gain_on_val_nothing_is_refined(shapes, monkeypatch, capsys):
    val_figures(monkeypatch, {"none": 50.0, str(AFFINITY_CANDIDATES[0]): 50.0})
    results = main.main(arguments(shapes, *CHOICE))
    assert results["affinity"]["setting"] is None and {row["refine"] for row in results["rows"]} == {"none"}
    assert "affinity_layer" not in results
    assert "no refinement localizes better on val than the maps as they are" in capsys.readouterr().out


def test_a_choice_needs_a_val_split(tmp_path, capsys):
    root = write_dataset(tmp_path, "Shapes", splits=("train", "test"))
    with pytest.raises(InputError, match="--affinity_choice val: .*Shapes has no val split; add one, or give --affin"):
        main.main(arguments(root, *CHOICE))
    assert not (root / "runs").exists()
    flags = [
        flag for flag in arguments(root, "--methods", "cam", "--bootstrap", "0") if flag not in ("--refine", "none")
    ]
    flags = [flag for flag in flags if flag not in ("--branch_choice", "given")]
    results = main.main(flags)  # by default, both choices are given up
    assert results["branch"]["setting"]["weights"] == "free" and "affinity" not in results
    assert {row["refine"] for row in results["rows"]} == {"none", "affinity"}
    printed = capsys.readouterr().out
    assert "--branch_choice given, with the defaults of --branch_weights" in printed
    assert "--affinity_choice given, with the defaults of --affinity_layer" in printed


def test_the_choice_measures_what_the_settings_give(shapes):
    """The figures of the choice are those that a run with the setting has on val: the same function, other names."""
    program = arguments(shapes, *CHOICE, "--cam_curve_interval", "0.1")
    results = main.main(program)
    config = main.parse_args(program)
    data = main.read_data(config, None)
    model, _ = main.build_model(config, data, main.Checkpoint("eval", shapes / "runs/run/last_checkpoint.pth.tar"))
    device = torch.device("cpu")
    for candidate in results["affinity"]["candidates"][1:3]:
        affinity = Affinity.from_record(candidate["setting"])
        (figure,) = main.val_figures(
            config, data, model.eval(), device, ["sigmoid_clamped"], refine=["affinity"], affinity=affinity
        )
        assert figure == pytest.approx(candidate["val"]["maxboxacc_v2"])
