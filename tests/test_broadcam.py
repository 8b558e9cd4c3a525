"""BroadCAM in the CAM engine and in a run: its maps, what they do not depend on, what is kept and found again."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TinyNet, arguments

import inference
import main as program
from wsol import CamExtractor, build, dualize
from wsol.cam.broadcam import Fitted, fit_broadcam
from wsol.classifier import Classifier
from wsol.datasets.load import part_of_each_class
from wsol.datasets.reader import SplitMetadata
from wsol.errors import InputError
from wsol.run import fitted

CPU = torch.device("cpu")


def tiny(classes=5):
    return Classifier(TinyNet(classes), "fc", target_layer="features.6").eval()


def batches(images, labels, size):
    return [
        (images[i : i + size], labels[i : i + size], torch.arange(i, min(i + size, len(images))))
        for i in range(0, len(images), size)
    ]


def maps_of(model, weight, images, classes, **more):
    with CamExtractor(model, ["broadcam"], fitted={"broadcam": weight}, **more) as extract:
        return extract(images, classes)["broadcam"]


def test_the_map_is_the_weighted_sum_of_both_stages():
    """resnet18 of timm: the last two stages differ in size, so the coarse channels are brought to the fine ones'."""
    model = build("resnet18", 7, pretrained=False).eval()
    images, classes = torch.randn(2, 3, 64, 64), torch.tensor([3, 6])
    seen = {}
    for name in ("layer3", "layer4"):
        model.network.get_submodule(name).register_forward_hook(
            lambda _layer, _inputs, output, name=name: seen.__setitem__(name, output)
        )
    weight = torch.randn(7, 512 + 256, dtype=torch.float64)
    found = maps_of(model, weight, images, classes)
    late, early = seen["layer4"].relu(), seen["layer3"].relu()
    both = torch.cat([F.interpolate(late, early.shape[-2:], mode="bilinear", align_corners=False), early], dim=1)
    expected = (both * weight.float()[classes][:, :, None, None]).sum(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with CamExtractor(model, ["broadcam"], levels=[0, 1]) as extract:
        features = extract.level_features(images)
    torch.testing.assert_close(features, torch.cat([late.mean((2, 3)), early.mean((2, 3))], dim=1))


def test_stages_that_share_a_stride_are_two():
    """Our resnet50 has layer3 and layer4 at one stride."""
    with CamExtractor(build("resnet50", 3, pretrained=False), ["broadcam"]) as extract:
        assert extract.level_features(torch.randn(1, 3, 64, 64)).shape == (1, 2048 + 1024)
        assert extract.level_layers == ["layer4.2", "layer3"]


def test_a_vision_transformer_has_one_stage():
    model = build("vit_tiny_patch16_224", 4, pretrained=False).eval()
    images = torch.randn(3, 3, 224, 224)
    found = fit_broadcam(model, batches(images, torch.tensor([0, 1, 3]), 2), CPU, step=8)
    assert found.weight.shape == (4, 192) and len(found.layers) == 1
    assert maps_of(model, found.weight, images, [0, 1, 2]).shape == (3, 14, 14)


def test_the_head_changes_no_map():
    images, labels = torch.randn(8, 3, 48, 48), torch.arange(8) % 5
    model = tiny()
    found = fit_broadcam(model, batches(images, labels, 8), CPU)
    before = maps_of(model, found.weight, images, labels)
    with torch.no_grad():
        model.network.fc.weight.normal_()
        model.network.fc.bias.normal_()
    again = fit_broadcam(model, batches(images, labels, 3), CPU)
    torch.testing.assert_close(again.weight, found.weight, rtol=1e-7, atol=1e-9)
    assert torch.equal(maps_of(model, found.weight, images, labels), before)
    dual = dualize(model)
    with CamExtractor(dual, ["broadcam"], heads=["softmax", "sigmoid_clamped"], fitted={"broadcam": found.weight}) as e:
        assert [str(variant) for variant in e(images, labels)] == ["broadcam_none"]


def test_views_are_added():
    model, images, classes = tiny(), torch.randn(2, 3, 48, 48), [0, 3]
    weight = torch.randn(5, 16, dtype=torch.float64)
    both = maps_of(model, weight, images, classes, levels=[0], scales=[1.0, 2.0], flip=True)
    plain, mirrored = (maps_of(model, weight, seen, classes, levels=[0]) for seen in (images, images.flip(-1)))
    large = F.interpolate(images, (96, 96), mode="bilinear", align_corners=False, antialias=True)
    larger = [maps_of(model, weight, seen, classes, levels=[0]) for seen in (large, large.flip(-1))]
    small = F.interpolate((plain + mirrored.flip(-1))[:, None], both.shape[1:], mode="bilinear", align_corners=False)
    expected = small[:, 0].relu() + (larger[0] + larger[1].flip(-1)).relu()  # each scale's negative places are cut
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-4)
    assert float((both - small[:, 0] - larger[0] - larger[1].flip(-1)).abs().max()) > 0.01


def test_labels_may_be_several():
    images = torch.randn(6, 3, 48, 48)
    labels = (torch.rand(6, 5) < 0.5).float()
    of_one = fit_broadcam(tiny(), batches(images, labels.argmax(dim=1), 2), CPU)
    assert fit_broadcam(tiny(), batches(images, labels, 4), CPU).weight.shape == of_one.weight.shape


def test_what_does_not_fit_is_named():
    images = torch.randn(2, 3, 48, 48)
    with (
        pytest.raises(InputError, match="broadcam is fitted to training images first"),
        CamExtractor(tiny(), ["broadcam"]) as e,
    ):
        e(images)
    with pytest.raises(InputError, match="fitted to 3 channels, and the levels have"):
        maps_of(tiny(), torch.zeros(5, 3, dtype=torch.float64), images, [0, 1], levels=[0])
    with pytest.raises(InputError, match="fitted to 2 classes and has no map of 4"):
        maps_of(tiny(), torch.zeros(2, 16, dtype=torch.float64), images, [0, 4], levels=[0])


# ------------------------------------------------------------------- a run


def rows(results):
    return {f"{row['method']}_{row['head']}_{row['clamped']}": row for row in results["rows"]}


def test_a_run_fits_keeps_and_finds_again(shapes, capsys):
    flags = ["--methods", "broadcam,gradcam", "--fidelity", "confidence,pointing", "--bls_step", "4"]
    results = program.main(arguments(shapes, *flags))
    assert "broadcam: fitted to 12 images and 24 features" in capsys.readouterr().out
    assert rows(results)["broadcam_none_False"]["maxboxacc_v2"] > 0
    # gradcam's rows, and the choice of `best`, are those of a run without it
    without = program.main(arguments(shapes, "--methods", "gradcam", *flags[2:4], name="without"))
    with_it = {name: row for name, row in rows(results).items() if not name.startswith("broadcam")}
    assert json.dumps(with_it) == json.dumps(rows(without))
    metrics = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (shapes / f"runs/{name}/metrics.jsonl").open()
        ]
        for name in ("run", "without")
    ]
    assert metrics[0] == metrics[1]
    # evaluated again, without the training images
    (shapes / "metadata/Shapes/train").rename(shapes / "away")
    again = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only"]
    assert program.main(again)["rows"] == results["rows"] and not (shapes / "runs/run/eval-1").exists()
    with pytest.raises(InputError, match="train"):  # another penalty needs them
        program.main([*again, "--bls_alpha", "3"])
    (shapes / "away").rename(shapes / "metadata/Shapes/train")
    other = program.main([*again, "--bls_alpha", "3"])
    assert (shapes / "runs/run/eval-1" / fitted.FILE).is_file()
    assert rows(other)["broadcam_none_False"] != rows(results)["broadcam_none_False"]
    # pictures
    picture = str(next((shapes / "dataset/Shapes/test/0").glob("?.png")))
    ckpt = str(shapes / "runs/run/last_checkpoint.pth.tar")
    inference.main(
        [picture, "--ckpt", ckpt, "--out", str(shapes / "maps"), "--methods", "broadcam", "--crop_size", "48"]
    )
    assert len(list((shapes / "maps/broadcam_none").iterdir())) == 1
    with pytest.raises(InputError, match="give the --ckpt of a run of main.py with --methods broadcam"):
        inference.main([picture, "--architecture", "tiny", "--out", str(shapes / "other"), "--methods", "broadcam"])
    ckpt = str(shapes / "runs/without/last_checkpoint.pth.tar")
    capsys.readouterr()
    few = ["--sscam_samples", "1"] if "sscam_samples" in inference.parse_picture_args([picture, "--out", "x"]) else []
    inference.main(
        [picture, "--ckpt", ckpt, "--out", str(shapes / "all"), "--methods", "all", "--crop_size", "48", *few]
    )
    assert "broadcam is left out: it is fitted to training images" in capsys.readouterr().out


def test_all_methods_of_a_run_without_a_fit(shapes, capsys):
    program.main(arguments(shapes, "--train_only"))
    again = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only", "--methods"]
    program.main([*again, "gradcam,broadcam"])
    assert (shapes / "runs/run" / fitted.FILE).is_file()
    (shapes / "runs/run" / fitted.FILE).unlink()
    capsys.readouterr()
    from config import parse_args

    config = parse_args([*again, "all"])
    run = program.RunFolder(str(shapes / "runs"), "run", must_exist=True)
    assert program.find_fitted(config, run) is None and "broadcam" not in config.methods
    assert "broadcam is left out of all methods" in capsys.readouterr().out or not config.methods


def test_broadcam_alone_chooses_by_gradcam(shapes):
    program.main(arguments(shapes, "--methods", "broadcam", "--branch_choice", "val", "--epochs", "1"))
    lines = [json.loads(line) for line in (shapes / "runs/run/metrics.jsonl").open()]
    program.main(arguments(shapes, "--methods", "gradcam", "--branch_choice", "val", "--epochs", "1", name="gradcam"))
    expected = [json.loads(line) for line in (shapes / "runs/gradcam/metrics.jsonl").open()]
    assert [line.get("maxboxacc_v2") for line in lines] == [line.get("maxboxacc_v2") for line in expected]


def test_another_network_is_fitted_anew(shapes, capsys):
    results = program.main(arguments(shapes, "--methods", "broadcam"))
    kept = fitted.load(shapes / "runs/run")
    assert kept.fits(program.build_network(program.parse_args(arguments(shapes)), None, 3)) is True
    fitted.save(shapes / "runs/run", kept.fitted, kept.settings, tiny(3))
    again = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only"]
    assert program.main(again)["rows"] == results["rows"]
    assert "is of another checkpoint's features: broadcam is fitted anew" in capsys.readouterr().out
    whole = ["--model_structure", "vanilla", "--unfreeze_layer", "all", "--methods", "broadcam", "--save_every", "1"]
    program.main(arguments(shapes, *whole, name="whole"))
    program.main([*again[:3], "whole", "--eval_only", "--eval_checkpoint_type", "1"])
    assert (shapes / "runs/whole/eval-1" / fitted.FILE).is_file()


def test_a_damaged_fit_is_named(tmp_path):
    path = tmp_path / fitted.FILE
    assert fitted.load(tmp_path) is None
    fitted.save(tmp_path, Fitted(torch.ones(3, 4, dtype=torch.float64), ["a"]), {"bls_step": 4}, tiny())
    assert fitted.load(tmp_path).settings == {"bls_step": 4} and fitted.load(tmp_path).fitted.layers == ["a"]
    whole = path.read_bytes()
    for content in (whole[:-8], b"", whole[: len(whole) // 2], whole.replace(b"settings", b"settangs")):
        path.write_bytes(content)
        with pytest.raises(InputError, match="broadcam.safetensors"):
            fitted.load(tmp_path)
    fitted.save(tmp_path, Fitted(torch.full((3, 4), torch.nan, dtype=torch.float64), []), {}, tiny())
    with pytest.raises(InputError, match="no finite"):
        fitted.load(tmp_path)


# ------------------------------------------------------------------- --proportion


def test_parts_are_nested_and_have_every_class(tmp_path):
    labels = np.repeat(np.arange(6), [100, 100, 50, 10, 3, 1])
    split = SplitMetadata("train", [str(i) for i in range(len(labels))], labels, tmp_path, tmp_path)
    before = set()
    for per_cent in (0.5, 1, 2, 5, 8, 10, 20, 50, 80, 99):
        part = part_of_each_class(split, per_cent, seed=3)
        ids = {int(i) for i in part.image_ids}
        assert before <= ids and [int(i) for i in part.image_ids] == sorted(ids)
        counts = np.bincount(labels[sorted(ids)], minlength=6)
        assert counts.tolist() == [max(round(n * per_cent / 100), 1) for n in (100, 100, 50, 10, 3, 1)]
        before = ids
    assert part_of_each_class(split, 10, seed=4).image_ids != part_of_each_class(split, 10, seed=3).image_ids


def test_a_run_trains_on_its_part(shapes, capsys):
    program.main(arguments(shapes, "--proportion", "50", "--methods", "broadcam"))
    out = capsys.readouterr().out
    assert "6 train, 12 val, 12 test" in out and "broadcam: fitted to 6 images" in out
    for wrong in ("0", "200", "-3", "half"):
        with pytest.raises(SystemExit):
            program.main(arguments(shapes, "--proportion", wrong, name="other"))
        assert "argument --proportion: " in capsys.readouterr().err
