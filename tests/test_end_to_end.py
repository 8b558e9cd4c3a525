"""The real command: main() on a tiny network in this process, and `python main.py` as a person types it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from conftest import (
    ROOT,
    arguments,
    checkpoint_content,
    files_below,
    killed_after,
    metrics_without_times,
    write_dataset,
)
from PIL import Image

import main as program
from wsol import build, training
from wsol.cam import CAM_METHODS, all_methods
from wsol.errors import InputError
from wsol.evaluation.per_image import PerImage


def run_command(*argv: str, cwd, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *argv],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=600,
    )


KEYS_OF_SHARES = ["maxboxacc", "maxboxacc_v1", "top1"] + [
    f"{which}_loc{end}" for which in ("gt", "top1") for end in ("", "_best", "_val")
]


def results_without_times(results: dict) -> dict:
    return {key: value for key, value in results.items() if key not in ("seconds", "cost", "config")}


# ------------------------------------------------------------------- a whole run


@pytest.fixture
def finished(shapes):
    results = program.main(arguments(shapes, "--save_scoremaps", "--save_every", "1"))
    return shapes, shapes / "runs" / "run", results


def test_a_run_leaves_everything_in_its_folder(finished):
    _, folder, results = finished
    names = {p.name for p in folder.iterdir()}
    assert {
        "config.yaml",
        "log.txt",
        "metrics.jsonl",
        "results.json",
        "results.csv",
        "per_class.csv",
        "per_image.npz",
        "figures",
        "scoremaps",
        "last_checkpoint.pth.tar",
        "best_checkpoint.pth.tar",
        "1_checkpoint.pth.tar",
        "2_checkpoint.pth.tar",
        "vanilla_last_checkpoint.pth.tar",
    } <= names
    figures = {p.name for p in (folder / "figures").iterdir()}
    assert figures == {
        "maps_cam.png",
        "maps_gradcam.png",
        "maps_gradcam++.png",
        "maps_eigencam.png",
        "box_accuracy.png",
    }
    for path in (folder / "figures").iterdir():
        assert np.asarray(Image.open(path).convert("L")).std() > 10  # not a blank page

    saved = json.loads((folder / "results.json").read_text())
    assert saved == json.loads(json.dumps(results))
    assert saved["schema"] == 1 and saved["dataset"] == "Shapes" and saved["num_images"] == 12
    assert set(saved["seconds"]) == {"train", "inference", "evaluation"}
    assert set(saved["classification"]) == {"top1"}  # top5 says nothing with three classes
    rows = [(r["method"], r["head"], r["clamped"]) for r in saved["rows"]]
    assert len(rows) == len(set(rows)) == 3 * 3 + 1
    assert ("eigencam", "none", False) in rows and ("cam", "sigmoid", True) in rows
    for row in saved["rows"]:
        assert {
            "maxboxacc",
            "maxboxacc_v2",
            "maxboxacc_v1",
            "gt_loc",
            "gt_loc_best",
            "gt_loc_val",
            "top1_loc",
            "top1_loc_best",
            "top1_loc_val",
            "pxap",
            "tau",
            "normalization",
            "num_degenerate",
        } <= set(row)
        assert row["maxboxacc_v2"] == pytest.approx(np.mean(list(row["maxboxacc"].values())))
        assert 0 <= row["top1_loc"] <= row["gt_loc"] <= row["gt_loc_best"] == row["maxboxacc_v1"] <= 100
    assert {"maxboxacc_v2", "pxap"} <= set(saved["center"]) and "top1_loc" not in saved["center"]

    with open(folder / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["maxboxacc_50"]) for line in table] == [r["maxboxacc"]["50"] for r in saved["rows"]]

    # How each number was made, and how far it would move with other images.
    assert saved["contours"]["maxboxacc_v2"] == "multi" and saved["contours"]["gt_loc"] == "single"
    for row in [*saved["rows"], saved["center"]]:
        assert {*row["interval"]} >= {"maxboxacc", "maxboxacc_v2", "gt_loc", "gt_loc_best", "pxap"}
        low, high = row["interval"]["maxboxacc"]["30"]
        assert 0 <= low <= row["maxboxacc"]["30"] <= high <= 100
    targets = [row.get("cam_target") for row in [*saved["rows"], saved["center"]]]
    assert targets == ["gt"] * 9 + [None, None]  # eigencam sees no class, the centre baseline neither
    intervals = saved["intervals"]
    assert intervals["resamples"] == 100 and set(intervals["classification"]) == {"top1"}
    assert intervals["kinds"] == dict.fromkeys(KEYS_OF_SHARES, "wilson") | dict.fromkeys(
        ["maxboxacc_v2", "pxap"], "bootstrap"
    )
    with open(folder / "per_class.csv", newline="") as file:
        classes = list(csv.DictReader(file))
    assert len(classes) == 3 * len(rows) and classes[1]["row"] == "cam_softmax_clamped"
    images = PerImage.load(folder)
    assert len(images.image_ids) == 12 and list(images.rows) == [line["row"] for line in classes[: len(rows)]]

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(x["stage"], x["epoch"], x["split"]) for x in lines] == [
        ("vanilla", 1, "train"),
        ("vanilla", 2, "train"),
        ("b2", 1, "train"),
        ("b2", 1, "val"),
        ("b2", 2, "train"),
        ("b2", 2, "val"),
    ]
    assert all({"loss", "top1", "lr", "seconds"} <= set(line) for line in lines)
    log = (folder / "log.txt").read_text()
    assert "linear probe" in log and "MaxBoxAccV2" in log


def test_saved_maps_are_the_evaluated_arrays(finished):
    _, folder, results = finished
    maps = folder / "scoremaps" / "test"
    assert len(list(maps.iterdir())) == len(results["rows"])
    one = np.load(maps / "cam_sigmoid_clamped" / "test" / "2" / "3.npy")
    assert one.shape == (224, 224) and one.dtype == np.float32 and one.min() == 0 and one.max() == 1


def test_eval_only_repeats_the_numbers_from_the_checkpoint_and_keeps_the_settings(finished):
    root, folder, results = finished
    config = (folder / "config.yaml").read_text()
    again = program.main(["--root", str(root / "runs"), "--experiment_name", "run", "--eval_only"])
    assert results_without_times(again) == results_without_times(results)
    assert (folder / "config.yaml").read_text() == config
    assert "train" not in json.loads((folder / "results.json").read_text())["seconds"]
    again = ["--root", str(root / "runs"), "--experiment_name", "run", "--eval_only", "--eval_checkpoint_type"]
    with pytest.raises(InputError, match="has no sigmoid branch"):
        program.main([*again, "vanilla_last", "--model_structure", "b2"])
    probe = program.main([*again, "vanilla_last"])
    assert [r["maxboxacc"] for r in probe["rows"]] == [
        r["maxboxacc"] for r in results["rows"] if r["head"] in ("softmax", "none") and not r["clamped"]
    ]
    with pytest.raises(InputError, match=r"no checkpoint .*present there: 1, 2, best, last, vanilla_1, "):
        program.main([*again, "highest"])


def test_an_evaluation_of_other_things_has_a_folder_of_its_own(shapes):
    argv = arguments(shapes, "--methods", "cam,gradcam", "--save_scoremaps")
    program.main(argv)
    run = shapes / "runs" / "run"
    before = files_below(run, without=("log.txt", ".lock"))
    evaluate = ["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only"]
    fewer = program.main([*evaluate, "--methods", "cam", "--heads", "sigmoid_clamped", "--bootstrap", "0"])
    # Without resamples the intervals of shares stay, which need none.
    assert len(fewer["rows"]) == 1 and "bootstrap" not in fewer["intervals"]["kinds"].values()
    assert {"gt_loc", "maxboxacc"} <= set(fewer["rows"][0]["interval"]) and "pxap" not in fewer["rows"][0]["interval"]
    first = run / "eval-1"
    assert list(PerImage.load(first).rows) == ["cam_sigmoid_clamped"]
    assert yaml.safe_load((first / "config.yaml").read_text())["methods"] == ["cam"]
    assert {"results.json", "results.csv", "per_class.csv", "figures", "scoremaps", "log.txt"} <= set(os.listdir(first))
    program.main([*evaluate, "--eval_checkpoint_type", "best"])
    # Where files are and how fast it goes makes no other result, and the batch size is a matter of memory.
    (shapes / "dataset").rename(shapes / "moved")
    program.main([*evaluate, "--data_root", str(shapes / "moved"), "--workers", "1", "--batch_size", "3"])
    assert sorted(path.name for path in run.glob("eval-*")) == ["eval-1", "eval-2"]
    after = {
        name: content
        for name, content in files_below(run, without=("log.txt", ".lock")).items()
        if not name.startswith("eval-")
    }
    assert set(after) == set(before)
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"results.json"}  # it names the seconds
    (shapes / "moved").rename(shapes / "dataset")
    program.main([*argv, "--override_cache"])
    assert not list(run.glob("eval-*"))


def test_flags_of_training_mean_nothing_to_an_evaluation(shapes, capsys):
    program.main(arguments(shapes, "--methods", "cam"))
    again = program.main(
        ["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only", "--lr", "1", "--epochs", "2"]
    )
    assert again["config"]["lr"] == 0.003 and not list((shapes / "runs/run").glob("eval-*"))
    said = capsys.readouterr().out
    assert "--lr 1.0 has no effect with --eval_only" in said and "--epochs" not in said


def test_same_seed_same_numbers_and_another_seed_others(shapes):
    a = program.main(arguments(shapes, "--methods", "cam", "--augment", "crop_flip", name="a"))
    b = program.main(arguments(shapes, "--methods", "cam", "--augment", "crop_flip", "--workers", "2", name="b"))
    c = program.main(arguments(shapes, "--methods", "cam", "--augment", "crop_flip", "--seed", "7", name="c"))
    assert results_without_times(a) == results_without_times(b)
    assert a["rows"] != c["rows"]


@pytest.mark.parametrize("structure, heads", [("vanilla", 1), ("b1", 1), ("b2", 3)])
def test_structures(shapes, structure, heads):
    results = program.main(
        arguments(shapes, "--model_structure", structure, "--methods", "cam", "--augment", "crop_flip")
    )
    assert len(results["rows"]) == heads
    content = checkpoint_content(shapes / "runs/run")
    assert ("fc2.weight" in content["state_dict"]) == (structure == "b2")
    assert content["model_structure"] == structure and content["epoch"] == 2
    lines = [json.loads(x) for x in (shapes / "runs/run/metrics.jsonl").read_text().splitlines()]
    assert ("vanilla" in {x["stage"] for x in lines}) == (structure in ("vanilla", "b2"))


def test_frozen_half_is_unchanged_after_training(shapes):
    """Trunk, BatchNorm's buffers and softmax head of the last checkpoint are those that the branch started from."""
    program.main(arguments(shapes, "--augment", "crop_flip", "--train_only", "--lr", "1"))
    before = checkpoint_content(shapes / "runs/run", "vanilla_last")["state_dict"]
    after = checkpoint_content(shapes / "runs/run")["state_dict"]
    assert any("running_mean" in key for key in before)
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
    assert not torch.equal(after["fc2.weight"], after["fc.weight"])
    pretrained = build("tiny").network.state_dict()
    assert all(torch.equal(before[k], t) for k, t in pretrained.items() if not k.startswith("fc."))
    assert not (shapes / "runs/run/results.json").exists()


def test_unfreeze_all_trains_the_trunk(shapes):
    program.main(arguments(shapes, "--augment", "crop_flip", "--train_only", "--unfreeze_layer", "all"))
    before = checkpoint_content(shapes / "runs/run", "vanilla_last")["state_dict"]
    after = checkpoint_content(shapes / "runs/run")["state_dict"]
    for key in ("features.0.weight", "features.1.running_mean", "fc.weight"):
        assert not torch.equal(before[key], after[key])


def test_cached_features_change_nothing_that_matters(shapes, monkeypatch):
    cached = program.main(arguments(shapes, "--methods", "cam", "--augment", "none", name="cached"))
    monkeypatch.setattr(training, "features_can_be_cached", lambda *_: False)
    plain = program.main(arguments(shapes, "--methods", "cam", "--augment", "none", name="plain"))
    a, b = (checkpoint_content(shapes / "runs" / n)["state_dict"] for n in ("cached", "plain"))
    for key in a:
        assert torch.allclose(a[key], b[key], atol=1e-5), key
    assert cached["classification"] == plain["classification"]


# ------------------------------------------------------------------- resuming


@pytest.mark.parametrize("writes", [1, 2, 3, 4, 5])
def test_a_killed_run_resumes_to_the_checkpoint_of_an_undisturbed_one(shapes, monkeypatch, writes):
    settings = ("--augment", "crop_flip", "--methods", "cam", "--epochs", "3", "--train_only")
    program.main(arguments(shapes, *settings, name="whole"))
    killed_after(monkeypatch, writes, *arguments(shapes, *settings, name="cut"))
    program.main(["--root", str(shapes / "runs"), "--experiment_name", "cut", "--resume", "--train_only"])

    for name in ("last", "best"):
        whole, cut = (checkpoint_content(shapes / "runs" / run, name) for run in ("whole", "cut"))
        assert whole["epoch"] == cut["epoch"] and whole["best"] == cut["best"]
        assert all(torch.equal(whole["state_dict"][k], cut["state_dict"][k]) for k in whole["state_dict"])
    assert all(
        torch.equal(whole["optimizer"]["state"][k]["momentum_buffer"], v["momentum_buffer"])
        for k, v in cut["optimizer"]["state"].items()
    )
    assert metrics_without_times(shapes / "runs/whole") == metrics_without_times(shapes / "runs/cut")


def test_resuming_a_finished_run_evaluates_it(shapes):
    first = program.main(arguments(shapes, "--methods", "cam"))
    again = program.main(["--root", str(shapes / "runs"), "--experiment_name", "run", "--resume"])
    assert results_without_times(first) == results_without_times(again)


def test_kill_dash_nine_leaves_a_run_that_resumes(tmp_path):
    """The real process, really killed, on the real network."""
    write_dataset(tmp_path, "Shapes", images=8)
    command = [
        "--dataset_name",
        "Shapes",
        "--experiment_name",
        "cut",
        "--root",
        "runs",
        "--workers",
        "1",
        "--methods",
        "cam",
        "--crop_size",
        "32",
        "--resize_size",
        "40",
        "--epochs",
        "40",
        "--vanilla_epochs",
        "1",
        "--cam_curve_interval",
        "0.1",
        "--augment",
        "crop_flip",
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *command],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last = tmp_path / "runs/cut/last_checkpoint.pth.tar"
    deadline = time.monotonic() + 300
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last.exists(), "no checkpoint was written within the time"
    reached = torch.load(last, weights_only=True)["epoch"]
    assert 1 <= reached < 40
    done = run_command(
        "--root", "runs", "--experiment_name", "cut", "--resume", "--epochs", str(reached + 1), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert torch.load(last, weights_only=True)["epoch"] == reached + 1
    assert f"resuming after epoch {reached}" in done.stdout


# ------------------------------------------------------------------- the commands that people already type

PUBLISHED = """--dataset_name ILSVRC --architecture efficientnet_lite0 --wsol_method cam --method cam
  --experiment_name vgg16_cam_ours --wandb_name vgg16_cam_ours --root EXPERIMENTS/ILSVRC --large_feature_map FALSE
  --epoch 10 --batch_size 32 --lr_decay_frequency 3 --workers 4 --gpus 1 --lr 0.003 --weight_decay 5.00E-04
  --model_structure b2 --ft_ckpt CHECKPOINT --unfreeze_layer fc2 --project vgg16-0""".split()


def test_published_commands(tmp_path):
    write_dataset(tmp_path, "ILSVRC", labels=[0, 7, 999], images=2, splits=("train", "val", "test"))
    tensors = build("efficientnet_lite0").network.state_dict()
    torch.save(
        {
            "architecture": "efficientnet_lite0",
            "epoch": 3,
            "optimizer": {},
            "state_dict": {f"module.{key}": tensor for key, tensor in tensors.items()},
        },
        tmp_path / "CHECKPOINT",
    )
    environment = {"WANDB_MODE": "offline", "HOME": str(tmp_path)}
    trained = run_command(*PUBLISHED, cwd=tmp_path, **environment)
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "EXPERIMENTS/ILSVRC/vgg16_cam_ours"
    results = json.loads((folder / "results.json").read_text())
    assert [r["method"] for r in results["rows"]] == ["cam"] * 3
    assert results["num_classes"] == 1000 and "top5" in results["classification"]
    assert not (folder / "vanilla_last_checkpoint.pth.tar").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["epochs"] == 10
    saved = checkpoint_content(folder)
    assert all(torch.equal(saved["state_dict"][key], tensor) for key, tensor in tensors.items())
    assert (folder / "wandb").is_dir()

    evaluated = run_command(*PUBLISHED, "--eval_only", "--eval_checkpoint_type", "last", cwd=tmp_path, **environment)
    assert evaluated.returncode == 0, evaluated.stderr
    again = json.loads((folder / "results.json").read_text())
    assert again["rows"] == results["rows"]

    unknown = run_command(*[x.replace("efficientnet_lite0", "efficientnet_light0") for x in PUBLISHED], cwd=tmp_path)
    assert unknown.returncode == 2
    assert "efficientnet_light0" in unknown.stderr and "did you mean 'efficientnet_lite0'" in unknown.stderr
    assert "Traceback" not in unknown.stderr


# ------------------------------------------------------------------- bad input, before any work


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--ft_ckpt", "nowhere.pth"], "checkpoint nowhere.pth does not exist"),
        (["--methods", "gradcan"], "did you mean 'gradcam'"),
        (["--heads", "sigmoidal"], "did you mean 'sigmoid"),
        (["--model_structure", "vanilla", "--unfreeze_layer", "fc2"], "needs --model_structure b2"),
        (["--model_structure", "b1", "--heads", "sigmoid"], "needs a sigmoid branch"),
        (["--unfreeze_layer", "none"], "nothing to train"),
        (["--crop_size", "64", "--augment", "crop_flip"], "smaller than --crop_size"),
        (["--gpus", "first"], "--gpus 'first'"),
        (["--data_root", "/nowhere"], "first image of the train split is missing"),
        (["--metadata_root", "/nowhere"], "no metadata for the data set 'Shapes'"),
        (["--resume", "--eval_only"], "exclude each other"),
        (["--resume"], "no run "),
        (["--eval_only"], "no run "),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(shapes, flags, message):
    before = files_below(shapes)
    with pytest.raises(InputError, match=message) as caught:
        program.main(arguments(shapes, *flags))
    assert "\n" not in str(caught.value)
    assert files_below(shapes) == before


def test_existing_runs_are_kept_unless_told_otherwise(shapes):
    settings = arguments(shapes, "--methods", "cam", "--train_only", "--epochs", "1")
    program.main(settings)
    (shapes / "runs/run/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists; continue it with --resume"):
        program.main(settings)
    assert (shapes / "runs/run/notes.txt").exists()
    program.main([*settings, "--override_cache"])
    assert not (shapes / "runs/run/notes.txt").exists()
    foreign = shapes / "runs/foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="removes only folders of this program"):
        program.main(arguments(shapes, "--override_cache", name="foreign"))
    assert (foreign / "thesis.tex").exists()


def test_a_second_process_keeps_off(shapes):
    program.main(arguments(shapes, "--methods", "cam", "--train_only", "--epochs", "1"))
    from wsol.run.folder import RunFolder

    first = RunFolder(str(shapes / "runs"), "run", must_exist=True)
    first.open({}, save=False)
    with pytest.raises(InputError, match="another process is using"):
        program.main(["--root", str(shapes / "runs"), "--experiment_name", "run", "--eval_only"])


def test_dry_run_prints_and_writes_nothing(shapes, capsys):
    before = files_below(shapes)
    assert program.main(arguments(shapes, "--dry_run")) is None
    printed = capsys.readouterr().out
    assert "lr: 0.003" in printed and "12 train, 12 val, 12 test" in printed
    network = build("tiny", 3)
    head = sum(p.numel() for p in network.softmax_head.parameters())
    total = sum(p.numel() for p in network.parameters())
    assert f"{head:,} trainable, {total:,} frozen" in printed
    assert files_below(shapes) == before


def test_command_line_errors_have_no_traceback(tmp_path):
    done = run_command("--experiment_name", "x", "--dataset_name", "Nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: no metadata for the data set 'Nowhere'")
    done = run_command("--lr", "fast", cwd=tmp_path)
    assert done.returncode == 2 and "'fast' is not a number" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------- shapes of data


@pytest.mark.parametrize("form", ["boxes", "masks"])
def test_boxes_or_masks_decide_the_metrics(tmp_path, form):
    write_dataset(tmp_path, "Shapes", form=form)
    results = program.main(arguments(tmp_path, "--methods", "cam,layercam"))
    for row in [*results["rows"], results["center"]]:
        assert ("pxap" in row) == (form == "masks")
        assert ("maxboxacc_v2" in row) == (form == "boxes")
    assert (tmp_path / "runs/run/figures/box_accuracy.png").exists() == (form == "boxes")
    assert (tmp_path / "runs/run/figures/maps_layercam.png").exists()


def test_no_val_split_one_image_one_class_and_a_huge_batch(tmp_path):
    write_dataset(tmp_path, "One", classes=1, images=1, splits=("train", "test"))
    results = program.main(arguments(tmp_path, "--methods", "cam,gradcam++", "--batch_size", "4096", dataset="One"))
    assert results["num_images"] == 1 and results["classification"] == {"top1": 100.0}
    assert all("gt_loc_val" not in row for row in results["rows"])
    assert (tmp_path / "runs/run/best_checkpoint.pth.tar").exists()


def test_cars_layout(tmp_path):
    """The ids of CARS carry no folder: images lie in cars_train/ and cars_test/."""
    for split in ("train", "test"):
        write_dataset(tmp_path, "CARS", splits=(split,), folder=f"cars_{split}", images=2)
    results = program.main(arguments(tmp_path, "--methods", "cam", dataset="CARS"))
    assert results["num_classes"] == 196


def test_cam_target(shapes):
    """With --cam_target pred an image whose class is not predicted gets the map of another class."""
    both = [
        program.main(
            arguments(
                shapes,
                "--methods",
                "cam",
                "--vanilla_lr",
                "1e-9",
                "--lr",
                "1e-9",
                "--save_scoremaps",
                "--cam_target",
                target,
                name=target,
            )
        )
        for target in ("gt", "pred")
    ]
    assert both[0]["classification"] == both[1]["classification"]
    assert both[0]["classification"]["top1"] < 100
    assert both[0]["rows"] != both[1]["rows"]


def test_random_branch_start(shapes):
    program.main(
        arguments(shapes, "--epochs", "0", "--vanilla_epochs", "1", "--sigmoid_init", "random", "--train_only")
    )
    tensors = checkpoint_content(shapes / "runs/run")["state_dict"]
    assert not torch.equal(tensors["fc2.weight"], tensors["fc.weight"])
    assert tensors["fc2.weight"].abs().max() < 0.06 and (tensors["fc2.bias"] == 0).all()


def test_config_file_repeats_a_run(shapes):
    first = program.main(arguments(shapes, "--methods", "cam,layercam", "--heads", "sigmoid,softmax"))
    again = program.main(
        ["--config", str(shapes / "runs/run/config.yaml"), "--root", str(shapes / "runs"), "--experiment_name", "again"]
    )
    assert results_without_times(first) == results_without_times(again)


@pytest.mark.slow
def test_the_embedded_default(tmp_path):
    """`python main.py` with no flag, as the README promises it."""
    done = run_command(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "experiments/run-1/results.json").read_text())
    assert results["num_classes"] >= 10 and results["classification"]["top1"] >= 90
    plain = next(r for r in results["rows"] if (r["method"], r["head"], r["clamped"]) == ("cam", "softmax", False))
    assert 35 <= plain["maxboxacc_v2"] <= 80


def test_all_methods_with_both_heads_and_what_they_cost(shapes, capsys):
    results = program.main(
        arguments(shapes, "--methods", "all", "--epochs", "1", "--perturb_batch", "16", "--bootstrap", "0")
    )
    found = {(row["method"], row["head"], row["clamped"]) for row in results["rows"]}
    for name in all_methods():
        method = CAM_METHODS[name]
        heads = (
            {("none", False)}
            if method.headless
            else {("softmax", False), ("sigmoid", True), ("softmax", True)}
            if method.weights
            else {("softmax", False), ("sigmoid", False)}
        )
        assert {(head, clamped) for one, head, clamped in found if one == name} == heads, name
    assert len(CAM_METHODS) >= 16
    printed = capsys.readouterr().out
    assert "in forward passes" in printed and "scorecam" in printed
    assert set(results["cost"]) == {"forward", *all_methods()}
    assert all(cost["seconds"] > 0 and cost["mib"] >= 0 for cost in results["cost"].values())
    assert (shapes / "runs/run/figures/maps_eigencam.png").exists()


def test_val_is_measured_every_second_epoch_and_after_the_last(shapes):
    program.main(arguments(shapes, "--train_only", "--epochs", "3", "--vanilla_epochs", "1", "--val_every", "2"))
    folder = shapes / "runs/run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["split"] == "val"] == [2, 3]
    best = checkpoint_content(folder, "best")
    figures = {line["epoch"]: line["maxboxacc_v2"] for line in lines if line["split"] == "val"}
    assert best["epoch"] == max(figures, key=figures.get) and best["best"] == pytest.approx(
        max(figures.values()), abs=1e-3
    )
