"""The real command on the published networks: literally as people type it, on the data sets' own layouts."""

import json
import math

import pytest
import torch
import yaml
from conftest import TinyNet, arguments, checkpoint_content, write_dataset
from test_end_to_end import PUBLISHED, results_without_times, run_command
from test_networks import CONV6, VGG_14, layer

import main as program
from wsol import training
from wsol.backbones import ARCHITECTURES, Architecture
from wsol.classifier import Classifier
from wsol.errors import InputError
from wsol.run import checkpoint


def noise(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    """Tensors of these names and shapes on which activations keep their scale through ReLUs."""
    return {
        name: torch.randn(shape) * math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else torch.zeros(shape)
        for name, shape in shapes.items()
    }


def test_published_commands_on_vgg16(tmp_path):
    """Both commands of the protocol, 1,000 classes, from a checkpoint in wsolevaluation's names."""
    write_dataset(tmp_path, "ILSVRC", labels=[0, 999], images=1, splits=("train", "test"))
    tensors = noise(VGG_14 | CONV6 | layer("fc", 1000, 1024))
    torch.save(
        {
            "architecture": "vgg16",
            "epoch": 7,
            "optimizer": {"state": {}, "param_groups": []},
            "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()},
        },
        tmp_path / "CHECKPOINT",
    )
    command = [{"efficientnet_lite0": "vgg16"}.get(word, word) for word in PUBLISHED]
    environment = {"WANDB_MODE": "offline", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    trained = run_command(*command, cwd=tmp_path, **environment)
    assert trained.returncode == 0, trained.stderr
    assert "vgg16 in its cam form, because CHECKPOINT has it" in trained.stdout
    folder = tmp_path / "EXPERIMENTS/ILSVRC/vgg16_cam_ours"
    results = json.loads((folder / "results.json").read_text())
    assert [(r["method"], r["head"]) for r in results["rows"]] == [("cam", "softmax")] * 2 + [("cam", "sigmoid")]
    assert results["num_classes"] == 1000
    assert yaml.safe_load((folder / "config.yaml").read_text())["classifier_form"] == "cam"
    saved = checkpoint_content(folder)
    assert set(saved["state_dict"]) == set(tensors) | {"fc2.weight", "fc2.bias"}
    assert all(torch.equal(saved["state_dict"][name], tensor) for name, tensor in tensors.items())
    assert not torch.equal(saved["state_dict"]["fc2.weight"], tensors["fc.weight"])
    assert saved["classifier_form"] == "cam" and saved["last_layer"] == "fc"

    evaluated = run_command(*command, "--eval_only", "--eval_checkpoint_type", "last", cwd=tmp_path, **environment)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((folder / "results.json").read_text())["rows"] == results["rows"]

    original = run_command(*command, "--classifier_form", "original", "--override_cache", cwd=tmp_path, **environment)
    assert original.returncode == 2 and "has the cam form of vgg16" in original.stderr
    assert (folder / "results.json").exists()


@pytest.mark.parametrize(
    "architecture, dataset, form, classes, more",
    [
        ("resnet50", "CUB", "boxes", 200, []),
        ("inception_v3", "OpenImages", "masks", 100, ["--large_feature_map"]),
        ("vit", "CARS", "boxes", 196, []),
        ("resnet50", "CARS", "boxes", 196, ["--last_layer", "conv"]),
    ],
)
def test_networks_on_the_data_sets_layouts(tmp_path, architecture, dataset, form, classes, more):
    if dataset == "CARS":
        for split in ("train", "test"):
            write_dataset(tmp_path, dataset, splits=(split,), folder=f"cars_{split}", images=1, labels=[0, 195])
    else:
        write_dataset(tmp_path, dataset, images=1, labels=[0, classes - 1], form=form)
    settings = [
        *arguments(tmp_path, dataset=dataset),
        "--architecture",
        architecture,
        "--pretrained",
        "FALSE",
        "--crop_size",
        "96",
        "--resize_size",
        "112",
        "--batch_size",
        "2",
        "--epochs",
        "1",
        "--methods",
        "cam,gradcam",
        "--heads",
        "sigmoid_clamped",
        *more,
    ]
    results = program.main(settings)
    assert [(r["method"], r["head"], r["clamped"]) for r in results["rows"]] == [
        ("cam", "sigmoid", True),
        ("gradcam", "sigmoid", True),
    ]
    assert results["num_classes"] == classes
    for row in results["rows"]:
        assert row["num_degenerate"] == 0
        assert ("pxap" in row) == (form == "masks") and ("maxboxacc_v2" in row) == (form == "boxes")
    again = program.main(["--root", str(tmp_path / "runs"), "--experiment_name", "run", "--eval_only"])
    assert results_without_times(again) == results_without_times(results)


def test_a_dual_cam_checkpoint_is_evaluated_where_it_lies(tmp_path):
    """--eval_only on a folder that holds nothing but a checkpoint of theirs, its branch included."""
    write_dataset(tmp_path, "CUB", images=1, labels=[0, 199], splits=("val", "test"))
    tensors = noise(VGG_14 | CONV6 | layer("fc", 200, 1024) | layer("fc2", 200, 1024))
    (tmp_path / "runs/theirs").mkdir(parents=True)
    torch.save(
        {
            "architecture": "vgg16",
            "epoch": 7,
            "optimizer": {},
            "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()},
        },
        tmp_path / "runs/theirs/last_checkpoint.pth.tar",
    )
    results = program.main(
        [
            *arguments(tmp_path, dataset="CUB", name="theirs"),
            "--architecture",
            "vgg16",
            "--methods",
            "gradcam",
            "--heads",
            "softmax,sigmoid_clamped",
            "--eval_only",
        ]
    )
    assert len(results["rows"]) == 2 and results["num_classes"] == 200


# ------------------------------------------------------------------- new layers in front of a new head

NECK = ("features.4", "features.5")


@pytest.fixture
def necked():
    """`--architecture necked`: TinyNet whose second convolution and norm come without weights."""

    def builder(wanted):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Classifier(TinyNet(), "fc", target_layer="features.6", neck=NECK)

    ARCHITECTURES["necked"] = Architecture("necked", builder)
    yield
    del ARCHITECTURES["necked"]


@pytest.mark.parametrize("dataset", ["Shapes", "ILSVRC"])
def test_the_vanilla_stage_trains_every_new_layer_and_nothing_else(tmp_path, necked, dataset, monkeypatch):
    write_dataset(tmp_path, dataset)
    started = ARCHITECTURES["necked"].builder(None).network.state_dict()
    tried = []
    real = training.cache_features
    monkeypatch.setattr(training, "cache_features", lambda *a: tried.append(1) or real(*a))
    settings = [
        *arguments(tmp_path, "--augment", "none", "--methods", "cam", dataset=dataset, name="cached"),
        "--architecture",
        "necked",
    ]
    cached = program.main(settings)
    assert tried == [1]  # the branch's stage, not the one that changes the neck
    folder = tmp_path / "runs/cached"
    vanilla = checkpoint.load(folder / "vanilla_last_checkpoint.pth.tar")["state_dict"]
    last = checkpoint.load(folder / "last_checkpoint.pth.tar")["state_dict"]
    for name, tensor in vanilla.items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, started[name]) != name.startswith(NECK), name
        assert torch.equal(tensor, last[name]), name
    assert f"its new layers {', '.join(NECK)}" in (folder / "log.txt").read_text()

    monkeypatch.setattr(training, "features_can_be_cached", lambda *_: False)
    plain = program.main([*settings, "--experiment_name", "plain"])
    assert plain["classification"] == cached["classification"]
    other = checkpoint.load(tmp_path / "runs/plain/last_checkpoint.pth.tar")["state_dict"]
    assert all(torch.allclose(last[name], other[name], atol=1e-5) for name in last)


def test_what_was_cached_is_forgotten_when_the_trunk_learns(tmp_path):
    from test_training import trainer_of

    dual = Classifier(TinyNet(5), "fc", target_layer="features.6").set_trainable(["softmax_head"])
    trainer = trainer_of(torch.randn(6, 3, 32, 32))
    trainer._features_loader(dual)
    first = trainer._features.parts[0]
    trainer._features_loader(dual.set_trainable(["trunk"]))
    with torch.no_grad():
        dual.network.features[0].weight.mul_(2)
    trainer._features_loader(dual.set_trainable(["softmax_head"]))
    assert not (trainer._features.parts[0] == first).all()


# ------------------------------------------------------------------- forms and weights on the command line


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--architecture", "vgg16", "--last_layer", "conv", "--methods", "gradcam"],
            "--last_layer conv: vgg16's original",
        ),
        (
            ["--architecture", "vgg16", "--classifier_form", "original", "--methods", "gradcam,cam"],
            "the method cam needs a head of one linear layer over the 512 channels",
        ),
        (["--architecture", "vit", "--crop_size", "50"], "--crop_size 50: .* does not take such images"),
        (
            ["--architecture", "resnet50", "--pretrained_path", "/nowhere"],
            "--pretrained_path /nowhere: no such file.*download https",
        ),
        (["--pretrained_path", "x.pth", "--pretrained", "FALSE"], "leave one out"),
        (["--architecture", "swin_t", "--pretrained", "FALSE", "--large_feature_map"], "cannot halve the stride"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(shapes, flags, message):
    if "--pretrained" not in flags and "--pretrained_path" not in flags:
        flags = [*flags, "--pretrained", "FALSE"]
    with pytest.raises(InputError, match=message) as caught:
        program.main(arguments(shapes, *flags))
    assert "\n" not in str(caught.value) and not (shapes / "runs").exists()


def test_form_follows_the_methods_without_a_checkpoint(shapes, capsys):
    for methods, form in (("cam,gradcam", "cam"), ("gradcam", "original")):
        program.main(
            arguments(
                shapes,
                "--architecture",
                "inception_v3",
                "--pretrained",
                "FALSE",
                "--methods",
                methods,
                "--crop_size",
                "96",
                "--resize_size",
                "96",
                "--dry_run",
            )
        )
        assert f"inception_v3 in its {form} form, because the methods are {methods}" in capsys.readouterr().out
